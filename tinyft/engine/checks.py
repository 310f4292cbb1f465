"""Checks of what an op is given and gives back. Messages say op, argument, what was expected and
what came.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
from numpy import ndarray as Array

from tinyft import backends
from tinyft.errors import DeviceError, ShapeError, TinyftError


def data_of(tensor: Any | None) -> Array | None:
    """The array of a Tensor that may be absent."""
    return None if tensor is None else tensor.data


def expect_shape(
    op: str, argument: str, came: tuple[int, ...] | None, shape: tuple, hint: str = ""
) -> None:
    """Raise ShapeError unless the shape `came` is that shape; letters stand for any size, None for
    an absent argument.
    """
    if came is None:
        return
    fits = len(came) == len(shape)
    for n, expected in zip(came, shape, strict=False):
        fits = fits and (n == expected or isinstance(expected, str))
    if not fits:
        wanted = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
        raise ShapeError(f"{op}: {argument} should be {wanted} but is {came}{hint}")


def expect_same_dtype(op: str, **arguments: Any) -> None:
    """Raise TypeError unless all tensors have one dtype: a mixture would silently compute in the
    wider one.
    """
    if len({x.dtype for x in arguments.values() if x is not None}) > 1:
        dtypes = {name: x.dtype for name, x in arguments.items() if x is not None}
        listed = ", ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"{op}: all tensors must have the same dtype, but {listed}")


def expect_floats(op: str, **arguments: Any) -> None:
    """Raise TypeError for tensors of integers or bools, in which means and products do not fit."""
    for name, x in arguments.items():
        if x.dtype.kind != "f":
            raise TypeError(f"{op}: {name} is {x.dtype}; make it a float tensor first")


def expect_whole(op: str, **window: int) -> None:
    """Raise TypeError unless kernel, stride, padding, as far as given, are whole numbers."""
    if not all([isinstance(n, int | np.integer) for n in window.values()]):
        got = ", ".join(f"{name} {value!r}" for name, value in window.items())
        raise TypeError(
            f"{op}: {' and '.join(window)} must be whole numbers, the same for rows and columns; "
            f"got {got}"
        )


def expect_window(op: str, size: int, kernel: int, stride: int, padding: int, axis: str) -> None:
    """Raise ShapeError unless at least one window fits."""
    if stride < 1 or padding < 0 or kernel < 1:
        raise ShapeError(
            f"{op}: kernel and stride must be at least 1 and padding at least 0, "
            f"got kernel {kernel}, stride {stride}, padding {padding}"
        )
    if size + 2 * padding < kernel:
        raise ShapeError(
            f"{op}: a kernel of {kernel} {axis} does not fit into {size} {axis} "
            f"with padding {padding}"
        )


# ------------------------------------------------------------- what the decorator @op asks for


def expect_one_device(op: str, arguments: dict[str, Any]) -> None:
    """Raises: DeviceError that says which argument is where, unless all are in one place;
    TypeError if there are some and none is a Tensor
    """
    places, in_lists = {}, False
    for name, value in arguments.items():
        several: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)  # *tensors
        for i, x in enumerate(several):
            in_lists = in_lists or (isinstance(x, list) and any(map(_is_tensor, x)))
            if _is_tensor(x):
                places[f"{name}[{i}]" if value is several else name] = backends.device_of(x.data)
    if in_lists:
        raise TypeError(f"{op}: give tensors, not a list, one after the other: {op}(a, b)")
    if arguments and not places:
        kinds = ", ".join(f"{name} {_kinds(value)}" for name, value in arguments.items())
        raise TypeError(f"{op}: expected a Tensor, as ft.Tensor(array) makes one; got {kinds}")
    if len(set(places.values())) > 1:
        listed = ", ".join(f"{name} is on {place}" for name, place in places.items())
        raise DeviceError(f"{op}: {listed}; move one of them with .to()")


def expect_result(op: str, made: Any) -> None:
    """Raise TinyftError unless an op's function made (array, backward), or ((array, more arrays),
    backward).
    """
    fits = isinstance(made, tuple) and len(made) == 2 and callable(made[1])
    results = made[0] if fits and isinstance(made[0], tuple) else made[:1] if fits else ()
    if not fits or not all([hasattr(x, "dtype") and not _is_tensor(x) for x in results]):
        raise TinyftError(
            f"{op}: an op returns two things, its result as an array and the function "
            f"backward(dout); got {_kinds(made)}"
        )


def expect_gradients(op: str, shapes: list[tuple[int, ...]], gradients: Any) -> None:
    """Raise TinyftError unless an op's backward returned a tuple with None or an array of the
    input's shape for each input.
    """
    if not isinstance(gradients, tuple):
        raise TinyftError(
            f"{op}: backward should return a tuple, with an array or None for each tensor "
            f"argument; got {_kinds(gradients)}"
        )
    if len(gradients) != len(shapes):
        raise TinyftError(
            f"{op}: backward returned {len(gradients)} gradients for {len(shapes)} tensor arguments"
        )
    for i, (gradient, shape) in enumerate(zip(gradients, shapes, strict=True)):
        if gradient is None:
            continue
        if not hasattr(gradient, "nbytes"):
            raise TinyftError(
                f"{op}: backward should return arrays; for argument {i} it returned a "
                f"{_kinds(gradient)}" + ("; compute with x.data" if _is_tensor(gradient) else "")
            )
        if gradient.shape != shape:
            raise ShapeError(
                f"{op}: backward returned a gradient of shape {gradient.shape} "
                f"for argument {i} of shape {shape}"
            )


def _is_tensor(value: Any) -> TypeGuard[Any]:
    return hasattr(value, "requires_grad")


def _kinds(made: Any) -> str:
    """The type of a value; of a tuple, those of its items."""
    kind = type(made).__name__
    return f"({', '.join(map(_kinds, made))})" if isinstance(made, tuple) else kind
