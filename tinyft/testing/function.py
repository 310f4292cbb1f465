"""The function whose gradient is checked, evaluated as often as needed without leaving a trace."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence, Set
from types import SimpleNamespace
from typing import Any, TypeGuard

import numpy as np
from numpy import ndarray as Array

from tinyft import backends
from tinyft.engine.tape import Node, check_saved, no_grad, op
from tinyft.engine.tensor import Tensor
from tinyft.errors import TinyftError

__tracebackhide__ = True  # pytest shows the test that failed, not the lines that found it


class GradcheckError(TinyftError, AssertionError):
    """A gradient that disagrees with finite differences, or a function that cannot be checked."""


def as_op(
    forward: Callable[..., Any], backward: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Make an op of functions that know nothing of Tensors: a pair, or a class with `forward(ctx,
    ...)` and `backward(ctx, dout)` as `torch.autograd.Function` has them.

    Of a pair, `forward(*arrays)` returns an array, or (array, cache); `backward(dout, cache)`, or
    without one `backward(dout, *arrays)`, returns a gradient, or one or None for each argument.
    """
    if backward is None:
        forward, backward = _pair_of(forward)

    def pair(*given: Any) -> tuple[Array, Callable[..., Any]]:
        arrays = [x.data if isinstance(x, Tensor) else x for x in given]
        made = forward(*arrays)
        out, *cache = made if isinstance(made, tuple) else (made,)

        def run(dout: Array) -> tuple[Array | None, ...]:
            made = backward(dout, *(cache or arrays))
            gradients = made if isinstance(made, tuple | list) else (made,)
            if len(gradients) == len(given):  # also None for what is no Tensor
                each = zip(given, gradients, strict=True)
                gradients = [g for x, g in each if isinstance(x, Tensor)]
            return tuple(None if g is None else np.asarray(g) for g in gradients)

        return np.asarray(out), run

    functools.update_wrapper(pair, forward)
    try:
        inspect.signature(forward)
    except ValueError:  # of NumPy's own functions, before they told their arguments
        del pair.__wrapped__  # type: ignore[attr-defined]
    return op(pair)


def _pair_of(function: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The pair that a class with `forward(ctx, ...)` and `backward(ctx, dout)` stands for."""

    def forward(*arrays: Any) -> tuple[Any, Any]:
        context = SimpleNamespace(needs_input_grad=(True,) * len(arrays), saved_tensors=())
        context.save_for_backward = lambda *kept: setattr(context, "saved_tensors", kept)
        return function.forward(context, *arrays), context

    def backward(dout: Array, context: Any) -> Any:
        return function.backward(context, dout)

    forward.__name__ = function.__name__
    names = list(inspect.signature(function.forward).parameters.values())[1:]
    forward.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]  # see PEP 362
    return forward, backward


class CheckedFunction:
    """`fn` with its inputs, evaluated as often as needed without leaving a trace in them, nor in
    the modules that it uses: each call starts from the state that they have now.

    `checked` holds the inputs that require a gradient, and after `first_calls` also the parameters
    that the results depend on: those of `fn` if that is a module, and those that it reaches.
    """

    def __init__(self, fn: Callable[..., Any], inputs: Any, names: Sequence[str | None] | None):
        inputs = [inputs] if isinstance(inputs, Tensor | Array) else list(inputs)
        self.fn = fn
        self.arguments = [_as_checked(x) for x in inputs]
        self.name = getattr(fn, "__name__", type(fn).__name__)
        if names is None:
            names = argument_names(fn, len(self.arguments))
        if len(names) != len(self.arguments):
            raise ValueError(
                f"gradcheck: names must be one for each of the {len(self.arguments)} inputs, "
                f"got {len(names)}"
            )
        self.checked: list[Tensor] = []
        self.labels: list[str] = []
        self.before: list[Array] = []
        for position, x in enumerate(self.arguments):
            if _is_checked(x):
                name = x.name or names[position]
                self._add(x, f"input {position}" + (f" ({name})" if name else ""))
        self.reached = [*_reached(fn), *zip(names, self.arguments, strict=True)]
        used = [value for _, value in self.reached if _is_module(value)]
        self.modules = [part for module in used for _, part in module.named_modules()]
        owner = getattr(fn, "__self__", fn)
        for name, parameter in owner.named_parameters() if _is_module(owner) else ():
            self._add(parameter, f"parameter {name}")

    def _add(self, x: Tensor, label: str) -> None:
        """From now on x is checked, unless it is already, or requires no gradient."""
        if x.requires_grad and x not in self.checked:
            _expect_float64(label, x.data)
            self.checked.append(x)
            self.labels.append(label)
            self.before.append(backends.host(x.data).copy())

    def call(self) -> Sequence[Any]:
        """All that the function returns, a Tensor at least."""
        with _as_they_are(self.modules):
            result = self.fn(*self.arguments)
        results = result if isinstance(result, tuple | list) else [result]
        if not any(isinstance(out, Tensor) for out in results):
            raise GradcheckError(
                f"gradcheck: {self.name} returned {type(result).__name__}, not a Tensor: "
                "compute with tinyft's operators and ops, or make an op with tinyft.op"
            )
        return results

    def result_name(self, r: int) -> str:
        """Name the r-th checked result for messages."""
        return f"result {self.differentiable[r]} of {self.name}" if self.several else self.name

    def first_calls(self) -> list[Array]:
        """The results that have a gradient, after the checks that make comparing them meaningful.

        Raises: GradcheckError, TypeError
        """
        results = self.call()
        self.differentiable = [i for i, out in enumerate(results) if _is_checked(out)]
        self.several = self.differentiable != [0]
        made = [results[i] for i in self.differentiable]
        if self.name == "<lambda>" and made and made[0].node is not None:
            self.name = made[0].node.op
        if not self.differentiable:
            self._expect_checked()
            raise GradcheckError(
                f"gradcheck: the result of {self.name} has no history: it was computed under "
                "no_grad, with detach, or from .data instead of the Tensors"
            )
        for r, out in enumerate(made):
            _expect_float64(f"the result of {self.result_name(r)}", out.data)
        self.check_unchanged(self.name)
        bases = [backends.host(out.data).copy() for out in made]
        again = self.call()
        for r, base in enumerate(bases):
            self._expect_same(r, base, backends.host(again[self.differentiable[r]].data))
        # a leaf that each call makes anew is none that could be moved
        lasting = _leaves(made).keys() & _leaves([again[i] for i in self.differentiable]).keys()
        self._add_reached(_leaves(made), lasting, bases)
        self._expect_checked()
        return bases

    def _expect_checked(self) -> None:
        if not self.checked:
            raise GradcheckError(
                "gradcheck: no input requires a gradient; pass float64 arrays, or Tensors with "
                "requires_grad=True"
            )

    def _expect_same(self, r: int, base: Array, again: Array) -> None:
        """Raises: GradcheckError if a second call differs, or a result is not finite"""
        if again.shape != base.shape or not np.array_equal(base, again, equal_nan=True):
            raise GradcheckError(
                f"gradcheck: {self.name} is not deterministic: two calls with the same inputs gave "
                "different results. Give dropout a fixed seed and stream, and let the function "
                "start from the same state on each call (running statistics)"
            )
        if not np.isfinite(base).all():
            raise GradcheckError(
                f"gradcheck: the result of {self.result_name(r)} is not finite, so it has no "
                "differences; choose other inputs"
            )

    def _add_reached(self, leaves: dict[Tensor, str], lasting: Set[Tensor], bases: list) -> None:
        """Check the leaves on the tape too, and what only an op's closure knows if it matters."""
        named: dict[Tensor, str | None] = {}
        for name, value in self.reached:
            if _is_checked(value):
                named.setdefault(value, name)
            for dotted, x in value.named_parameters() if _is_module(value) else ():
                named.setdefault(x, f"{name}.{dotted}" if name else dotted)
        for x, place in leaves.items():
            if x in lasting:
                self._add(x, f"parameter {x.name or named.get(x) or place}")
        for x, name in named.items():
            if x.requires_grad and x not in self.checked and self._matters(x, bases):
                self._add(x, f"parameter {x.name or name}")

    def _matters(self, x: Tensor, bases: list[Array]) -> bool:
        """True if a result moves with x, of which the tape does not know."""
        step = 1e-3 * np.random.default_rng(0).standard_normal(x.shape)
        moved = self._with(x, backends.host(x.data) + step.astype(x.dtype))
        return not all(map(np.array_equal, moved, bases))

    def check_unchanged(self, culprit: str) -> None:
        for tensor, before, label in zip(self.checked, self.before, self.labels, strict=True):
            if not np.array_equal(backends.host(tensor.data), before, equal_nan=True):
                raise GradcheckError(f"gradcheck: {culprit} writes into {label}")

    def gradients(self, r: int, upstream: Array) -> list[Array]:
        """The vector-Jacobian product that backward gives each checked tensor for this upstream
        gradient of the r-th checked result; zeros for None.
        """
        with check_saved():
            out = self.call()[self.differentiable[r]]
        sent = backends.place_like(upstream.copy(), out.data)
        kept = {x: x.grad for x in {*self.checked, *_leaves([out])}}
        try:
            for x in kept:
                x.grad = None
            out.backward(sent)
            gradients = [x.grad for x in self.checked]
        finally:
            for x, gradient in kept.items():
                x.grad = gradient
        if not np.array_equal(backends.host(sent), upstream):
            raise GradcheckError(
                f"gradcheck: backward of {self.name} writes into the gradient that it was given; "
                "make a new array instead"
            )
        self.check_unchanged(f"backward of {self.name}")
        return [
            self._checked_gradient(f"{label} of {self.result_name(r)}", x, gradient)
            for label, x, gradient in zip(self.labels, self.checked, gradients, strict=True)
        ]

    def _checked_gradient(self, label: str, x: Tensor, gradient: Array | None) -> Array:
        if gradient is None:
            return np.zeros(x.shape, x.dtype)
        if isinstance(gradient, Array) and np.shares_memory(gradient, x.data):
            raise GradcheckError(
                f"gradcheck: the gradient of {label} is a view of an input's own "
                "memory: later gradients would be added into it; return a copy"
            )
        gradient = backends.host(gradient)
        if gradient.shape != x.shape or gradient.dtype != x.dtype:
            raise GradcheckError(
                f"gradcheck: the gradient of {label} is {gradient.dtype} "
                f"{gradient.shape}, expected {x.dtype} {x.shape}"
            )
        if not np.isfinite(gradient).all():
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(gradient))[0])
            raise GradcheckError(
                f"gradcheck: the gradient of {label} is {gradient[place]} at "
                f"element {place}, where the result is finite\n"
                "  likely cause: backward divides by 0, or takes a logarithm or root of it; if the "
                "function has no derivative there, choose other inputs"
            )
        return gradient

    def at(self, n: int, step: Array) -> list[Array]:
        """The results with `step` added to checked tensor n, which is as before afterwards."""
        return self._with(self.checked[n], self.before[n] + step)

    def _with(self, x: Tensor, value: Array) -> list[Array]:
        original = x.data
        try:
            x.data = backends.place_like(value, original)
            with no_grad():
                results = self.call()
            return [backends.host(results[i].data).copy() for i in self.differentiable]
        finally:
            x.data = original


class CheckedResult:
    """One result of the function, its r-th that is checked: `name`, its value `base`, upstream
    gradients drawn for it, and the vector-Jacobian products that backward makes of them.
    """

    def __init__(
        self, function: CheckedFunction, r: int, base: Array, rng: np.random.Generator, rounds: int
    ):
        self.r, self.name, self.base = r, function.result_name(r), base
        self.upstreams = [np.asarray(rng.standard_normal(base.shape)) for _ in range(rounds)]
        self.gradients = [function.gradients(r, upstream) for upstream in self.upstreams]

    @property
    def scale(self) -> float:
        """Estimate how large the sum of the result times an upstream gradient may be."""
        upstream = self.upstreams[0]
        norm = max(np.linalg.norm(upstream * self.base), 1e-2 * np.linalg.norm(upstream))
        return float(norm)


@contextlib.contextmanager
def _as_they_are(modules: list) -> Iterator[None]:
    """Within this block the modules' attributes, and the arrays, lists and generators among them,
    are copies: running statistics and counters move there, and afterwards all is as before.
    """
    kept = [(module, dict(vars(module))) for module in modules]
    try:
        for module, state in kept:
            vars(module).update({name: _state_copy(value) for name, value in state.items()})
        yield
    finally:
        for module, state in kept:
            vars(module).clear()
            vars(module).update(state)


def _state_copy(value: Any) -> Any:
    if isinstance(value, np.random.Generator):
        return copy.deepcopy(value)
    is_state = isinstance(value, list | dict | set) or hasattr(value, "dtype")
    return copy.copy(value) if is_state and not isinstance(value, Tensor) else value


def _leaves(results: list[Tensor]) -> dict[Tensor, str]:
    """All leaves that results were made from (inputs, parameters), and which use of them is the
    first, in the order of these uses.
    """
    uses: dict[Tensor, tuple[int, str]] = {}
    nodes: list[Node] = []
    seen: set[Node] = set()
    for out in results:
        if out.node is None:  # the result is itself a leaf
            uses[out] = (0, "the result")
        else:
            nodes.append(out.node)
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        where = f" in {node.layer}" if node.layer else ""
        for i, x in enumerate(node.inputs):
            if isinstance(x, Tensor):
                use = (node.number, f"(argument {i} of {node.op}{where})")
                uses[x] = min(use, uses.get(x, use))
            elif isinstance(x, Node):
                nodes.append(x)
    return {x: place for x, (_, place) in sorted(uses.items(), key=lambda item: item[1])}


def _reached(fn: Callable[..., Any]) -> list[tuple[str, Any]]:
    """The modules and the Tensors with a gradient that a function reaches, by the names that it
    has for them: in its closure, among its globals, in a function that it calls, in the object
    that it belongs to. What it is itself, or is a method of, has no name.
    """
    reached, functions, seen = [], [("", fn)], set()
    while functions:
        name, function = functions.pop()
        seen.add(id(function))
        if isinstance(function, functools.partial):
            positional = {str(i): x for i, x in enumerate(function.args)}
            inside = {"": function.func, **positional, **function.keywords}
        else:
            owner = getattr(function, "__self__", function)
            reached.append((name, owner))
            inside = {} if _is_module(owner) else dict(getattr(owner, "__dict__", {}))
            with contextlib.suppress(TypeError, ValueError):  # no function of Python's, or a cell
                names = inspect.getclosurevars(function)  # that was never set
                inside.update({**names.globals, **names.nonlocals})
        reached += inside.items()
        callables = [
            (n, f) for n, f in inside.items() if inspect.isfunction(f) or inspect.ismethod(f)
        ]
        functions += [(n, f) for n, f in callables if id(f) not in seen]
    return [(n, value) for n, value in reached if _is_module(value) or _is_checked(value)]


def _is_module(value: Any) -> TypeGuard[Any]:
    """True for an nn.Module, which stands above this file."""
    return hasattr(value, "named_parameters") and not isinstance(value, type)


def argument_names(fn: Callable[..., Any], count: int) -> list[str | None]:
    """The names of fn's first `count` arguments, None where it does not tell."""
    try:
        parameters = inspect.signature(fn.forward if _is_module(fn) else fn).parameters.values()
    except (TypeError, ValueError):
        return [None] * count
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [*plain[:count], *[None] * (count - len(plain))]


def _as_checked(value: Any) -> Any:
    """A float array becomes a Tensor that requires a gradient; all else stays."""
    if isinstance(value, Array) and value.dtype.kind == "f":
        return Tensor(value, requires_grad=True)
    return value


def _is_checked(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.requires_grad


def _expect_float64(label: str, array: Array) -> None:
    if array.dtype != np.float64:
        raise TypeError(
            f"gradcheck: {label} is {array.dtype}, but differences need float64: in {array.dtype} "
            "the rounding of the function is larger than the change that is measured. Convert the "
            "inputs with .astype('float64'); compare a float32 kernel with its float64 result "
            "instead (ft.testing)"
        )
