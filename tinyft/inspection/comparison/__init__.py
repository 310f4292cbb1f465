"""What training changed: weights, filters and features, before and after."""
