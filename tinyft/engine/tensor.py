"""A Tensor: an array that remembers which op made it, so that `backward` can walk that memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, overload

import numpy as np
from numpy import ndarray as Array

from tinyft import backends
from tinyft.display import Displayed
from tinyft.engine import primitives, tape
from tinyft.engine.primitives import (
    add,
    div,
    index,
    matmul,
    mean,
    move,
    mul,
    neg,
    power,
    reshape,
    sub,
    sum,
    transpose,
)  # fmt: skip
from tinyft.engine.tape import Backward, Made, Node, P, Recorded, run_backward
from tinyft.errors import ShapeError, TinyftError

_SMALL = 100  # numbers: the values of a larger one, even shortened by NumPy, would fill a screen


class Tensor(Recorded, Displayed):
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
    __array_ufunc__: Any  # both below, at what only arrays can do
    __array_function__: Any

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
        """A small tensor's values; of a large one the facts."""
        if self.size > _SMALL:
            return f"<{facts(self)}>"
        made_by = f", made by {self.node.op}" if self.node else ""
        return f"Tensor({self.data}{made_by})"

    def __str__(self) -> str:
        """The facts; of a small tensor its values too."""
        if self.size > _SMALL:
            return facts(self)
        values = str(self.data)
        return facts(self) + ("\n" if "\n" in values else ": ") + values

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__()} - {*" ".join(_INSTEAD).split()})

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

    def __pow__(self, exponent: float) -> Tensor:
        return power(self, exponent)

    def __getitem__(self, at: Any) -> Tensor:
        return index(self, at)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self.data)))

    __contains__ = None  # or `3 in x` would compare Tensors, and be False

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        """The sum over an axis, several, or all."""
        return sum(self, axis, keepdims)

    def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        """The mean over an axis, several, or all."""
        return mean(self, axis, keepdims)

    def reshape(self, *shape: int | tuple[int, ...]) -> Tensor:
        """The same elements under another shape: x.reshape(2, -1) or x.reshape((2, -1))."""
        return reshape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: int | tuple[int, ...]) -> Tensor:
        """The axes in another order: x.transpose(1, 0), x.transpose((1, 0)); reversed if none."""
        return transpose(self, axes[0] if len(axes) == 1 else axes or None)

    @property
    def T(self) -> Tensor:
        return transpose(self)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise _no_array("NumPy")


class _Op(Protocol):
    """`tape.op` as an editor should see it: the function's arguments, and Tensors as results."""

    @overload
    def __call__(self, function: Callable[P, Made], /) -> Callable[P, Tensor]: ...
    @overload
    def __call__(
        self, function: Callable[P, tuple[tuple[Array, ...], Backward]], /
    ) -> Callable[P, tuple[Tensor, ...]]: ...


op: _Op = tape.op  # type: ignore[assignment]  # tape.py does not know Tensor


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
    return Tensor.wrap(backends.place_like(array, like.data))


# ------------------------------------------------------------------------- what a Tensor says


def facts(tensor: Tensor) -> str:
    """One line: shape, dtype, the op and the layer that made it, its range, its gradient's norm.

    Tensor (16, 32, 32, 16) float32; made by conv2d in layer1.0.conv1; -3.1 to 2.9, mean 0.012
    """
    words = [f"Tensor {tensor.shape} {tensor.dtype}"]
    if tensor.name:
        words.append(f"named {tensor.name}")
    if tensor.node:
        layer = f" in {tensor.node.layer}" if tensor.node.layer else ""
        words.append(f"made by {tensor.node.op}{layer}")
    elif tensor.requires_grad:
        words.append("a leaf that requires a gradient")
    words += _range(backends.host(tensor.data))
    if tensor.grad is not None:
        words.append(f"gradient of norm {norm(tensor.grad):.4g}")
    return "; ".join(words)


def norm(array: np.ndarray) -> float:
    """The Euclidean norm, summed in float64."""
    return float(np.sqrt(np.square(backends.host(array), dtype=np.float64).sum()))


def _range(values: np.ndarray) -> list[str]:
    """Of the finite numbers, and how many are not: one NaN would hide the others."""
    if values.dtype.kind not in "iuf" or values.size < 2:
        return []
    finite = values[np.isfinite(values)]
    words = []
    if finite.size:
        mean = finite.mean(dtype=np.float64)
        words.append(f"{finite.min():.4g} to {finite.max():.4g}, mean {mean:.4g}")
    if finite.size < values.size:
        words.append(f"{values.size - finite.size} of {values.size} are NaN or infinite")
    return words


# ------------------------------------------------------------------- what only arrays can do

_GRADIENT = "for a gradient use + - * / ** @, x[...] and ft.ops, or write an op with @ft.op"


def _no_array(asked: str) -> TypeError:
    """For a function of NumPy that was given a Tensor."""
    name = asked.removeprefix("np.").split(".")[0]
    gradient = f"for a gradient use ft.ops.{name}" if hasattr(primitives, name) else _GRADIENT
    return TypeError(
        f"{asked} takes no Tensor, since its result would have no gradient. Give it the Tensor's "
        f"array, x.data; {gradient}"
    )


class _ForNumpyAlone:
    """A method for NumPy, which looks for it on the class. Other arrays, such as CuPy's, ask the
    object: None lets the Tensor's own operators decide.
    """

    def __init__(self, method: Callable[..., Any]):
        self.method = method

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any] | None:
        return self.method if instance is None else None


class _Elsewhere:
    """A method that a Tensor does not have: asking for it says what to write instead. Not a
    `__getattr__`, which would make every attribute of a Tensor slower.
    """

    def __init__(self, name: str, instead: str):
        self.name, self.instead = name, instead

    def __get__(self, instance: Any, owner: type) -> Any:
        raise AttributeError(f"a Tensor has no {self.name}; {self.instead}")


# What those who know NumPy or PyTorch ask a Tensor for, and what to write instead.
_INSTEAD = {
    "relu": "write ft.ops.relu(x)",
    "exp": "write ft.ops.exp(x)",
    "log": "write ft.ops.log(x)",
    "sqrt": "write ft.ops.sqrt(x)",
    "tanh": "write ft.ops.tanh(x)",
    "pow": "write x ** exponent",
    "permute": "write x.transpose(axes)",
    "view flatten squeeze unsqueeze": "write x.reshape(shape)",
    "numpy": "its array is x.data",
    "cpu": 'write x.to("cpu")',
    "cuda": 'write x.to("gpu")',
    "clone copy": "write ft.Tensor(x.data), which copies the array, without a history",
    "astype float double": 'write ft.Tensor(x.data.astype("float64")), without a history',
    "requires_grad_": "write x.requires_grad = True",
    "zero_": "write x.grad = None, if it is the gradient that should go",
    "abs argmax max min std var tolist": f"its array, x.data, or NumPy may have; {_GRADIENT}",
}

for _names, _instead in _INSTEAD.items():
    for _name in _names.split():
        setattr(Tensor, _name, _Elsewhere(_name, _instead))


def _array_ufunc(tensor: Tensor, ufunc: np.ufunc, method: str, *inputs: Any, **_: Any) -> Tensor:
    """array * tensor, which NumPy asks as np.multiply(array, tensor), is ours; no other is."""
    operators = {"add": add, "subtract": sub, "multiply": mul, "divide": div, "matmul": matmul}
    if method != "__call__" or ufunc.__name__ not in operators:
        called = "" if method == "__call__" else f".{method}"
        raise _no_array(f"np.{ufunc.__name__}{called}")
    return operators[ufunc.__name__](*(as_tensor(x, tensor) for x in inputs))


def _array_function(tensor: Tensor, function: Callable[..., Any], *_: Any) -> Any:
    """np.sum, np.concatenate and the like, which are given a Tensor."""
    raise _no_array(f"np.{function.__name__}")


Tensor.__array_ufunc__ = _ForNumpyAlone(_array_ufunc)
Tensor.__array_function__ = _ForNumpyAlone(_array_function)
