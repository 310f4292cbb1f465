"""What to say of an op that was called wrongly, or that does not keep its side of the contract, and
of a Tensor that is taken for an array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinyft import backends
from tinyft.errors import DeviceError, ShapeError, TinyftError


def expect_one_device(op: str, arguments: dict[str, Any]) -> None:
    """Raises: DeviceError that says which argument is where, unless all are in one place;
    TypeError if there are some and none is a Tensor
    """
    places, in_lists = {}, False
    for name, value in arguments.items():
        several = value if isinstance(value, tuple) else (value,)  # *tensors
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
        found = ", ".join(f"{name} is on {place}" for name, place in places.items())
        raise DeviceError(f"{op}: {found}; move one of them with .to()")


def no_tensor(op: str) -> TypeError:
    """For an op that was called without a Tensor: of what kind should its result be?"""
    return TypeError(f"{op}: an op needs a Tensor among its arguments, and was given none")


def wrong_result(op: str, made: Any) -> TinyftError:
    """For what an op's function returned."""
    return TinyftError(
        f"{op}: an op returns two things, its result as an array and the function backward(dout); "
        f"got {_kinds(made)}"
    )


def wrong_gradients(op: str, shapes: list[tuple[int, ...]], gradients: Any) -> TinyftError:
    """For what an op's backward returned."""
    if not isinstance(gradients, tuple):
        return TinyftError(
            f"{op}: backward should return a tuple, with an array or None for each tensor "
            f"argument; got {_kinds(gradients)}"
        )
    if len(gradients) != len(shapes):
        return TinyftError(
            f"{op}: backward returned {len(gradients)} gradients for {len(shapes)} tensor arguments"
        )
    for i, (gradient, shape) in enumerate(zip(gradients, shapes, strict=True)):
        if gradient is not None and not hasattr(gradient, "nbytes"):
            return TinyftError(
                f"{op}: backward should return arrays; for argument {i} it returned a "
                f"{_kinds(gradient)}" + ("; compute with x.data" if _is_tensor(gradient) else "")
            )
        if gradient is not None and gradient.shape != shape:
            break
    return ShapeError(
        f"{op}: backward returned a gradient of shape {gradient.shape} "
        f"for argument {i} of shape {shape}"
    )


# --------------------------------------------------------------- what only arrays can do

GRADIENT = "for a gradient use + - * / @ and ft.ops, or write an op with @ft.op"


def no_array(asked: str) -> TypeError:
    """For a function of NumPy that was given a Tensor."""
    return TypeError(
        f"{asked} takes no Tensor, since its result would have no gradient. Give it the Tensor's "
        f"array, x.data; {GRADIENT}"
    )


class ForNumpyAlone:
    """A method for NumPy, which looks for it on the class. Other arrays, such as CuPy's, ask the
    object: None lets the Tensor's own operators decide.
    """

    def __init__(self, method: Callable):
        self.method = method

    def __get__(self, instance: Any, owner: type) -> Callable | None:
        return self.method if instance is None else None


class Elsewhere:
    """A method that a Tensor does not have: asking for it says what to write instead. Not a
    `__getattr__`, which would make every attribute of a Tensor slower.
    """

    def __init__(self, name: str, instead: str):
        self.name, self.instead = name, instead

    def __get__(self, instance: Any, owner: type) -> Any:
        raise AttributeError(f"a Tensor has no {self.name}; {self.instead}")


# What those who know NumPy or PyTorch ask a Tensor for, and what to write instead.
INSTEAD = {
    "sum": "write ft.ops.sum(x)",
    "mean": "write ft.ops.mean(x)",
    "relu": "write ft.ops.relu(x)",
    "reshape view flatten": "write ft.ops.reshape(x, shape)",
    "numpy": "its array is x.data",
    "cpu": 'write x.to("cpu")',
    "cuda": 'write x.to("gpu")',
    "clone copy": "write ft.Tensor(x.data), which copies the array, without a history",
    "astype float double": 'write ft.Tensor(x.data.astype("float64")), without a history',
    "requires_grad_": "write x.requires_grad = True",
    "zero_": "write x.grad = None, if it is the gradient that should go",
    "abs argmax exp log max min pow sqrt std var T transpose permute squeeze unsqueeze tolist": (
        f"its array, x.data, or NumPy may have; {GRADIENT}"
    ),
}


class NotMethods:
    """Whose subclass answers what only arrays can do with what to write instead."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        for names, instead in INSTEAD.items():
            for name in names.split():
                setattr(cls, name, Elsewhere(name, instead))

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise no_array("NumPy")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__()} - {*" ".join(INSTEAD).split()})


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "requires_grad")


def _kinds(made: Any) -> str:
    """The type of a value; of a tuple, those of its items."""
    kind = type(made).__name__
    return f"({', '.join(map(_kinds, made))})" if isinstance(made, tuple) else kind
