"""Before and after training: weights, filters and features."""
