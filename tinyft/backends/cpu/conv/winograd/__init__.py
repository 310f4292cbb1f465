"""Winograd's convolution: 3x3 filters with fewer multiplications."""
