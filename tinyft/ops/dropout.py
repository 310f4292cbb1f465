"""Dropout.

Source: Srivastava et al., Dropout (2014); scaled while training, as in PyTorch.
"""

from __future__ import annotations

from tinyft.engine.checks import expect_floats
from tinyft.engine.tape import op


@op
def dropout(x, probability, *, seed, stream):
    """Zero each element with `probability`, and divide the others by 1 - probability.

    Which ones depends on `probability`, `seed` and `stream` alone; the latter are an integer and a
    pair of them, for example step and layer.

    Shapes: x any -> the same
    Raises: ValueError unless 0 <= probability < 1 and `stream` has two numbers; TypeError for
    integers
    Keeps: nothing: backward draws the same mask again
    """
    expect_floats("dropout", x=x)
    if not 0 <= probability < 1:
        raise ValueError(f"dropout: probability must be at least 0 and below 1, got {probability}")
    if not isinstance(stream, tuple | list) or len(stream) != 2:
        raise ValueError(f"dropout: stream must be two integers, as (step, layer); got {stream!r}")
    backend = x.backend

    # the mask multiplies, so it multiplies the gradient too
    def backward(dout):
        return (backend.dropout(dout, probability, seed, stream),)

    return backend.dropout(x.data, probability, seed, stream), backward
