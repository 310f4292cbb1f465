"""The linear layer."""

from __future__ import annotations

from tinyft.engine.checks import expect_floats, expect_same_dtype, expect_shape
from tinyft.engine.tape import op


@op
def linear(x, weight, bias=None):
    """x @ weight.T + bias: each output is a weighted sum of all inputs.

    Shapes: x (N, C), weight (F, C), bias (F,) -> (N, F)
    Raises: ShapeError, TypeError
    Keeps: weight for dx, x for dweight
    """
    expect_shape("linear", "x", x.shape, ("N", "C"))
    expect_shape("linear", "weight", weight.shape, ("F", x.shape[1]), f" (x is {x.shape})")
    expect_shape("linear", "bias", None if bias is None else bias.shape, (weight.shape[0],))
    expect_same_dtype("linear", x=x, weight=weight, bias=bias)
    expect_floats("linear", x=x)

    backend = x.backend
    out = backend.matmul(x.data, weight.data.T)
    if bias is not None:
        out = out + bias.data
    kept_weight = weight.data if x.requires_grad else None
    kept_x = x.data if weight.requires_grad else None
    needs_bias = None if bias is None else bias.requires_grad

    # out = x @ weight.T + bias, so dx = dout @ weight, dweight = dout.T @ x, dbias = dout summed
    # over the batch
    def backward(dout):
        dx = None if kept_weight is None else backend.matmul(dout, kept_weight)
        dweight = None if kept_x is None else backend.matmul(dout.T, kept_x)
        if needs_bias is None:
            return dx, dweight
        return dx, dweight, backend.sum(dout, (0,)) if needs_bias else None

    return out, backward
