"""The numeric check of a gradient: does backward agree with finite differences of forward?

For a function f with Jacobian J, backward turns an upstream gradient R into the vector-Jacobian
product R J. Along a random direction u,

    sum(R * (f(x + eps u) - f(x - eps u))) / (2 eps)     and     sum(R J * u)

must be the same number. `mode="fast"` compares such projections, two evaluations each and several
of them; `mode="full"` moves one element at a time and compares every entry. Both work in float64:
in float32 the rounding of f is larger than the errors that are looked for.

Differences are taken at two step sizes. The two remove the error of the third derivative
(Richardson), and they expose a kink (ReLU at 0, a tie in a max-pool): for a smooth f the second
difference shrinks with the square of the step, for a kink it does not. A kink has no derivative to
compare with; it is left out, and the report says where it was. One at a third of the step away
escapes, so what disagrees is compared once more with a smaller step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy import ndarray as Array

from tinyft.display import Displayed, aligned
from tinyft.testing.causes import Evidence, likely_cause
from tinyft.testing.compare import map_of
from tinyft.testing.function import CheckedFunction, CheckedResult, GradcheckError, as_op
from tinyft.testing.terms import ALIKE

__tracebackhide__ = True  # as in function.py
__all__ = ["GradcheckError", "GradcheckReport", "gradcheck"]

# How many roundings of the result one evaluation is allowed; a loss over a deep network needs tens.
ROUNDINGS = 256 * 2.0**-53
SMALLER_STEP = 16  # a kink between the two evaluations is often outside a step this much smaller
MOST_KINKS = 100  # in one input; each costs some twenty evaluations to find
LOCATED = 400  # elements that are examined one by one to explain a failure

COLUMNS = ("gradient of", "shape", "|gradient|", "compared", "worst / allowed", "kinks left out")


@dataclass(frozen=True)
class InputReport:
    """One input or parameter: what was compared, and how well it agreed."""

    name: str
    shape: tuple[int, ...]
    gradient_norm: float
    compared: int  # projections (fast) or elements (full), times the upstream gradients
    worst: float  # the largest difference, in units of what is allowed
    kinks: list[tuple[int, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class GradcheckReport(Displayed):
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
        rows = [COLUMNS] + [
            (row.name, str(row.shape), f"{row.gradient_norm:.4g}", str(row.compared),
             f"{row.worst:.2g}", _places(row.kinks) if row.kinks else "none")
            for row in self.inputs
        ]  # fmt: skip
        return "\n".join([head, *aligned(rows, indent="  ")])


def gradcheck(
    fn: Callable[..., Any],
    inputs: Any,
    *,
    backward: Callable[..., Any] | None = None,
    mode: str = "fast",
    eps: float = 1e-5,
    rtol: float = 1e-6,
    atol: float = 0.0,
    seed: int = 0,
    rounds: int = 3,
    names: Sequence[str] | None = None,
    allow_zero: bool = False,
) -> GradcheckReport:
    """Compare the gradients of `fn(*inputs)` with finite differences; a report if they agree.

    `backward` is for NumPy code that knows nothing of Tensors: `fn(*arrays)` returns an array, or
    (array, cache), and `backward(dout, cache)`, or without a cache `backward(dout, *arrays)`, a
    gradient for each. A class like `torch.autograd.Function` is taken as it is.
    `inputs`: float64 arrays and Tensors that require a gradient are checked, all else is passed on
    as it is. Parameters are checked too, by name: those of `fn` if it is a module, and those that
    it uses; one with requires_grad=False is left out. So is every result that has a gradient, where
    `fn` returns a tuple. Modules stay as they are: each call starts from the same running
    statistics and counters. `rounds` upstream gradients are drawn, each with its own directions.
    What rounding does to the differences is always allowed for; `rtol` and `atol` come on top.
    `names`: what to call the inputs in messages, one each. `allow_zero` accepts an input or a
    parameter whose gradient is zero everywhere.

    Raises: GradcheckError for a wrong gradient, with its name, element, both values and a likely
    cause; also for a function that gives two results for one input, writes into its inputs, or
    whose gradients are zero everywhere, so that nothing is checked. TypeError for float32,
    ValueError for an unknown mode, no rounds, an `eps` that is not above 0, or not one name each.
    Source: PyTorch `torch.autograd.gradcheck` for fast and full mode
    Example:
        >>> def cube(x):
        ...     return x * x * x
        >>> bool(gradcheck(cube, [np.array([1.0, 2.0])]))
        True
    """
    if mode not in ("fast", "full"):
        raise ValueError(f"gradcheck: mode must be 'fast' or 'full', got {mode!r}")
    if rounds < 1:
        raise ValueError(f"gradcheck: rounds must be at least 1, got {rounds}")
    if not eps > 0:
        raise ValueError(f"gradcheck: eps must be above 0, got {eps}")
    if backward or (isinstance(fn, type) and hasattr(fn, "backward")):
        fn = as_op(fn, backward)
    function = CheckedFunction(fn, inputs, names)
    bases = function.first_calls()
    rng = np.random.default_rng([seed, 1])  # inputs are often drawn from default_rng(0)
    results = [CheckedResult(function, r, base, rng, rounds) for r, base in enumerate(bases)]
    if not allow_zero:
        _refuse_zero(function, results)
    reports = []
    for result in results:
        for n in range(len(function.checked)):
            comparison = _Comparison(function, n, result, eps, rtol, atol)
            reports.append(comparison.full() if mode == "full" else comparison.fast(rng))
    function.check_unchanged("the check")
    return GradcheckReport(function.name, mode, eps, seed, reports)


def _refuse_zero(function: CheckedFunction, results: list[CheckedResult]) -> None:
    """A gradient that is zero everywhere agrees with anything constant: say so, rather than pass.

    sum(batch_norm(x)) has gradient 0 for x, whatever backward does. 1e-10 of the result (and 1e-12,
    for a result that is itself nothing but rounding) is far below any real gradient.
    """
    for n, x in enumerate(function.before):
        step = np.linalg.norm(x) if x.any() else 1.0
        sizes = [np.linalg.norm(result.gradients[0][n]) * step for result in results]
        scales = [result.scale for result in results]
        if x.size == 0 or any(s > 1e-10 * scale for s, scale in zip(sizes, scales, strict=True)):
            continue
        moved = function.at(n, 1e-3 * np.random.default_rng(0).standard_normal(x.shape))
        moves = [np.linalg.norm(y.upstreams[0] * (moved[y.r] - y.base)) for y in results]
        if any(move > 1e-10 * scale for move, scale in zip(moves, scales, strict=True)):
            continue  # a result does move: the comparison will find the gradient wrong
        raise GradcheckError(
            f"gradcheck: the gradient of {function.labels[n]} of {function.name} is zero "
            "everywhere, and the result does not change with it, so the check would check nothing. "
            "Is an inactive ReLU or a sum over a normalisation in between? If zero is right, pass "
            "allow_zero=True"
        )


@dataclass
class _Comparison:
    """The gradients that one result gives one input or parameter, the n-th that is checked,
    against finite differences of that result.
    """

    function: CheckedFunction
    n: int
    result: CheckedResult
    eps: float
    rtol: float
    atol: float

    def __post_init__(self) -> None:
        self.value = self.function.before[self.n]
        self.base, self.upstreams = self.result.base, self.result.upstreams
        self.gradients = [gradients[self.n] for gradients in self.result.gradients]
        self.kinks: list[tuple[int, ...]] = []
        self.worst = 0.0

    def fast(self, rng: np.random.Generator) -> InputReport:
        """One random direction per upstream gradient."""
        size = self.value.size
        for k in range(len(self.upstreams) if size else 0):
            direction = rng.standard_normal(self.value.shape)
            self._leave_out_kinks(direction)  # those that earlier directions met
            for eps in self._steps:
                slope, step = self._slope(k, direction, np.arange(size), eps)
                self._leave_out_kinks(direction)
                analytic = float((self.gradients[k] * direction).sum())
                scale = float(np.linalg.norm(self.gradients[k] * direction))
                # no more than before: what disagreed then may not hide in rounding now
                if self._agree(analytic, slope, self._allowed(k, scale, step * self.eps / eps)):
                    break
                if eps == self._steps[-1]:
                    self._fail(k, analytic, slope)
        return self._report(len(self.upstreams) if size else 0)

    def full(self) -> InputReport:
        """Every element by itself, under every upstream gradient."""
        for i in range(self.value.size):
            index = np.unravel_index(i, self.value.shape)
            for k in range(len(self.upstreams)):
                analytic = float(self.gradients[k][index])
                for eps in self._steps:
                    slope, step = self._slope(k, np.ones(self.value.shape), np.array([i]), eps)
                    allowed = self._allowed(k, abs(slope), step * self.eps / eps)
                    if self._place(i) in self.kinks or self._agree(analytic, slope, allowed):
                        break
                    if eps == self._steps[-1]:
                        self._fail(k, analytic, slope)
        return self._report((self.value.size - len(self.kinks)) * len(self.upstreams))

    def _leave_out_kinks(self, direction: Array) -> None:
        for kink in self.kinks:
            direction[kink] = 0

    def _place(self, i: int) -> tuple[int, ...]:
        return tuple(int(j) for j in np.unravel_index(i, self.value.shape))

    @property
    def _steps(self) -> tuple[float, float]:
        return self.eps, self.eps / SMALLER_STEP

    def _slope(self, k: int, direction: Array, elements: Array, eps: float) -> tuple[float, float]:
        """The derivative along `direction` restricted to `elements`, by steps of `eps` or less, and
        the step it was taken with. Elements at a kink are found by halving, noted and left out.
        """
        part = np.zeros(self.value.size)
        part[elements] = direction.reshape(-1)[elements]
        for step in (eps, eps / SMALLER_STEP):
            slope, bend = self._differences(k, part.reshape(self.value.shape), step)
            if abs(bend) <= self._allowed(k, abs(slope), step):
                return slope, step
        if len(elements) == 1:
            place = self._place(elements[0])
            if place not in self.kinks:
                self.kinks.append(place)
            if len(self.kinks) > MOST_KINKS:
                raise GradcheckError(
                    f"gradcheck: {self._who()} has kinks at more than {MOST_KINKS} elements "
                    f"({_places(self.kinks)}), where there is no derivative to compare with; "
                    "choose inputs away from 0 (ReLU) and without ties (max-pool)"
                )
            return 0.0, eps
        first = self._slope(k, direction, elements[: len(elements) // 2], eps)
        second = self._slope(k, direction, elements[len(elements) // 2 :], eps)
        return first[0] + second[0], min(first[1], second[1])

    def _differences(self, k: int, direction: Array, step: float) -> tuple[float, float]:
        """The slope along `direction`, and what a kink would have added to it (0 if smooth).

        With D(h) the central difference and S(h) the second one, (4 D(h/2) - D(h)) / 3 has no
        error of order h squared, and S(h) - 4 S(h/2) is of order h**4 unless there is a kink.
        """
        far = [self._moved(sign * step * direction) for sign in (1, -1)]
        near = [self._moved(sign * step / 2 * direction) for sign in (1, -1)]
        slope = (4 * (near[0] - near[1]) / step - (far[0] - far[1]) / (2 * step)) / 3
        second = (far[0] + far[1] - 2 * self.base) - 4 * (near[0] + near[1] - 2 * self.base)
        upstream = self.upstreams[k]
        return float((upstream * slope).sum()), float((upstream * second).sum() / (2 * step))

    def _moved(self, step: Array) -> Array:
        return self.function.at(self.n, step)[self.result.r]

    def _allowed(self, k: int, scale: float, step: float) -> float:
        """Allow slope and gradient to differ by what was asked for, and by the rounding of results
        and inputs divided by the step.
        """
        rounded = np.linalg.norm(self.upstreams[k] * self.base)
        rounded += np.linalg.norm(self.gradients[k] * self.value)
        return self.atol + self.rtol * scale + ROUNDINGS * float(rounded) / step

    def _agree(self, analytic: float, slope: float, allowed: float) -> bool:
        difference = abs(analytic - slope)
        if 0 < difference <= allowed:
            self.worst = max(self.worst, difference / allowed)
        return difference <= allowed

    def _report(self, compared: int) -> InputReport:
        label = self.function.labels[self.n]
        if self.result.name != self.function.name:
            label = self._who()
        if self.value.size and len(self.kinks) == self.value.size:
            raise GradcheckError(f"gradcheck: every element of {self._who()} is at a kink")
        norm = float(np.linalg.norm(self.gradients[0])) if self.gradients else 0.0
        return InputReport(label, self.value.shape, norm, compared, self.worst, self.kinks)

    def _who(self) -> str:
        return f"{self.function.labels[self.n]} of {self.result.name}"

    # ------------------------------------------------------------------------------------- failures

    def _fail(self, k: int, analytic: float, slope: float) -> NoReturn:
        """Find out where and why, and raise."""
        if self.value.size <= LOCATED:
            elements = np.arange(self.value.size)
        else:
            elements = np.random.default_rng(0).permutation(self.value.size)[:LOCATED]
        ones = np.ones(self.value.shape)
        numeric = np.array(
            [self._slope(k, ones, elements[i : i + 1], self.eps)[0] for i in range(len(elements))]
        )
        claimed = self.gradients[k].reshape(-1)[elements]
        places = [self._place(int(i)) for i in elements]
        smooth = [place not in self.kinks for place in places]
        wrong = np.where(smooth, np.abs(claimed - numeric), 0)
        worst = int(wrong.argmax())
        lines = [f"gradcheck: {self.function.name}: the gradient of {self._who()} is wrong"]
        if wrong[worst] > self._allowed(k, abs(numeric[worst]), self.eps):
            lines.append(_both(f"element {places[worst]}", claimed[worst], numeric[worst]))
        else:
            lines.append(_both("along a random direction", analytic, slope))
        lines.append(f"  likely cause: {self._cause(k, elements, numeric)}")
        if len(elements) == self.value.size:
            there = (wrong > ALIKE * np.abs(numeric).max()).reshape(self.value.shape)
            lines += [f"  {line}" for line in map_of(there)]
        raise GradcheckError("\n".join(lines))

    def _cause(self, k: int, elements: Array, numeric: Array) -> str:
        function, made = self.function, self.result.gradients
        known = dict(zip(map(_short, function.labels), function.before, strict=True))
        others = {label: made[k][n] for n, label in enumerate(function.labels) if n != self.n}
        again = self.gradients[k - 1] if len(self.gradients) > 1 else None
        seen = Evidence(
            self.gradients[k], again, elements, numeric, self.value, self.upstreams[k],
            {**known, "out": self.base}, others,
        )  # fmt: skip
        return likely_cause(seen)


def _short(label: str) -> str:
    """The name in `input 0 (x)` or `parameter weight`."""
    return label.split("(")[-1].rstrip(")").removeprefix("parameter ").replace("input ", "input_")


def _both(where: str, analytic: float, numeric: float) -> str:
    ratio = f"ratio {analytic / numeric:.6g}" if numeric else "no ratio"
    return f"  {where}: backward says {analytic:.8g}, differences say {numeric:.8g}, {ratio}"


def _places(indices: list[tuple[int, ...]]) -> str:
    """The first few of some elements' indices."""
    shown = ", ".join(map(str, indices[:5]))
    return f"{len(indices)}: {shown}" + (", ..." if len(indices) > 5 else "")
