"""The function whose gradient is checked, evaluated as often as needed without leaving a trace.

Next: tinyft/gradient_comparison.py
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy import ndarray as Array

from tinyft.gradient_report import GradcheckError
from tinyft.tensor import Node, Tensor, check_saved, no_grad


class CheckedFunction:
    """`fn` with its inputs, evaluated as often as needed without leaving a trace in them."""

    def __init__(self, fn: Callable, inputs: Any, names: Sequence[str] | None):
        inputs = [inputs] if isinstance(inputs, Tensor | Array) else list(inputs)
        self.fn = fn
        self.arguments = [_as_checked(x) for x in inputs]
        self.positions = [i for i, x in enumerate(self.arguments) if _is_checked(x)]
        self.checked: list[Tensor] = [self.arguments[i] for i in self.positions]
        self.name = getattr(fn, "__name__", type(fn).__name__)
        if not self.checked:
            raise GradcheckError(
                "gradcheck: no input requires a gradient; pass float64 arrays, or Tensors with "
                "requires_grad=True"
            )
        if names is None:
            names = _argument_names(fn, len(self.arguments))
        if len(names) != len(self.arguments):
            raise ValueError(
                f"gradcheck: names must be one for each of the {len(self.arguments)} inputs, "
                f"got {len(names)}"
            )
        self.labels = [self._label(n, names) for n in range(len(self.checked))]
        for tensor, label in zip(self.checked, self.labels, strict=True):
            _expect_float64(label, tensor.data)
        self.before = [x.data.copy() for x in self.checked]

    def _label(self, n: int, names: Sequence[str | None]) -> str:
        name = self.checked[n].name or names[self.positions[n]]
        return f"input {self.positions[n]}" + (f" ({name})" if name else "")

    def call(self) -> Tensor:
        result = self.fn(*self.arguments)
        out = result[0] if isinstance(result, tuple | list) else result
        if not isinstance(out, Tensor):
            raise GradcheckError(
                f"gradcheck: {self.name} returned {type(out).__name__}, not a Tensor: "
                "compute with tinyft's operators and ops, or make an op with tinyft.op"
            )
        return out

    def first_calls(self) -> Array:
        """The result, after the checks that make comparing it meaningful."""
        out = self.call()
        if self.name == "<lambda>" and out.node is not None:
            self.name = out.node.op
        if not out.requires_grad:
            raise GradcheckError(
                f"gradcheck: the result of {self.name} has no history: it was computed under "
                "no_grad, with detach, or from .data instead of the Tensors"
            )
        _expect_float64(f"the result of {self.name}", out.data)
        self.check_unchanged(self.name)
        again = self.call().data
        if again.shape != out.shape or not np.array_equal(out.data, again, equal_nan=True):
            raise GradcheckError(
                f"gradcheck: {self.name} is not deterministic: two calls with the same inputs gave "
                "different results. Give dropout a fixed seed and stream, and let the function "
                "start from the same state on each call (running statistics)"
            )
        if not np.isfinite(out.data).all():
            raise GradcheckError(
                f"gradcheck: the result of {self.name} is not finite, so it has no differences; "
                "choose other inputs"
            )
        return out.data.copy()

    def check_unchanged(self, culprit: str) -> None:
        for tensor, before, label in zip(self.checked, self.before, self.labels, strict=True):
            if not np.array_equal(tensor.data, before, equal_nan=True):
                raise GradcheckError(f"gradcheck: {culprit} writes into {label}")

    def gradients(self, upstream: Array) -> list[Array]:
        """What backward gives each checked input for this upstream gradient; zeros for None."""
        sent = upstream.copy()
        with check_saved():
            out = self.call()
        kept = {x: x.grad for x in {*self.checked, *_leaves(out.node)}}
        try:
            for x in kept:
                x.grad = None
            out.backward(sent)
            found = [x.grad for x in self.checked]
        finally:
            for x, gradient in kept.items():
                x.grad = gradient
        if not np.array_equal(sent, upstream):
            raise GradcheckError(
                f"gradcheck: backward of {self.name} writes into the gradient that it was given; "
                "make a new array instead"
            )
        self.check_unchanged(f"backward of {self.name}")
        return [
            self._checked_gradient(label, x, gradient)
            for label, x, gradient in zip(self.labels, self.checked, found, strict=True)
        ]

    def _checked_gradient(self, label: str, x: Tensor, gradient: Array | None) -> Array:
        if gradient is None:
            return np.zeros_like(x.data)
        if gradient.shape != x.shape or gradient.dtype != x.dtype:
            raise GradcheckError(
                f"gradcheck: the gradient of {label} of {self.name} is {gradient.dtype} "
                f"{gradient.shape}, expected {x.dtype} {x.shape}"
            )
        if not np.isfinite(gradient).all():
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(gradient))[0])
            raise GradcheckError(
                f"gradcheck: the gradient of {label} of {self.name} is {gradient[place]} at "
                f"element {place}, where the result is finite\n"
                "  likely cause: backward divides by 0, or takes a logarithm or root of it; if the "
                "function has no derivative there, choose other inputs"
            )
        if np.shares_memory(gradient, x.data):
            raise GradcheckError(
                f"gradcheck: the gradient of {label} of {self.name} is a view of an input's own "
                "memory: later gradients would be added into it; return a copy"
            )
        return gradient

    def at(self, n: int, step: Array) -> Array:
        """The result with `step` added to checked input n, which is as before afterwards."""
        x = self.checked[n]
        original = x.data
        try:
            x.data = original + step
            with no_grad():
                return self.call().data.copy()
        finally:
            x.data = original


def _leaves(node: Node) -> set[Tensor]:
    """All leaves that a result was made from: its inputs, and parameters of a module."""
    leaves, nodes, seen = set(), [node], set()
    while nodes:
        for x in nodes.pop().inputs:
            if isinstance(x, Tensor):
                leaves.add(x)
            elif x is not None and x not in seen:
                seen.add(x)
                nodes.append(x)
    return leaves


def _argument_names(fn: Callable, count: int) -> list[str | None]:
    """The names of fn's first `count` arguments, None where it does not tell."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return [None] * count
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [*plain[:count], *[None] * (count - len(plain))]


def _as_checked(value: Any) -> Any:
    """A float array becomes a Tensor that requires a gradient; all else stays."""
    if isinstance(value, Array) and value.dtype.kind == "f":
        return Tensor(value, requires_grad=True)
    return value


def _is_checked(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _expect_float64(label: str, array: Array) -> None:
    if array.dtype != np.float64:
        raise TypeError(
            f"gradcheck: {label} is {array.dtype}, but differences need float64: in {array.dtype} "
            "the rounding of the function is larger than the change that is measured. Convert the "
            "inputs with .astype('float64'); compare a float32 kernel with its float64 result "
            "instead (ft.testing)"
        )
