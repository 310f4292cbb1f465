"""A Tensor: an array that remembers which op made it, so that `backward` can walk that memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray as Array

from tinyft import backends
from tinyft.display import Displayed
from tinyft.engine import messages, printing
from tinyft.engine.primitives import add, div, matmul, move, mul, neg, sub
from tinyft.engine.tape import Node, Recorded, run_backward
from tinyft.errors import ShapeError, TinyftError


class Tensor(Recorded, Displayed, messages.NotMethods):
    """An array, its gradient, and how it was made.

    `data` array of numbers; `grad` array of the same shape or None; `requires_grad`; `name`, for
    messages; `node`, the Node that made it, or None for a leaf. Lists and Python numbers become
    float32, arrays keep their dtype. Raises: TypeError for what is no number, and if anything but
    floats should require a gradient

    Example:
        >>> x = Tensor([3.0], requires_grad=True)
        >>> (x * x).backward()
        >>> x.grad
        array([6.], dtype=float32)
    """

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = False, name: str | None = None):
        if isinstance(data, Tensor):
            raise TypeError("this is a Tensor already; x.detach() has the same array, no history")
        is_array = hasattr(data, "dtype")
        is_number = not is_array or (data.shape == () and backends.device_of(data) == "cpu")
        array = np.array(data) if is_number else data.copy()
        if not is_array and array.dtype.kind in "iuf":
            array = array.astype(np.float32)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"a tensor holds numbers; got {array.dtype} from {type(data).__name__}")
        if requires_grad and array.dtype.kind != "f":
            raise TypeError(f"only float tensors have gradients; got {array.dtype}")
        self.data = array
        self.grad: Array | None = None
        self.requires_grad = requires_grad
        self.name = name
        self.node: Node | None = None

    def item(self) -> float:
        """The only element, as a Python number."""
        return self.data.item()

    def detach(self) -> Tensor:
        """The same array without its history."""
        return Tensor.wrap(self.data)

    def to(self, device: str) -> Tensor:
        """The same values on another device: "cpu", "gpu", "gpu:1".

        Raises: DeviceError if there is no such device
        """
        return move(self, device)

    def backward(self, gradient: Array | Tensor | None = None) -> None:
        """Add d self / d leaf to the `grad` of every leaf that self was made from; see
        `run_backward`.

        Raises: TypeError for a `gradient` that is no array; ShapeError if it has another shape, or
        is missing where self has not one element; TinyftError if nothing requires a gradient, or
        the graph was used before
        """
        if gradient is None:
            if self.size != 1:
                raise ShapeError(
                    f"backward: a tensor of shape {self.shape} has no single gradient to "
                    "start from; reduce it to one number first, or pass the gradient"
                )
            gradient = self.backend.zeros_like(self.data)
            gradient += 1
        if isinstance(gradient, Tensor):
            gradient = gradient.data
        if not hasattr(gradient, "dtype"):
            raise TypeError(f"backward: expected an array of shape {self.shape}; got {gradient!r}")
        if not self.requires_grad:
            raise TinyftError(
                "backward: nothing that this tensor was made from requires a gradient (gradients "
                "are arrays without history: second derivatives are not supported)"
            )
        if gradient.shape != self.shape:
            raise ShapeError(f"backward: gradient is {gradient.shape}, the tensor {self.shape}")
        run_backward(self, gradient.astype(self.dtype, copy=False))

    def __repr__(self) -> str:
        return printing.as_repr(self)

    def __str__(self) -> str:
        return printing.as_text(self)

    def __add__(self, other: Any) -> Tensor:
        return add(self, as_tensor(other, self))

    def __radd__(self, other: Any) -> Tensor:
        return add(as_tensor(other, self), self)

    def __sub__(self, other: Any) -> Tensor:
        return sub(self, as_tensor(other, self))

    def __rsub__(self, other: Any) -> Tensor:
        return sub(as_tensor(other, self), self)

    def __mul__(self, other: Any) -> Tensor:
        return mul(self, as_tensor(other, self))

    def __rmul__(self, other: Any) -> Tensor:
        return mul(as_tensor(other, self), self)

    def __truediv__(self, other: Any) -> Tensor:
        return div(self, as_tensor(other, self))

    def __rtruediv__(self, other: Any) -> Tensor:
        return div(as_tensor(other, self), self)

    def __matmul__(self, other: Any) -> Tensor:
        return matmul(self, as_tensor(other, self))

    def __rmatmul__(self, other: Any) -> Tensor:
        return matmul(as_tensor(other, self), self)

    def __neg__(self) -> Tensor:
        return neg(self)

    @messages.ForNumpyAlone
    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **_: Any) -> Tensor:
        """array * tensor, which NumPy asks as np.multiply(array, tensor), is ours; no other is."""
        ours = _NUMPY_OPERATORS.get(ufunc.__name__) if method == "__call__" else None
        if ours is None:
            called = "" if method == "__call__" else f".{method}"
            raise messages.no_array(f"np.{ufunc.__name__}{called}")
        return ours(*(as_tensor(x, self) for x in inputs))


def as_tensor(value: Any, like: Tensor) -> Tensor:
    """A Tensor as it is; a number, list or array as a constant on the device of `like`. Numbers,
    lists and integers take its dtype, so that they cannot change it.
    """
    if isinstance(value, Tensor):
        return value
    dtype = like.dtype
    is_array = hasattr(value, "dtype")
    array = value if is_array else np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"a tensor cannot take {value!r}, which is no number")
    if array.dtype.kind == "f" and dtype.kind != "f":
        raise TypeError(f"a tensor of {dtype} cannot take {value!r}; make it a float tensor first")
    if not is_array or array.ndim == 0 or array.dtype.kind != "f":
        given = backends.host(array)
        array = np.asarray(given.astype(dtype))
        if dtype.kind != "f" and not np.array_equal(array, given):
            raise TypeError(f"a tensor of {dtype} cannot take {value!r}: it has no such numbers")
    return Tensor.wrap(backends.beside(array, like.data))


_NUMPY_OPERATORS = {"add": add, "subtract": sub, "multiply": mul, "divide": div, "matmul": matmul}
