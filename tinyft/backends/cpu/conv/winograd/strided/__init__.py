"""Winograd's convolution with stride 2: four small ones, one for each parity."""
