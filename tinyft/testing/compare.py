"""Compares an array of yours with the right one, and says in words where and how they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray as Array

from tinyft.testing.causes import Evidence, constant_factor, mask, other_order
from tinyft.testing.terms import factored

MAP = 12  # rows of elements shown
FEW = 8  # elements that are all shown


@dataclass(frozen=True)
class ArrayComparison:
    """What came out of `compare_arrays`. True in a condition if the arrays are close; as text,
    `verdict` and what explains it.

    `worst` is the index of the element that differs most, `difference` by how much.
    """

    name: str
    verdict: str  # "exact", "close", "wrong", "another shape", "not written yet", "not numbers"
    told: tuple[str, ...] = ()
    worst: tuple[int, ...] | None = None
    difference: float = 0.0

    def __bool__(self) -> bool:
        return self.verdict in ("exact", "close")

    def __str__(self) -> str:
        first, *rest = self.told or ("",)
        head = f"{self.name}: {self.verdict}" + (f", {first}" if first else "")
        return "\n".join([head, *(f"  {line}" for line in rest)])


def compare_arrays(
    name: str, yours: Any, right: Any, known: Mapping[str, Array] | None = None
) -> ArrayComparison:
    """Compare an array with the right one: exact, close, or wrong and where, with what the wrong
    numbers look like (a factor, a sign, an order) and a map of them. `known` are arrays that may be
    a factor that is missing, by name.

    Close is half of the digits that the coarser of both dtypes has (1e-8 for float64), in parts of
    the largest right number. `...` and None mean that nothing was written yet.
    Example:
        >>> print(compare_arrays("dx", np.array([1.0, 2.0]), np.array([-1.0, -2.0])))
        dx: wrong, yours [1. 2.], right [-1. -2.]
          the sign is wrong: the gradient is its own negative
    """
    if yours is None or yours is Ellipsis:
        return ArrayComparison(name, "not written yet")
    ours, expected = np.asarray(yours), np.asarray(right)
    if ours.dtype.kind not in "biuf":
        return ArrayComparison(name, "not numbers", (f"expected numbers; got {yours!r:.60}",))
    if ours.shape != expected.shape:
        shapes = f"yours has {ours.shape}, expected {expected.shape}"
        return ArrayComparison(name, "another shape", (shapes,))
    digits = max(np.finfo(a.dtype).eps if a.dtype.kind == "f" else 0 for a in (ours, expected))
    ours, expected = ours.astype(np.float64), expected.astype(np.float64)
    differs = ~((ours == expected) | (np.isnan(ours) & np.isnan(expected)))
    if not differs.any():
        return ArrayComparison(name, "exact")
    with np.errstate(invalid="ignore"):
        apart = np.where(differs, np.abs(ours - expected), 0)
    apart = np.where(np.isnan(apart), np.inf, apart)
    at = tuple(int(i) for i in np.unravel_index(apart.argmax(), apart.shape))
    allowed = np.sqrt(digits) * np.abs(expected[np.isfinite(expected)]).max(initial=0)
    if apart[at] <= allowed:
        return ArrayComparison(name, "close", (f"within {apart[at]:.1g}",), at, float(apart[at]))
    few = expected.size <= FEW
    if few:
        told = [f"yours {_listed(yours)}, right {_listed(right)}"]
    else:
        told = [f"worst at {at}: yours {ours[at]:.6g}, right {expected[at]:.6g}"]
    if digits and expected.size > 1:  # not of answers that are True or False
        told += filter(None, [_looks_like(ours, expected, known or {})])
    told += [] if few else map_of(apart > allowed)
    return ArrayComparison(name, "wrong", tuple(told), at, float(apart[at]))


def _listed(array: Any) -> str:
    array = np.asarray(array)
    if array.ndim == 0:
        return f"{array.item():.6g}"
    return np.array2string(array, precision=6, max_line_width=1000).replace("\n", "")


def _looks_like(ours: Array, expected: Array, known: Mapping[str, Array]) -> str | None:
    """The mistake that is known to make such numbers of the right ones; None if none is."""
    if not (np.isfinite(ours).all() and expected.any() and np.isfinite(expected).all()):
        return None
    if not ours.any():
        return "all of yours is 0"
    nothing = np.zeros(())
    everywhere = np.arange(expected.size)
    seen = Evidence(ours, None, everywhere, expected.reshape(-1), expected, nothing, {}, {})
    rules = (constant_factor, other_order, *([mask] if expected.size > FEW else []))
    if cause := next(filter(None, (rule(seen) for rule in rules)), None):
        return cause
    with np.errstate(all="ignore"):
        factor = factored(seen.analytic, seen.numeric, dict(known), expected.shape, everywhere)
    return f"a factor is missing: {factor}, or a multiple of it" if factor else None


def map_of(wrong: Array) -> list[str]:
    """Where some elements are wrong and others right: rows of the last two axes, the first that has
    any.
    """
    if wrong.all() or not wrong.any() or wrong.ndim == 0:
        return []
    first = tuple(int(i) for i in np.argwhere(wrong)[0][:-2])
    rows = np.atleast_2d(wrong[first])[:MAP, : 5 * MAP]
    where = f" at {first}" if first else ""
    return [f"right (.) and wrong (x){where}:"] + [
        "  " + "".join("x" if element else "." for element in row) for row in rows
    ]
