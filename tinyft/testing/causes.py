"""Likely causes of a wrong gradient: the shape of an error names the mistake.

A gradient that is twice what it should be, or its negative, or its transpose, was made by one of a
few mistakes that everybody makes once. Given what backward returned and what finite differences
measured, `likely_cause` says in a sentence which of them fits.
"""

from __future__ import annotations

from itertools import combinations, permutations, product

import numpy as np
from numpy import ndarray as Array

# Two arrays are "the same" for a diagnosis if they differ by less than this part of their norm. It
# is far above the error of a difference (1e-8) and far below that of any mistake.
ALIKE = 1e-5


def likely_cause(
    analytic: Array, numeric: Array, value: Array, out_shape: tuple[int, ...], others: dict
) -> str:
    """Say in a sentence why `analytic` (from backward) is not `numeric` (from finite differences).

    Shapes: analytic, numeric and value (the input itself) are alike; `others` holds the analytic
    gradients of the other inputs by name
    """
    if not analytic.any():
        return (
            "backward returns no gradient for this input (None or zeros), or in another input's "
            "place"
        )
    if np.abs(numeric).max() < ALIKE * np.abs(analytic).max():
        return "the result does not depend on this input, so its gradient should be zero"
    exchanged = [n for n, g in others.items() if g.shape == numeric.shape and alike(g, numeric)]
    if exchanged:
        return f"this is the gradient of {exchanged[0]}: backward returns them in another order"
    for cause in (
        _constant_factor(analytic, numeric, out_shape),
        _other_order(analytic, numeric),
        _missing_term(analytic, numeric, value),
        _some_elements(analytic, numeric),
    ):
        if cause:
            return cause
    return "a term is missing or wrong: no constant factor and no other order of elements fits"


def alike(a: Array, b: Array) -> bool:
    """True if two arrays are equal up to the error of finite differences."""
    return bool(np.linalg.norm(a - b) <= ALIKE * np.linalg.norm(b))


def _constant_factor(analytic: Array, numeric: Array, out_shape: tuple[int, ...]) -> str | None:
    """All elements are wrong by one factor: where does it come from?"""
    factor = float((analytic * numeric).sum() / np.square(numeric).sum())
    if not alike(analytic, factor * numeric):
        return None
    if abs(factor + 1) < ALIKE:
        return "the sign is wrong: the gradient is its own negative"
    sizes = {**_products(out_shape, "output"), **_products(analytic.shape, "input")}
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


def _products(shape: tuple[int, ...], name: str) -> dict[int, str]:
    """List what a mean over some axes divides by: product of their sizes -> which axes."""
    found = {}
    for count in range(1, len(shape) + 1):
        for axes in combinations(range(len(shape)), count):
            size = int(np.prod([shape[a] for a in axes]))
            if size > 2:
                found.setdefault(size, f"the size of the {name}'s axes {axes}")
    return found


def _other_order(analytic: Array, numeric: Array) -> str | None:
    """The numbers are right and their places are not."""
    ndim = numeric.ndim
    for axes in list(permutations(range(ndim)))[1:] if ndim <= 4 else ():
        moved = numeric.transpose(axes)
        if moved.shape == analytic.shape and alike(analytic, moved):
            return f"transposed: the right numbers with axes in the order {axes}"
    for flips in list(product((False, True), repeat=ndim))[1:] if ndim <= 4 else ():
        axes = tuple(i for i, flip in enumerate(flips) if flip)
        if alike(analytic, np.flip(numeric, axes)):
            return f"reversed along the axes {axes}: is the kernel flipped?"
    if numeric.size > 1 and alike(np.sort(analytic, axis=None), np.sort(numeric, axis=None)):
        return "the right numbers in other places: an axis order or a reshape is wrong"
    return None


def _missing_term(analytic: Array, numeric: Array, value: Array) -> str | None:
    """Tell if what is missing is, per channel (last axis), a constant or a line in the input."""
    if numeric.ndim < 2 or numeric.size < 4 * numeric.shape[-1]:
        return None
    missing = (numeric - analytic).reshape(-1, numeric.shape[-1])
    values = value.reshape(missing.shape)
    if alike(missing.mean(axis=0) + 0 * missing, missing):
        return "a term is missing that is the same for all elements of a channel: a mean's part"
    centred = values - values.mean(axis=0)
    spread = np.square(centred).sum(axis=0)
    slope = (centred * missing).sum(axis=0) / np.where(spread == 0, 1, spread)
    if alike(missing.mean(axis=0) + slope * centred, missing):
        return (
            "terms are missing that are, per channel, a constant and a multiple of the input: "
            "those through the mean and the variance of a normalisation"
        )
    return None


def _some_elements(analytic: Array, numeric: Array) -> str | None:
    """Only some elements are wrong: what do they have in common?"""
    wrong = np.abs(analytic - numeric) > ALIKE * np.abs(numeric).max()
    if not wrong.any() or wrong.mean() > 0.5:
        return None
    count = f"{int(wrong.sum())} of {wrong.size} elements are wrong"
    if not analytic[wrong].any():
        return f"{count} and get nothing: is a border, a stride or the last element left out?"
    return (
        f"{count}, the others are right: contributions that overwrite instead of adding up, "
        "a border, or a rule for ties"
    )
