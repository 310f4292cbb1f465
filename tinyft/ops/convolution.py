"""The ops with a weight matrix or filters: the convolution and the linear layer.

Letters: N pictures, H W rows and columns in, C channels in, P Q rows and columns out, F filters, R
S the kernel.
"""

from __future__ import annotations

import functools

from tinyft.backends.reference import output_size
from tinyft.engine.checks import (
    data_of,
    expect_floats,
    expect_same_dtype,
    expect_shape,
    expect_whole,
    expect_window,
)
from tinyft.engine.tape import Made
from tinyft.engine.tensor import Tensor, op


@op
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Made:
    """Slide F filters over a picture; optionally add a bias and a residual and rectify, in one
    pass.

    Shapes:
        x (N, H, W, C), weight (F, C, R, S), bias (F,), residual (N, P, Q, F)
        -> (N, P, Q, F) with P = (H + 2 padding - R) // stride + 1, Q likewise
    Raises: ShapeError for shapes that do not fit, TypeError for mixed dtypes or integers
    Keeps: weight for dx; x for dweight; the result if rectified. Nothing for an input that needs
    no gradient.
    """
    bias_shape = None if bias is None else bias.shape
    residual_shape = None if residual is None else residual.shape
    expect_whole("conv2d", stride=stride, padding=padding)
    _check_shapes(x.shape, weight.shape, bias_shape, residual_shape, stride, padding)
    expect_same_dtype("conv2d", x=x, weight=weight, bias=bias, residual=residual)
    expect_floats("conv2d", x=x)

    backend, window = x.backend, {"stride": stride, "padding": padding}
    out = backend.conv2d(
        x.data, weight.data, data_of(bias), residual=data_of(residual), relu=relu, **window
    )
    x_shape, weight_shape = x.shape, weight.shape
    kept_weight = weight.data if x.requires_grad else None
    kept_x = x.data if weight.requires_grad else None
    kept_out = out if relu else None
    needs_bias = None if bias is None else bias.requires_grad
    needs_residual = None if residual is None else residual.requires_grad

    # forward was: out = relu(conv(x, weight) + bias + residual); so, with dout = 0 where out is 0:
    # dx sends each output's dout back through its window, dweight = sum over all windows of
    # dout * the window's pixels, dbias = dout summed over N P Q, dresidual = dout
    def backward(dout):
        if kept_out is not None:
            dout = backend.relu_grad(dout, kept_out)
        dx = dweight = None
        if kept_weight is not None:
            dx = backend.conv2d_input_grad(dout, kept_weight, x_shape, **window)
        if kept_x is not None:
            dweight = backend.conv2d_weight_grad(dout, kept_x, weight_shape, **window)
        gradients = [dx, dweight]
        if needs_bias is not None:
            gradients.append(backend.sum(dout, (0, 1, 2)) if needs_bias else None)
        if needs_residual is not None:
            gradients.append(dout if needs_residual else None)
        return tuple(gradients)

    return out, backward


@functools.lru_cache(maxsize=1024)  # each step asks for the same ones
def _check_shapes(x, weight, bias, residual, stride, padding):
    expect_shape("conv2d", "x", x, ("N", "H", "W", "C"))
    N, H, W, C = x
    hint = f" (x is {x}: channels come last)"
    expect_shape("conv2d", "weight", weight, ("F", C, "R", "S"), hint)
    F, _, R, S = weight
    expect_window("conv2d", H, R, stride, padding, "rows")
    expect_window("conv2d", W, S, stride, padding, "columns")
    expect_shape("conv2d", "bias", bias, (F,))
    P, Q = output_size(H, R, stride, padding), output_size(W, S, stride, padding)
    expect_shape("conv2d", "residual", residual, (N, P, Q, F))


@op
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Made:
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

    # forward was: out = x @ weight.T + bias; so: dx = dout @ weight, dweight = dout.T @ x,
    # dbias = dout summed over N
    def backward(dout):
        dx = None if kept_weight is None else backend.matmul(dout, kept_weight)
        dweight = None if kept_x is None else backend.matmul(dout.T, kept_x)
        if needs_bias is None:
            return dx, dweight
        return dx, dweight, backend.sum(dout, (0,)) if needs_bias else None

    return out, backward
