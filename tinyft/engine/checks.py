"""What several ops do with their arguments, above all checks. Every message says op, argument, what
was expected and what came.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from tinyft.engine.tape import Recorded
from tinyft.errors import ShapeError


def data_of(tensor: Recorded | None) -> Array | None:
    """The array of an argument that may be absent."""
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


def expect_same_dtype(op: str, **arguments: Recorded | Array | None) -> None:
    """Raise TypeError unless all tensors have one dtype: a mixture would silently compute in the
    wider one.
    """
    if len({x.dtype for x in arguments.values() if x is not None}) > 1:
        dtypes = {name: x.dtype for name, x in arguments.items() if x is not None}
        found = ", ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"{op}: all tensors must have the same dtype, but {found}")


def expect_floats(op: str, **arguments: Recorded) -> None:
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
