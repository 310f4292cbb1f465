"""The direct convolution: a matrix product whose patches are never written (implicit GEMM)."""
