"""PyTorch's files, read without running code from them."""
