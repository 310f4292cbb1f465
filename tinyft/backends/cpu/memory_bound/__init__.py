"""Kernels that wait for memory: batch norm, pooling, elementwise, optimizers, reductions."""
