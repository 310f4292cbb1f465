"""Arithmetic, elementary functions, sums and shapes: what a Tensor's operators and methods need,
each with its derivative beside it. A batch norm, a softmax or Adam can be written out in them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy import ndarray as Array

from tinyft import backends
from tinyft.engine.checks import expect_floats, expect_same_dtype
from tinyft.engine.tape import Made, Recorded, T, op
from tinyft.errors import ShapeError


@op
def move(x: T, device: str) -> Made:
    """x on another device. Keeps: nothing."""
    home = backends.device_of(x.data)

    # forward was: out = x, moved; so: dx = dout, moved back
    def backward(dout):
        return (backends.place(dout, home),)

    return backends.place(x.data, device), backward


def unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum a gradient over the axes along which an input of that `shape` was repeated."""
    if gradient.shape == shape:
        return gradient
    added = gradient.ndim - len(shape)
    repeated = [added + i for i, n in enumerate(shape) if n == 1 and gradient.shape[added + i] != 1]
    axes = (*range(added), *repeated)
    return backends.of(gradient).sum(gradient, axes).reshape(shape)


def _expect_pair(name: str, a: Recorded, b: Recorded, axes: slice = slice(None)) -> None:
    """Raise unless a and b broadcast (along `axes`) and have one float dtype."""
    if a.dtype != b.dtype and "f" in (a.dtype.kind, b.dtype.kind):
        raise TypeError(
            f"{name}: both tensors must have the same dtype, but a is {a.dtype} and b is {b.dtype}"
        )
    pairs = zip(reversed(a.shape[axes]), reversed(b.shape[axes]), strict=False)
    if any(m != n and m != 1 and n != 1 for m, n in pairs):
        raise ShapeError(f"{name}: {a.shape} and {b.shape} do not broadcast to one shape")


@op
def add(a: T, b: T) -> Made:
    """a + b, broadcast. Keeps: nothing."""
    _expect_pair("add", a, b)
    a_shape, b_shape, needs_a, needs_b = a.shape, b.shape, a.requires_grad, b.requires_grad

    # forward was: out = a + b; so: da = dout, db = dout
    def backward(dout):
        da = unbroadcast(dout, a_shape) if needs_a else None
        db = unbroadcast(dout, b_shape) if needs_b else None
        return da, db

    return a.data + b.data, backward


@op
def sub(a: T, b: T) -> Made:
    """a - b, broadcast. Keeps: nothing."""
    _expect_pair("sub", a, b)
    a_shape, b_shape, needs_a, needs_b = a.shape, b.shape, a.requires_grad, b.requires_grad

    # forward was: out = a - b; so: da = dout, db = -dout
    def backward(dout):
        da = unbroadcast(dout, a_shape) if needs_a else None
        db = unbroadcast(-dout, b_shape) if needs_b else None
        return da, db

    return a.data - b.data, backward


@op
def mul(a: T, b: T) -> Made:
    """a * b, broadcast. Keeps: b for da, a for db."""
    _expect_pair("mul", a, b)
    a_shape, b_shape = a.shape, b.shape
    kept_b = b.data if a.requires_grad else None
    kept_a = a.data if b.requires_grad else None

    # forward was: out = a * b; so: da = dout * b, db = dout * a
    def backward(dout):
        da = None if kept_b is None else unbroadcast(dout * kept_b, a_shape)
        db = None if kept_a is None else unbroadcast(dout * kept_a, b_shape)
        return da, db

    return a.data * b.data, backward


@op
def div(a: T, b: T) -> Made:
    """a / b, broadcast. Keeps: b; out for db."""
    _expect_pair("div", a, b)
    a_shape, b_shape, needs_a = a.shape, b.shape, a.requires_grad
    divisor = b.data
    out = a.data / divisor
    kept_out = out if b.requires_grad else None

    # forward was: out = a / b; so: da = dout / b, db = -dout * a / b ** 2 = -dout * out / b
    def backward(dout):
        da = unbroadcast(dout / divisor, a_shape) if needs_a else None
        db = None if kept_out is None else unbroadcast(-dout * kept_out / divisor, b_shape)
        return da, db

    return out, backward


@op
def neg(a: T) -> Made:
    """-a. Keeps: nothing."""

    # forward was: out = -a; so: da = -dout
    def backward(dout):
        return (-dout,)

    return -a.data, backward


@op
def power(a: T, exponent: float) -> Made:
    """a ** exponent, for one real number. Keeps: a.

    Raises: TypeError for a tensor as the exponent
    """
    expect_floats("power", a=a)
    if not isinstance(exponent, int | float | np.integer | np.floating):
        raise TypeError(
            f"power: the exponent should be a number, got {type(exponent).__name__}; a ** b of two "
            "tensors is exp(b * log(a))"
        )
    base, exponent = a.data, float(exponent)

    # forward was: out = a ** p; so: da = dout * p * a ** (p - 1)
    def backward(dout):
        slope = (
            exponent * base ** (exponent - 1) if exponent else backends.of(base).zeros_like(base)
        )
        return (dout * slope,)

    return base**exponent, backward


@op
def exp(x: T) -> Made:
    """e ** x. Keeps: out."""
    expect_floats("exp", x=x)
    out = x.backend.elementary("exp", x.data)

    # forward was: out = exp(x); so: dx = dout * exp(x)
    def backward(dout):
        return (dout * out,)

    return out, backward


@op
def log(x: T) -> Made:
    """The natural logarithm. Keeps: x."""
    expect_floats("log", x=x)
    kept = x.data

    # forward was: out = log(x); so: dx = dout / x
    def backward(dout):
        return (dout / kept,)

    return x.backend.elementary("log", kept), backward


@op
def sqrt(x: T) -> Made:
    """The square root. Keeps: out."""
    expect_floats("sqrt", x=x)
    out = x.backend.elementary("sqrt", x.data)

    # forward was: out = sqrt(x); so: dx = dout / (2 sqrt(x))
    def backward(dout):
        return (dout / (2 * out),)

    return out, backward


@op
def tanh(x: T) -> Made:
    """The hyperbolic tangent. Keeps: out."""
    expect_floats("tanh", x=x)
    out = x.backend.elementary("tanh", x.data)

    # forward was: out = tanh(x); so: dx = dout * (1 - tanh(x) ** 2)
    def backward(dout):
        return (dout * (1 - out * out),)

    return out, backward


@op
def maximum(a: T, b: T) -> Made:
    """The larger of a and b, broadcast. Keeps: where a is larger, and where they are equal.

    Source: PyTorch `torch.maximum`, which also gives each half of the gradient where they are equal
    """
    expect_floats("maximum", a=a, b=b)
    _expect_pair("maximum", a, b)
    a_shape, b_shape, needs_a, needs_b = a.shape, b.shape, a.requires_grad, b.requires_grad
    share = (a.data > b.data).astype(a.dtype) + (a.data == b.data).astype(a.dtype) / 2

    # forward was: out = a where a > b, else b; so: da = dout where a > b, else 0; db is the rest
    def backward(dout):
        da = unbroadcast(dout * share, a_shape) if needs_a else None
        db = unbroadcast(dout * (1 - share), b_shape) if needs_b else None
        return da, db

    return a.backend.elementary("maximum", a.data, b.data), backward


@op
def matmul(a: T, b: T) -> Made:
    """a @ b for (..., M, K) and (..., K, N). Keeps: b for da, a for db.

    Raises: ShapeError, TypeError for mixed dtypes
    """
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ShapeError(f"matmul: expected (..., M, K) @ (..., K, N), got {a.shape} @ {b.shape}")
    _expect_pair("matmul", a, b, axes=slice(None, -2))
    backend = a.backend
    a_shape, b_shape = a.shape, b.shape
    kept_b = b.data if a.requires_grad else None
    kept_a = a.data if b.requires_grad else None

    # forward was: out = a @ b; so: da = dout @ b.T, db = a.T @ dout
    def backward(dout):
        da = db = None
        if kept_b is not None:
            da = unbroadcast(backend.matmul(dout, kept_b.swapaxes(-1, -2)), a_shape)
        if kept_a is not None:
            db = unbroadcast(backend.matmul(kept_a.swapaxes(-1, -2), dout), b_shape)
        return da, db

    return backend.matmul(a.data, b.data), backward


def _axes(x: Recorded, axis: int | tuple[int, ...] | None, name: str) -> tuple[int, ...]:
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
def sum(x: T, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Made:
    """Sum over an axis, several, or all. Keeps: nothing.

    Raises: TypeError for integers, whose sum may not fit
    """
    expect_floats("sum", x=x)
    backend, shape = x.backend, x.shape
    axes = _axes(x, axis, "sum")

    # forward was: out = sum(x); so: dx = dout for each element that was summed
    def backward(dout):
        return (backend.broadcast(dout.reshape(_kept_shape(shape, axes)), shape),)

    return backend.sum(x.data, axes, keepdims), backward


@op
def mean(x: T, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Made:
    """Mean over an axis, several, or all. Keeps: nothing.

    Raises: TypeError for integers, ShapeError for the mean of nothing
    """
    expect_floats("mean", x=x)
    backend, shape = x.backend, x.shape
    axes = _axes(x, axis, "mean")
    count = math.prod(shape[a] for a in axes)
    if count == 0:
        raise ShapeError(f"mean: no elements along axis {axis} of a tensor of shape {shape}")

    # forward was: out = sum(x) / count; so: dx = dout / count for each element that was summed
    def backward(dout):
        return (backend.broadcast(dout.reshape(_kept_shape(shape, axes)) / count, shape),)

    return backend.mean(x.data, axes, keepdims), backward


@op
def reshape(x: T, shape: int | tuple[Any, ...]) -> Made:
    """The same elements under another shape, shared where possible. Keeps: nothing.

    Raises: ShapeError
    """
    before = x.shape
    try:
        out = x.data.reshape(shape)
    except ValueError:
        raise ShapeError(f"reshape: {before} does not have as many elements as {shape}") from None

    # forward was: out = x, reshaped; so: dx = dout, reshaped back
    def backward(dout):
        return (dout.reshape(before),)

    return out, backward


@op
def transpose(x: T, axes: int | tuple[Any, ...] | None = None) -> Made:
    """The axes in another order; reversed if none is given. Keeps: nothing.

    Raises: ShapeError unless each axis is named once
    """
    order = _axes(x, tuple(range(x.ndim))[::-1] if axes is None else axes, "transpose")
    if len(order) != x.ndim:
        raise ShapeError(f"transpose: name each axis of {x.shape} once, got {axes}")
    back = tuple(order.index(i) for i in range(x.ndim))

    # forward was: out axis i = x axis order[i]; so: dx axis order[i] = dout axis i
    def backward(dout):
        return (dout.transpose(back).copy(),)

    return x.data.transpose(order).copy(), backward


def _on_device(part: Any, like: Array) -> Any:
    """Places what is listed between brackets beside the array that it is taken from."""
    if not isinstance(part, list | Array):
        return part
    return backends.place_like(np.asarray(part, None if len(part) else np.intp), like)


@op
def index(x: T, at: Any) -> Made:
    """x[at], for all that NumPy takes between the brackets. Keeps: `at`.

    Raises: IndexError, as NumPy does
    """
    shape, backend = x.shape, x.backend
    at = tuple(_on_device(part, x.data) for part in (at if isinstance(at, tuple) else (at,)))
    if not any(part is Ellipsis for part in at):
        at = (*at, Ellipsis)  # or one element would come out as a number, not an array

    # forward was: out = x[at]; so: dx = 0, plus dout at each place as often as it was read
    def backward(dout):
        return (backend.add_at(shape, at, dout),)

    return x.data[at].copy(), backward


@op
def concatenate(*tensors: T, axis: int = -1) -> Made:
    """Put tensors side by side along one axis. Keeps: nothing.

    Raises: ShapeError, TypeError for mixed dtypes
    """
    if not tensors:
        raise ShapeError("concatenate: give at least one tensor")
    if not all(isinstance(x, Recorded) for x in tensors):
        raise TypeError("concatenate: give tensors, one after the other: concatenate(a, b)")
    expect_same_dtype("concatenate", **{f"tensor {i}": x for i, x in enumerate(tensors)})
    backend = tensors[0].backend
    shapes = [x.shape for x in tensors]
    (axis,) = _axes(tensors[0], axis, "concatenate")
    if len({(len(s), s[:axis] + s[axis + 1 :]) for s in shapes}) != 1:
        raise ShapeError(f"concatenate: shapes may differ along axis {axis} only, got {shapes}")
    needs = [x.requires_grad for x in tensors]

    # forward was: out = the tensors, one after the other; so: each gets its part of dout
    def backward(dout):
        parts = backend.split(dout, [s[axis] for s in shapes], axis)
        return tuple(part if n else None for part, n in zip(parts, needs, strict=True))

    return backend.concatenate([x.data for x in tensors], axis), backward
