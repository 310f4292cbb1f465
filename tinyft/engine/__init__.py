"""The engine: tensors that remember how they were made, and the walk back along that memory."""
