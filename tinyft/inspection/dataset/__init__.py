"""A data set before training: what is in it, what is there twice, which labels look wrong."""
