"""PyTorch's side of `tinyft bench`: the same networks, kernels and steps in torch."""
