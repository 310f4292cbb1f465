"""Likely causes of a wrong gradient: the shape of an error names the mistake.

A gradient that is twice what it should be, or its negative, or its transpose, was made by one of a
few mistakes that everybody makes once. Given what backward returned and what finite differences
measured, `likely_cause` says in a sentence which of them fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, permutations, product

import numpy as np
from numpy import ndarray as Array

from tinyft.testing.terms import ALIKE, LARGEST, alike, another_axis, factored, matching, terms


@dataclass(frozen=True)
class Evidence:
    """What is known about one wrong gradient.

    `backward` is all that backward returned, and `again` what it returned for another upstream
    gradient; `numeric` is what finite differences measured at `elements` (flat places, at most some
    hundred). `known` are the inputs and the result by name, `others` the other inputs' gradients.
    """

    backward: Array
    again: Array | None
    elements: Array
    numeric: Array
    value: Array
    dout: Array
    known: dict[str, Array]
    others: dict[str, Array]

    @property
    def analytic(self) -> Array:
        return self.backward.reshape(-1)[self.elements]

    @property
    def wrong(self) -> Array:
        """Of the elements that were measured: (n,) bool"""
        return np.abs(self.analytic - self.numeric) > ALIKE * np.abs(self.numeric).max()

    def whole(self) -> tuple[Array, Array] | None:
        """Backward's and the measured gradient in the input's shape; None if not all was measured:
        then places tell nothing.
        """
        if len(self.elements) < self.value.size:
            return None
        return self.backward, self.numeric.reshape(self.value.shape)


def likely_cause(seen: Evidence) -> str:
    """Say in a sentence why what backward returned is not what finite differences measured."""
    return next(filter(None, (rule(seen) for rule in RULES)), None) or (
        "a term is missing or wrong: no constant factor, no other order of elements and no short "
        "product of dout, inputs and result fits"
    )


def nothing(seen: Evidence) -> str | None:
    if not seen.backward.any():
        return (
            "backward returns no gradient for this input (None or zeros), or in another input's "
            "place"
        )
    if np.abs(seen.numeric).max() < ALIKE * np.abs(seen.analytic).max():
        return "the result does not depend on this input, so its gradient should be zero"
    return None


def dout_unused(seen: Evidence) -> str | None:
    if seen.again is None or not np.array_equal(seen.again, seen.backward):
        return None
    return "backward does not use dout: it returns the same for every upstream gradient"


def exchanged(seen: Evidence) -> str | None:
    if not (both := seen.whole()):
        return None
    for name, other in seen.others.items():
        if other.shape == seen.value.shape and alike(other, both[1]):
            return f"this is the gradient of {name}: backward returns them in another order"
    return None


def constant_factor(seen: Evidence) -> str | None:
    """All elements are wrong by one factor: where does it come from?"""
    analytic, numeric = seen.analytic, seen.numeric
    factor = float((analytic * numeric).sum() / np.square(numeric).sum())
    if not alike(analytic, factor * numeric) or abs(factor - 1) < ALIKE:
        return None
    if abs(factor + 1) < ALIKE:
        return "the sign is wrong: the gradient is its own negative"
    sizes = {**_counts(seen.dout.shape, "output"), **_counts(seen.value.shape, "input")}
    for size, name in sizes.items():
        if abs(factor - size) < ALIKE * size:
            return f"{size} times too large ({name}): a mean was not divided by its count"
        if abs(factor * size - 1) < ALIKE:
            return f"{size} times too small ({name}): divided by a count once too often"
    if abs(factor - 2) < ALIKE:
        return "twice too large: a factor 2 too many, or one contribution counted twice"
    if abs(factor - 0.5) < ALIKE:
        return "half of what it should be: a factor 2 missing, or one of two uses forgotten"
    return f"every element is wrong by the same factor {factor:.6g}"


def _counts(shape: tuple[int, ...], name: str) -> dict[int, str]:
    """List what a mean over some axes divides by: product of their sizes -> which axes."""
    meanings: dict[int, str] = {}
    for count in range(1, len(shape) + 1):
        for axes in combinations(range(len(shape)), count):
            size = int(np.prod([shape[a] for a in axes]))
            if size > 2:
                meanings.setdefault(size, f"the size of the {name}'s axes {axes}")
    return meanings


def other_order(seen: Evidence) -> str | None:
    """The numbers are right and their places are not."""
    if not (both := seen.whole()):
        return None
    (analytic, numeric), ndim = both, seen.value.ndim
    for axes in list(permutations(range(ndim)))[1:] if ndim <= 4 else ():
        moved = numeric.transpose(axes)
        if moved.shape == analytic.shape and alike(analytic, moved):
            return f"transposed: the right numbers with axes in the order {axes}"
    for flips in list(product((False, True), repeat=ndim))[1:] if ndim <= 4 else ():
        axes = tuple(i for i, flip in enumerate(flips) if flip)
        if alike(analytic, np.flip(numeric, axes)):
            return f"reversed along the axes {axes}: is the kernel flipped?"
    for axis, step in product(range(ndim), (1, -1)):
        if _is_shifted(np.moveaxis(analytic, axis, 0), np.moveaxis(numeric, axis, 0), step):
            return f"shifted by one along axis {axis}: an index, a padding or a roll is off by one"
    if numeric.size > 1 and alike(np.sort(analytic, axis=None), np.sort(numeric, axis=None)):
        return "the right numbers in other places: an axis order or a reshape is wrong"
    return None


def _is_shifted(analytic: Array, numeric: Array, step: int) -> bool:
    """True if row i of one is row i + step of the other, where both have it."""
    here, there = (analytic[:-1], numeric[1:]) if step > 0 else (analytic[1:], numeric[:-1])
    return here.size > 2 and bool(there.any()) and alike(here, there)


def mask(seen: Evidence) -> str | None:
    """Some elements get something, or nothing, and should not."""
    wrong, scale = seen.wrong, ALIKE * np.abs(seen.numeric).max()
    if not wrong.any() or wrong.all():
        return None
    if (np.abs(seen.numeric[wrong]) <= scale).all():
        return (
            f"{wrong.sum()} of {wrong.size} elements should get nothing, and the others are right: "
            "a mask is missing or wrong (of a ReLU, a maximum, an index)"
        )
    if wrong.mean() <= 0.5 and not seen.analytic[wrong].any():
        return (
            f"{wrong.sum()} of {wrong.size} elements are wrong and get nothing: is a border, a "
            "stride or the last element left out?"
        )
    return None


def missing_product(seen: Evidence) -> str | None:
    """A factor is missing, or a term, or another product was computed: which?"""
    if _is_large(seen):
        return None
    shape, missing = seen.value.shape, seen.numeric - seen.analytic
    with np.errstate(all="ignore"):
        if factor := factored(seen.analytic, seen.numeric, seen.known, shape, seen.elements):
            return f"the factor {factor} is missing"
        right, computed = _written(seen, seen.numeric), _written(seen, seen.analytic)
        if right and computed:
            return f"backward computes {computed}, and should compute {right}"
        if term := _written(seen, missing):
            return f"the term {term} is missing"
        return another_axis(seen.dout, seen.known, missing, seen.elements, shape)


def missing_mean(seen: Evidence) -> str | None:
    """What is missing is, per channel (last axis), a constant or a line in the input."""
    both = seen.whole()
    if not both or seen.value.ndim < 2 or seen.value.size < 4 * seen.value.shape[-1]:
        return None
    missing = (both[1] - both[0]).reshape(-1, seen.value.shape[-1])
    if alike(missing.mean(axis=0) + 0 * missing, missing):
        return "a term is missing that is the same for all elements of a channel: a mean's part"
    values = seen.value.reshape(missing.shape)
    centred = values - values.mean(axis=0)
    spread = np.square(centred).sum(axis=0)
    slope = (centred * missing).sum(axis=0) / np.where(spread == 0, 1, spread)
    if alike(missing.mean(axis=0) + slope * centred, missing):
        return (
            "terms are missing that are, per channel, a constant and a multiple of the input: "
            "those through the mean and the variance of a normalisation"
        )
    return None


def some_elements(seen: Evidence) -> str | None:
    wrong = seen.wrong
    if not wrong.any() or wrong.mean() > 0.5:
        return None
    return (
        f"{wrong.sum()} of {wrong.size} elements are wrong, the others are right: contributions "
        "that overwrite instead of adding up, a border, or a rule for ties"
    )


def right_product(seen: Evidence) -> str | None:
    if _is_large(seen):
        return None
    with np.errstate(all="ignore"):
        right = _written(seen, seen.numeric)
    return f"it should be {right}" if right else None


def _is_large(seen: Evidence) -> bool:
    return max(x.size for x in (seen.dout, seen.value, *seen.known.values())) > LARGEST


def _written(seen: Evidence, target: Array) -> str | None:
    return matching(target, terms(seen.dout, seen.known, seen.value.shape), seen.elements)


RULES = (  # the surest first
    nothing, dout_unused, constant_factor, exchanged, other_order, mask, missing_product,
    missing_mean, some_elements, right_product,
)  # fmt: skip
