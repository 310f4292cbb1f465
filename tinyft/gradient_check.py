"""The numeric check of a gradient: does backward agree with small differences of forward?

For a function f, a random upstream gradient R and a random direction u,

    sum(R * (f(x + eps u) - f(x - eps u))) / (2 eps)     and     sum(gradient * u)

must be the same number. `mode="fast"` compares such projections, two evaluations each and several
of them; `mode="full"` moves one element at a time and compares every entry. Both work in float64:
in float32 the rounding of f is larger than the errors that are looked for.

Differences are taken at two step sizes. The two remove the error of the third derivative
(Richardson), and they expose a kink (ReLU at 0, a tie in a max-pool): for a smooth f the second
difference shrinks with the square of the step, for a kink it does not. A kink has no derivative to
compare with; it is left out, and the report says where it was.

The file is not called gradcheck.py because a module and a function of one name in one package
overwrite each other, depending on which is imported first.

Next: tinyft/gradient_causes.py
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy import ndarray as Array

from tinyft.errors import TinyftError
from tinyft.gradient_causes import likely_cause
from tinyft.tensor import Tensor, check_saved, no_grad

# How many roundings of the result one evaluation is allowed; a loss over a deep network needs tens.
ROUNDINGS = 64 * 2.0**-53
SMALLER_STEP = 16  # a kink between the two evaluations is often outside a step this much smaller
MOST_KINKS = 100  # in one input; each costs some twenty evaluations to find
LOCATED = 400  # elements that are examined one by one to explain a failure


class GradcheckError(TinyftError, AssertionError):
    """A gradient that disagrees with differences, or a function that cannot be checked."""


@dataclass(frozen=True)
class InputReport:
    """What was compared for one input, and how well it agreed."""

    name: str
    shape: tuple[int, ...]
    gradient_norm: float
    compared: int  # projections (fast) or elements (full), times the upstream gradients
    worst: float  # the largest difference, in units of what is allowed
    kinks: list[tuple[int, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class GradcheckReport:
    """The result of a check that passed. True in a condition; as text, a table."""

    op: str
    mode: str
    eps: float
    seed: int
    inputs: list[InputReport]

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        head = f"gradcheck {self.op}: passed (mode {self.mode}, eps {self.eps:g}, seed {self.seed})"
        columns = ("input", "shape", "|gradient|", "compared", "worst / allowed", "kinks left out")
        rows = [columns] + [
            (
                row.name,
                str(row.shape),
                f"{row.gradient_norm:.4g}",
                str(row.compared),
                f"{row.worst:.2g}",
                _places(row.kinks) if row.kinks else "none",
            )
            for row in self.inputs
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([head, *(f"  {line}".rstrip() for line in lines)])


def gradcheck(
    fn: Callable,
    inputs: Any,
    *,
    mode: str = "fast",
    eps: float = 1e-5,
    rtol: float = 1e-6,
    atol: float = 0.0,
    seed: int = 0,
    rounds: int = 3,
    names: Sequence[str] | None = None,
    allow_zero: bool = False,
) -> GradcheckReport:
    """Compare the gradients that `fn(*inputs)` gives with differences; a report if they agree.

    `inputs`: float64 arrays and Tensors that require a gradient are checked, all else is passed on
    as it is. Of several results the first counts. `rounds` upstream gradients are drawn, each with
    its own directions. What rounding does to the differences is always allowed for; `rtol` and
    `atol` come on top. `names`: what to call the inputs in messages, one each. `allow_zero`
    accepts an input whose gradient is zero everywhere.

    Raises: GradcheckError for a wrong gradient, with input, element, both values and a likely
    cause; also for a function that gives two results for one input, writes into its inputs, or
    whose gradients are zero everywhere, so that nothing is checked. TypeError for float32.
    Source: PyTorch `torch.autograd.gradcheck` for fast and full mode
    Example:
        >>> def cube(x):
        ...     return x * x * x
        >>> bool(gradcheck(cube, [np.array([1.0, 2.0])]))
        True
    """
    if mode not in ("fast", "full"):
        raise ValueError(f"gradcheck: mode must be 'fast' or 'full', got {mode!r}")
    function = _Function(fn, inputs, names)
    base = function.first_calls()
    rng = np.random.default_rng(seed)
    upstreams = [np.asarray(rng.standard_normal(base.shape)) for _ in range(rounds)]
    gradients = [function.gradients(upstream) for upstream in upstreams]
    if not allow_zero:
        _refuse_zero(function, base, upstreams[0], gradients[0])
    reports = []
    for i in range(len(function.checked)):
        comparison = _Comparison(function, i, base, upstreams, gradients, eps, rtol, atol)
        reports.append(comparison.full() if mode == "full" else comparison.fast(rng))
    function.check_unchanged("the check")
    return GradcheckReport(function.name, mode, eps, seed, reports)


# ----------------------------------------------------------------------------- the checked function


class _Function:
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
        names = names or _argument_names(fn, len(self.arguments))
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
        kept = [x.grad for x in self.checked]
        sent = upstream.copy()
        try:
            for x in self.checked:
                x.grad = None
            with check_saved():
                self.call().backward(sent)
            found = [x.grad for x in self.checked]
        finally:
            for x, gradient in zip(self.checked, kept, strict=True):
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


def _refuse_zero(function: _Function, base: Array, upstream: Array, gradients: list) -> None:
    """A gradient that is zero everywhere agrees with anything constant: say so, rather than pass.

    sum(batch_norm(x)) has gradient 0 for x, whatever backward does. 1e-10 of the result (and 1e-12,
    for a result that is itself nothing but rounding) is far below any real gradient.
    """
    scale = max(np.linalg.norm(upstream * base), 1e-2 * np.linalg.norm(upstream))
    for n, gradient in enumerate(gradients):
        x = function.checked[n]
        step = np.linalg.norm(x.data) if x.data.any() else 1.0
        if x.size == 0 or np.linalg.norm(gradient) * step > 1e-10 * scale:
            continue
        moved = function.at(n, 1e-3 * np.random.default_rng(0).standard_normal(x.shape)) - base
        if np.linalg.norm(upstream * moved) > 1e-10 * scale:
            continue  # the result does move: the comparison will find the gradient wrong
        raise GradcheckError(
            f"gradcheck: the gradient of {function.labels[n]} of {function.name} is zero "
            "everywhere, and the result does not change with it, so the check would check nothing. "
            "Is an inactive ReLU or a sum over a normalisation in between? If zero is right, pass "
            "allow_zero=True"
        )


# --------------------------------------------------------------------------------------- comparison


@dataclass
class _Comparison:
    """One input's gradients against differences of the function along that input."""

    function: _Function
    n: int
    base: Array
    upstreams: list[Array]
    all_gradients: list[list[Array]]
    eps: float
    rtol: float
    atol: float

    def __post_init__(self) -> None:
        self.value = self.function.checked[self.n].data
        self.gradients = [gradients[self.n] for gradients in self.all_gradients]
        self.kinks: list[tuple[int, ...]] = []
        self.worst = 0.0

    def fast(self, rng: np.random.Generator) -> InputReport:
        """One random direction per upstream gradient."""
        size = self.value.size
        for k in range(len(self.upstreams) if size else 0):
            direction = rng.standard_normal(self.value.shape)
            self._leave_out_kinks(direction)  # those that earlier directions met
            slope, step = self._slope(k, direction, np.arange(size))
            self._leave_out_kinks(direction)
            analytic = float((self.gradients[k] * direction).sum())
            scale = float(np.linalg.norm(self.gradients[k] * direction))
            if not self._agree(analytic, slope, self._allowed(k, scale, step)):
                self._fail(k, analytic, slope)
        return self._report(len(self.upstreams) if size else 0)

    def full(self) -> InputReport:
        """Every element by itself, under every upstream gradient."""
        for i in range(self.value.size):
            index = np.unravel_index(i, self.value.shape)
            for k in range(len(self.upstreams)):
                slope, step = self._slope(k, np.ones(self.value.shape), np.array([i]))
                analytic = float(self.gradients[k][index])
                if self._place(i) in self.kinks:
                    break
                if not self._agree(analytic, slope, self._allowed(k, abs(slope), step)):
                    self._fail(k, analytic, slope)
        return self._report((self.value.size - len(self.kinks)) * len(self.upstreams))

    def _leave_out_kinks(self, direction: Array) -> None:
        for kink in self.kinks:
            direction[kink] = 0

    def _place(self, i: int) -> tuple[int, ...]:
        return tuple(int(j) for j in np.unravel_index(i, self.value.shape))

    def _slope(self, k: int, direction: Array, elements: Array) -> tuple[float, float]:
        """The derivative along `direction` restricted to `elements`, and the step it was taken
        with. Elements at a kink are found by halving, noted and left out.
        """
        part = np.zeros(self.value.size)
        part[elements] = direction.reshape(-1)[elements]
        for step in (self.eps, self.eps / SMALLER_STEP):
            slope, bend = self._differences(k, part.reshape(self.value.shape), step)
            if abs(bend) <= self._allowed(k, abs(slope), step):
                return slope, step
        if len(elements) == 1:
            self._note_kink(self._place(elements[0]))
            return 0.0, self.eps
        first = self._slope(k, direction, elements[: len(elements) // 2])
        second = self._slope(k, direction, elements[len(elements) // 2 :])
        return first[0] + second[0], min(first[1], second[1])

    def _differences(self, k: int, direction: Array, step: float) -> tuple[float, float]:
        """The slope along `direction`, and what a kink would have added to it (0 if smooth).

        With D(h) the central difference and S(h) the second one, (4 D(h/2) - D(h)) / 3 has no
        error of order h squared, and S(h) - 4 S(h/2) is of order h**4 unless there is a kink.
        """
        far = [self.function.at(self.n, sign * step * direction) for sign in (1, -1)]
        near = [self.function.at(self.n, sign * step / 2 * direction) for sign in (1, -1)]
        slope = (4 * (near[0] - near[1]) / step - (far[0] - far[1]) / (2 * step)) / 3
        second = (far[0] + far[1] - 2 * self.base) - 4 * (near[0] + near[1] - 2 * self.base)
        upstream = self.upstreams[k]
        return float((upstream * slope).sum()), float((upstream * second).sum() / (2 * step))

    def _allowed(self, k: int, scale: float, step: float) -> float:
        """How far slope and gradient may differ: what was asked for, and the rounding of results
        and inputs divided by the step.
        """
        rounded = np.linalg.norm(self.upstreams[k] * self.base)
        rounded += np.linalg.norm(self.gradients[k] * self.value)
        return self.atol + self.rtol * scale + ROUNDINGS * float(rounded) / step

    def _agree(self, analytic: float, slope: float, allowed: float) -> bool:
        difference = abs(analytic - slope)
        if difference > 0:
            self.worst = max(self.worst, difference / allowed if allowed else np.inf)
        return difference <= allowed

    def _note_kink(self, place: tuple[int, ...]) -> None:
        if place not in self.kinks:
            self.kinks.append(place)
        if len(self.kinks) > MOST_KINKS:
            raise GradcheckError(
                f"gradcheck: {self._who()} has kinks at more than {MOST_KINKS} elements "
                f"({_places(self.kinks)}), where there is no derivative to compare with; choose "
                "inputs away from 0 (ReLU) and without ties (max-pool)"
            )

    def _report(self, compared: int) -> InputReport:
        label = self.function.labels[self.n]
        if self.value.size and len(self.kinks) == self.value.size:
            raise GradcheckError(f"gradcheck: every element of {self._who()} is at a kink")
        norm = float(np.linalg.norm(self.gradients[0])) if self.gradients else 0.0
        return InputReport(label, self.value.shape, norm, compared, self.worst, self.kinks)

    def _who(self) -> str:
        return f"{self.function.labels[self.n]} of {self.function.name}"

    # ------------------------------------------------------------------------------------- failures

    def _fail(self, k: int, analytic: float, slope: float) -> None:
        """Find out where and why, and raise."""
        if self.value.size <= LOCATED:
            elements = np.arange(self.value.size)
        else:
            elements = np.random.default_rng(0).permutation(self.value.size)[:LOCATED]
        ones = np.ones(self.value.shape)
        numeric = np.array(
            [self._slope(k, ones, elements[i : i + 1])[0] for i in range(len(elements))]
        )
        found = self.gradients[k].reshape(-1)[elements]
        smooth = [self._place(i) not in self.kinks for i in elements]
        wrong = np.where(smooth, np.abs(found - numeric), 0)
        worst = int(wrong.argmax())
        lines = [f"gradcheck: {self.function.name}: the gradient of {self._who()} is wrong"]
        if wrong[worst] > self._allowed(k, abs(numeric[worst]), self.eps):
            lines.append(
                _both(f"element {self._place(elements[worst])}", found[worst], numeric[worst])
            )
        else:
            lines.append(_both("along a random direction", analytic, slope))
        lines.append(f"  likely cause: {self._cause(k, elements, found, numeric)}")
        raise GradcheckError("\n".join(lines))

    def _cause(self, k: int, elements: Array, found: Array, numeric: Array) -> str:
        if len(elements) < self.value.size:
            value = self.value.reshape(-1)[elements]
            return likely_cause(found, numeric, value, self.base.shape, {})
        others = {
            label: gradient
            for label, gradient in zip(self.function.labels, self.all_gradients[k], strict=True)
            if label != self.function.labels[self.n]
        }
        shape = self.value.shape
        found, numeric = found.reshape(shape), numeric.reshape(shape)
        return likely_cause(found, numeric, self.value, self.base.shape, others)


def _both(where: str, analytic: float, numeric: float) -> str:
    ratio = f"ratio {analytic / numeric:.6g}" if numeric else "no ratio"
    return f"  {where}: backward says {analytic:.8g}, differences say {numeric:.8g}, {ratio}"


def _places(places: list[tuple[int, ...]]) -> str:
    """The first few of some elements' indices."""
    shown = ", ".join(map(str, places[:5]))
    return f"{len(places)}: {shown}" + (", ..." if len(places) > 5 else "")
