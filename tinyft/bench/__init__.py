"""`tinyft bench`: our speed, and PyTorch's and ONNX Runtime's beside it."""
