"""Schedules and phases: every learning rate and momentum of training, computed before it begins.

    fine_tune(n):  the head alone for an epoch, then everything for n epochs, with discriminative
    learning rates: later layers learn faster than earlier ones

Source: fastai 2.8.12 `callback/schedule.py` to the last bit (the pieces of a schedule are located
in single precision there, so they are here), `Learner.fine_tune` and `fit_one_cycle`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

MOMENTUMS = (0.95, 0.85, 0.95)
HEAD_ALONE = "head alone"
MOST_STEPS = 10_000_000  # 100 epochs of ImageNet in batches of 16 are 8 million


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
    """The share of training done before each step: a running sum, restarted at every epoch."""
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
    rates = np.atleast_1d(value)
    for rate in rates:
        expect_number("a learning rate", rate)
    values = [float(rate) for rate in rates]
    if len(values) == 1:
        return values * n
    if len(values) != n:
        raise ValueError(
            f"expected one learning rate for each of the {n} groups, got {len(values)}"
        )
    return values


# ---------------------------------------------------------------------------------------- phases


@dataclass(frozen=True)
class Phase:
    """A stretch of training with the same layers frozen and one schedule.

    `first_trainable` is the number of frozen groups. lr (steps, groups) and momentum (steps,) are
    what each step uses.
    """

    name: str
    first_trainable: int
    epochs: int
    steps_per_epoch: int
    lr: np.ndarray
    momentum: np.ndarray

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Phase:
        """From what `dataclasses.asdict` gives, also after JSON."""
        arrays = {name: np.array(values[name], np.float64) for name in ("lr", "momentum")}
        return cls(**{**values, **arrays})


def one_cycle_phase(
    name: str,
    epochs: int,
    steps_per_epoch: int,
    lr_max: float | slice | Sequence[float],
    n_groups: int,
    *,
    first_trainable: int,
    pct_start: float = 0.25,
    div: float = 25.0,
    div_final: float = 1e5,
    moms: tuple[float, float, float] = MOMENTUMS,
) -> Phase:
    """One cycle: rates rise from lr_max / div to lr_max, then fall to lr_max / div_final; momentum
    mirrors them.

    Raises: ValueError for an argument out of its range
    """
    _expect_counts(epochs, steps_per_epoch, first_trainable, n_groups)
    expect_number("pct_start", pct_start, 1)
    expect_number("div", div, above_0=True)
    expect_number("div_final", div_final, above_0=True)
    _expect_momentums(moms)
    peaks = per_group(lr_max, n_groups)
    at = positions(epochs, steps_per_epoch)
    lr = [
        [one_cycle(q, pct_start, (peak / div, peak, peak / div_final)) for peak in peaks]
        for q in at
    ]
    return Phase(
        name,
        first_trainable,
        epochs,
        steps_per_epoch,
        np.array(lr, np.float64).reshape(len(at), n_groups),
        np.array([one_cycle(q, pct_start, moms) for q in at], np.float64),
    )


def _expect_counts(epochs: int, steps_per_epoch: int, first_trainable: int, n_groups: int) -> None:
    """Raises: ValueError for what is no count, or too large for a plan"""
    counts = isinstance(epochs, int | np.integer) and isinstance(first_trainable, int | np.integer)
    if not counts or epochs < 0 or not 0 <= first_trainable <= n_groups:
        raise ValueError(
            f"epochs should be at least 0 and first_trainable from 0 to {n_groups}, both whole "
            f"numbers; got {epochs!r} and {first_trainable!r}"
        )
    if epochs * steps_per_epoch > MOST_STEPS:
        raise ValueError(
            f"{epochs:,} epochs of {steps_per_epoch:,} steps are more than the {MOST_STEPS:,} that "
            "a plan can have, with a rate for each; train in several runs"
        )


def _expect_momentums(moms: Sequence[float]) -> None:
    """Raises: ValueError unless these are three that an average can be made with"""
    if np.shape(moms) != (3,):
        raise ValueError(f"moms should be three momentums: start, middle, end; got {moms!r}")
    for momentum in moms:
        expect_number("a momentum", momentum, 1)
        if momentum == 1:
            raise ValueError("a momentum should be below 1, or nothing new ever counts; got 1")


def fine_tune_phases(
    epochs: int,
    steps_per_epoch: int,
    n_groups: int,
    *,
    base_lr: float = 2e-3,
    freeze_epochs: int = 1,
    lr_mult: float = 100,
    pct_start: float = 0.3,
    div: float = 5.0,
    div_final: float = 1e5,
    moms: tuple[float, float, float] = MOMENTUMS,
    head_at: int | None = None,
) -> list[Phase]:
    """The two phases of `fine_tune`; freeze_epochs=0 leaves out the first, epochs=0 the second.
    Peaks: the head alone at base_lr, what else trains at a tenth of it; then everything, from
    base_lr / 2 / lr_mult for the first group to base_lr / 2 for the head, by equal factors.
    The groups from `head_at` on are the head's (default: the last), and learn at one rate.

    Raises: ValueError for an argument out of its range
    """
    expect_number("base_lr", base_lr)
    expect_number("lr_mult", lr_mult, above_0=True)
    body = n_groups - 1 if head_at is None else head_at

    def fit_one_cycle(
        name: str, epochs: int, lr: slice, *, frozen: int, **schedule: float
    ) -> Phase:
        peaks = per_group(lr, body + 1)  # the head's groups count as one
        peaks += peaks[-1:] * (n_groups - body - 1)
        return one_cycle_phase(
            name, epochs, steps_per_epoch, peaks, n_groups,
            first_trainable=frozen, div_final=div_final, moms=moms, **schedule,
        )  # fmt: skip

    # as fastai: pct_start=0.99 is below 100 steps a pure warm-up
    head = fit_one_cycle(HEAD_ALONE, freeze_epochs, slice(base_lr), frozen=body, pct_start=0.99)
    base_lr /= 2
    rates = slice(base_lr / lr_mult, base_lr)
    both = fit_one_cycle("everything", epochs, rates, frozen=0, pct_start=pct_start, div=div)
    return [phase for phase in (head, both) if phase.epochs]


def expect_phases(phases: Sequence[Phase], n_groups: int, steps_per_epoch: int) -> None:
    """Raises: ValueError unless these are phases, of names that differ, for so many groups and
    such epochs, with rates and momentums that can be; TypeError for what is no phase
    """
    for phase in phases:
        if not isinstance(phase, Phase):
            raise TypeError(
                f"expected phases, as tinyft.finetune.one_cycle_phase makes; got {phase!r:.60}"
            )
        wrong = None
        if phase.epochs < 1 or phase.steps_per_epoch != steps_per_epoch:
            wrong = f"{phase.epochs} epochs of {phase.steps_per_epoch} steps; expected at least "
            wrong += f"one, of the data's {steps_per_epoch}"
        elif not 0 <= phase.first_trainable <= n_groups:
            wrong = f"{phase.first_trainable} frozen groups; the learner has {n_groups} groups"
        elif phase.lr.shape != (phase.steps, n_groups) or len(phase.momentum) != phase.steps:
            wrong = f"rates (steps, groups) {phase.lr.shape} and {len(phase.momentum)} momentums; "
            wrong += f"expected {(phase.steps, n_groups)} and {phase.steps}"
        elif not (np.isfinite(phase.lr).all() and (phase.lr >= 0).all()):
            wrong = "a learning rate that is negative, NaN or infinite"
        elif not ((phase.momentum >= 0) & (phase.momentum < 1)).all():
            wrong = "a momentum that is not from 0 to below 1"
        if wrong:
            raise ValueError(f"the phase {phase.name!r} has {wrong}")
    names = [phase.name for phase in phases]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a plan needs phases whose names differ; got {names}")
