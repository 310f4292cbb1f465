"""The ops that treat each element by itself: the ReLU and dropout."""

from __future__ import annotations

from tinyft.engine.checks import expect_floats
from tinyft.engine.tape import Made
from tinyft.engine.tensor import Tensor, op


@op
def relu(x: Tensor) -> Made:
    """max(x, 0): the smallest complete op, and the pattern that all others follow.

    Shapes: x any -> the same
    Keeps: out, whose sign says where x was positive
    """
    backend = x.backend
    out = backend.relu(x.data)

    # forward was: out = max(x, 0); so: dx = dout where out > 0, else 0 (the subgradient at 0 is 0,
    # as in PyTorch)
    def backward(dout):
        return (backend.relu_grad(dout, out),)

    return out, backward


@op
def dropout(x: Tensor, probability: float, *, seed: int, stream: tuple[int, int]) -> Made:
    """Zero each element with `probability`, and divide the others by 1 - probability.

    Which ones depends on `probability`, `seed` and `stream` alone; the latter are an integer and a
    pair of them, for example step and layer.

    Shapes: x any -> the same
    Raises: ValueError unless 0 <= probability < 1 and `stream` has two numbers; TypeError for
    integers
    Keeps: nothing: backward draws the same mask again
    Source: Srivastava et al., Dropout (2014); scaled while training, as in PyTorch
    """
    expect_floats("dropout", x=x)
    if not 0 <= probability < 1:
        raise ValueError(f"dropout: probability must be at least 0 and below 1, got {probability}")
    if not isinstance(stream, tuple | list) or len(stream) != 2:
        raise ValueError(f"dropout: stream must be two integers, as (step, layer); got {stream!r}")
    backend = x.backend
    out = backend.dropout(x.data, probability, seed, stream)

    # forward was: out = x * mask; so: dx = dout * mask
    def backward(dout):
        return (backend.dropout(dout, probability, seed, stream),)

    return out, backward
