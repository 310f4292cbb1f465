"""The numeric check of a gradient: does backward agree with small differences of forward?

For a function f, a random upstream gradient R and a random direction u,

    sum(R * (f(x + eps u) - f(x - eps u))) / (2 eps)     and     sum(gradient * u)

must be the same number. `mode="fast"` compares such projections, two evaluations each and several
of them; `mode="full"` moves one element at a time and compares every entry. Both work in float64:
in float32 the rounding of f is larger than the errors that are looked for.

The file is not called gradcheck.py because a module and a function of one name in one package
overwrite each other, depending on which is imported first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyft.testing.differences import Comparison
from tinyft.testing.function import CheckedFunction, CheckedResult
from tinyft.testing.report import GradcheckError, GradcheckReport

__all__ = ["GradcheckError", "GradcheckReport", "gradcheck"]


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
    function = CheckedFunction(fn, inputs, names)
    bases = function.first_calls()
    rng = np.random.default_rng(seed)
    results = [CheckedResult(function, r, base, rng, rounds) for r, base in enumerate(bases)]
    if not allow_zero:
        _refuse_zero(function, results)
    reports = []
    for result in results:
        for n in range(len(function.checked)):
            comparison = Comparison(function, n, result, eps, rtol, atol)
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
        found = [np.linalg.norm(result.gradients[0][n]) * step for result in results]
        scales = [result.scale for result in results]
        if x.size == 0 or any(f > 1e-10 * scale for f, scale in zip(found, scales, strict=True)):
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
