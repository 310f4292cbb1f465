"""Schedules: learning rate and momentum as functions of how much of training is done.

Source: fastai 2.8.12 `callback/schedule.py`, to the last bit: the pieces of a schedule are located
in single precision there, so they are here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np


def cosine(start: float, end: float, position: float) -> float:
    """From start to end along half a cosine, for a position from 0 to 1."""
    return start + (1 + math.cos(math.pi * (1 - position))) * (end - start) / 2


def one_cycle(position: float, pct_start: float, values: Sequence[float]) -> float:
    """values[0] to values[1] over the first `pct_start` (a fraction) of training, then values[2].

    Source: Smith, Super-convergence (2018); fastai's `combined_cos`
    """
    single = np.float32
    borders = [single(0), single(pct_start), single(single(pct_start) + single(1 - pct_start))]
    piece = 1 if single(position) >= borders[1] else 0
    done = (single(position) - borders[piece]) / (borders[piece + 1] - borders[piece])
    return cosine(values[piece], values[piece + 1], float(done))


def positions(epochs: int, steps_per_epoch: int) -> list[float]:
    """The share of training that is done before each step: a running sum, restarted at every
    epoch.
    """
    out = []
    for epoch in range(epochs):
        position = epoch / epochs
        for _ in range(steps_per_epoch):
            out.append(position)
            position += 1 / (steps_per_epoch * epochs)
    return out


def even_mults(low: float, high: float, n: int) -> list[float]:
    """n numbers from low to high, each the same multiple of the one before."""
    if n == 1:
        return [high]
    ratio = (high / low) ** (1 / (n - 1))
    return [low * ratio**i for i in range(n)]


def expect_number(
    name: str, value: float, most: float = math.inf, *, above_0: bool = False
) -> None:
    """Raises: ValueError unless the value is a finite number from 0 to `most`, or above 0"""
    fits = isinstance(value, Real) and math.isfinite(value) and 0 <= value <= most
    if not fits or (above_0 and value == 0):
        least = "above 0" if above_0 else "of at least 0"
        limits = least if most == math.inf else f"from 0 to {most:g}"
        raise ValueError(f"{name} should be a finite number {limits}; got {value!r}")


def per_group(value: float | slice | Sequence[float], n: int) -> list[float]:
    """One value per layer group, by fastai's rules.

    A number: the same for all. slice(high): high / 10 for all but the last. slice(low, high): even
    multiples.
    Raises: ValueError for a sequence of another length than n, a slice without its highest rate,
    what is no rate
    """
    if isinstance(value, slice):
        if value.stop is None:
            raise ValueError(f"expected slice(high) or slice(low, high); got {value}")
        for rate in (value.start or 0, value.stop):
            expect_number("a learning rate", rate)
        if value.start:
            return even_mults(value.start, value.stop, n)
        return [value.stop / 10] * (n - 1) + [value.stop]
    for rate in np.atleast_1d(value):
        expect_number("a learning rate", rate)
    if np.ndim(value) == 0:
        return [float(value)] * n
    values = [float(v) for v in value]
    if len(values) == 1:
        return values * n
    if len(values) != n:
        raise ValueError(
            f"expected one learning rate for each of the {n} groups, got {len(values)}"
        )
    return values
