"""What to say of an op that was called wrongly, or that does not keep its side of the contract.

Next: tinyft/errors.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinyft import backends
from tinyft.errors import DeviceError, ShapeError, TinyftError

if TYPE_CHECKING:
    from tinyft.tensor import Node


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


def wrong_result(op: str, made: Any) -> TinyftError:
    """For what an op's function returned."""
    return TinyftError(
        f"{op}: an op returns two things, its result as an array and the function backward(dout); "
        f"got {_kinds(made)}"
    )


def wrong_gradients(node: Node, gradients: Any) -> TinyftError:
    """For what an op's backward returned."""
    if not isinstance(gradients, tuple):
        return TinyftError(
            f"{node.op}: backward should return a tuple, with an array or None for each tensor "
            f"argument; got {_kinds(gradients)}"
        )
    if len(gradients) != len(node.inputs):
        return TinyftError(
            f"{node.op}: backward returned {len(gradients)} gradients "
            f"for {len(node.inputs)} tensor arguments"
        )
    for i, (gradient, shape) in enumerate(zip(gradients, node.shapes, strict=True)):
        if gradient is not None and not hasattr(gradient, "nbytes"):
            return TinyftError(
                f"{node.op}: backward should return arrays; for argument {i} it returned a "
                f"{_kinds(gradient)}" + ("; compute with x.data" if _is_tensor(gradient) else "")
            )
        if gradient is not None and gradient.shape != shape:
            break
    return ShapeError(
        f"{node.op}: backward returned a gradient of shape {gradient.shape} "
        f"for argument {i} of shape {shape}"
    )


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "requires_grad")


def _kinds(made: Any) -> str:
    """The type of a value; of a tuple, those of its items."""
    kind = type(made).__name__
    return f"({', '.join(map(_kinds, made))})" if isinstance(made, tuple) else kind
