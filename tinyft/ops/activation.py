"""The rectifier: the smallest complete op, and the pattern that all others follow."""

from __future__ import annotations

from tinyft.engine.tape import op


@op
def relu(x):
    """max(x, 0).

    Shapes: x any -> the same
    Keeps: out, whose sign says where x was positive
    """
    backend = x.backend
    out = backend.relu(x.data)

    # dx = dout where x > 0, else 0 (the subgradient at 0 is 0, as in PyTorch)
    def backward(dout):
        return (backend.relu_grad(dout, out),)

    return out, backward
