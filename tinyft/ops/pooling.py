"""Pooling: the largest of each window, and the mean or the largest of a whole picture."""

from __future__ import annotations

from tinyft.engine.checks import expect_floats, expect_shape, expect_whole, expect_window
from tinyft.engine.tape import Made
from tinyft.engine.tensor import Tensor, op
from tinyft.errors import ShapeError

LARGEST_WINDOW = 255  # where in a window the largest pixel was is kept in 16 bits


@op
def max_pool2d(x: Tensor, *, kernel: int, stride: int, padding: int = 0) -> Made:
    """The largest pixel of each window, per channel. Padding never wins.

    Shapes: x (N, H, W, C) -> (N, P, Q, C) with P = (H + 2 padding - kernel) // stride + 1, Q
    likewise
    Raises: ShapeError; TypeError for integers, or a window that is not made of whole numbers
    Keeps: where each maximum was, as a small integer per output
    """
    expect_shape("max_pool2d", "x", x.shape, ("N", "H", "W", "C"))
    expect_floats("max_pool2d", x=x)
    window = {"kernel": kernel, "stride": stride, "padding": padding}
    expect_whole("max_pool2d", **window)
    expect_window("max_pool2d", x.shape[1], axis="rows", **window)
    expect_window("max_pool2d", x.shape[2], axis="columns", **window)
    if 2 * padding > kernel:
        raise ShapeError(f"max_pool2d: padding {padding} is more than half of kernel {kernel}")
    if kernel > LARGEST_WINDOW:
        raise ShapeError(f"max_pool2d: kernel must be at most {LARGEST_WINDOW}, got {kernel}")
    backend, x_shape = x.backend, x.shape
    out, place = backend.max_pool2d(x.data, **window)

    # forward was: out = each window's maximum; so: dx = dout at that pixel (the first, if several
    # are equal), summed over the windows that it won; 0 elsewhere
    def backward(dout):
        return (backend.max_pool2d_grad(dout, place, x_shape, **window),)

    return out, backward


@op
def global_average_pool(x: Tensor) -> Made:
    """The mean of each channel over all pixels: (N, H, W, C) -> (N, C). Keeps: nothing.

    Raises: ShapeError, TypeError for integers
    """
    _check_picture("global_average_pool", x)
    expect_floats("global_average_pool", x=x)
    backend, x_shape = x.backend, x.shape

    # forward was: out = sum(x) / (H W); so: dx = dout / (H W) at every pixel
    def backward(dout):
        return (backend.global_average_pool_grad(dout, x_shape),)

    return backend.global_average_pool(x.data), backward


@op
def global_max_pool(x: Tensor) -> Made:
    """The largest pixel of each channel: (N, H, W, C) -> (N, C). Keeps: where it was, one integer
    per output.

    Raises: ShapeError
    """
    _check_picture("global_max_pool", x)
    backend, x_shape = x.backend, x.shape
    out, place = backend.global_max_pool(x.data)

    # forward was: out = max(x); so: dx = dout at that pixel (the first, if several are equal), 0
    # elsewhere
    def backward(dout):
        return (backend.global_max_pool_grad(dout, place, x_shape),)

    return out, backward


def _check_picture(name, x):
    expect_shape(name, "x", x.shape, ("N", "H", "W", "C"))
    if 0 in x.shape[1:3]:
        raise ShapeError(f"{name}: x is {x.shape}: a picture without pixels has no value")
