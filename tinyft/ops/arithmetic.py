"""Sums, means and shapes. The operators + - * / @ and their ops stand in tensor.py and are named
here again.

Next: tinyft/ops/activation.py
"""

from __future__ import annotations

import numpy as np

from tinyft.errors import ShapeError
from tinyft.ops.checks import expect_floats, expect_same_dtype
from tinyft.tensor import Tensor, add, div, matmul, mul, neg, op, sub


def _axes(x: Tensor, axis: int | tuple[int, ...] | None, name: str) -> tuple[int, ...]:
    """`axis` as a tuple of numbers from 0, checked against the shape of x."""
    if axis is None:
        return tuple(range(x.ndim))
    axes = (axis,) if isinstance(axis, int | np.integer) else tuple(axis)
    if any(not -x.ndim <= a < x.ndim for a in axes):
        raise ShapeError(f"{name}: axis {axis} does not exist in a tensor of shape {x.shape}")
    axes = tuple(a % x.ndim for a in axes)
    if len(set(axes)) < len(axes):
        raise ShapeError(f"{name}: axis {axis} names one axis of {x.shape} twice")
    return axes


def _kept_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with 1 in place of each summed axis, to which a gradient is broadcast back."""
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


@op
def sum(x, axis=None, keepdims=False):
    """Sum over an axis, several, or all. Gradient: dout, repeated. Keeps: nothing.

    Raises: TypeError for integers, whose sum may not fit
    """
    expect_floats("sum", x=x)
    backend, shape = x.backend, x.shape
    axes = _axes(x, axis, "sum")

    def backward(dout):
        return (backend.broadcast(dout.reshape(_kept_shape(shape, axes)), shape),)

    return backend.sum(x.data, axes, keepdims), backward


@op
def mean(x, axis=None, keepdims=False):
    """Mean over an axis, several, or all. Gradient: dout / count, repeated. Keeps: nothing.

    Raises: TypeError for integers, ShapeError for the mean of nothing
    """
    expect_floats("mean", x=x)
    backend, shape = x.backend, x.shape
    axes = _axes(x, axis, "mean")
    count = 1
    for a in axes:
        count *= shape[a]
    if count == 0:
        raise ShapeError(f"mean: no elements along axis {axis} of a tensor of shape {shape}")

    def backward(dout):
        return (backend.broadcast(dout.reshape(_kept_shape(shape, axes)) / count, shape),)

    return backend.mean(x.data, axes, keepdims), backward


@op
def reshape(x, shape):
    """The same elements under another shape, shared where possible. Gradient: dout, shaped back.
    Keeps: nothing. Raises: ShapeError
    """
    before = x.shape
    try:
        out = x.data.reshape(shape)
    except ValueError:
        raise ShapeError(f"reshape: {before} does not have as many elements as {shape}") from None
    return out, lambda dout: (dout.reshape(before),)


@op
def concatenate(*tensors, axis=-1):
    """Tensors side by side along one axis. Gradient: each gets its part of dout. Keeps: nothing.

    Raises: ShapeError, TypeError for mixed dtypes
    """
    if not tensors:
        raise ShapeError("concatenate: give at least one tensor")
    if not all(isinstance(x, Tensor) for x in tensors):
        raise TypeError("concatenate: give tensors, one after the other: concatenate(a, b)")
    expect_same_dtype("concatenate", **{f"tensor {i}": x for i, x in enumerate(tensors)})
    backend = tensors[0].backend
    shapes = [x.shape for x in tensors]
    (axis,) = _axes(tensors[0], axis, "concatenate")
    if len({(len(s), s[:axis] + s[axis + 1 :]) for s in shapes}) != 1:
        raise ShapeError(f"concatenate: shapes may differ along axis {axis} only, got {shapes}")
    needs = [x.requires_grad for x in tensors]

    def backward(dout):
        parts = backend.split(dout, [s[axis] for s in shapes], axis)
        return tuple(part if n else None for part, n in zip(parts, needs, strict=True))

    return backend.concatenate([x.data for x in tensors], axis), backward


__all__ = [
    "add",
    "concatenate",
    "div",
    "matmul",
    "mean",
    "mul",
    "neg",
    "reshape",
    "sub",
    "sum",
]
