"""The recipe: which phases training has, and every learning rate of each, computed before anything
runs.

    fine_tune(n):  the head alone for an epoch, then everything for n epochs, later layers faster
    than earlier ones

Source: fastai 2.8.12 `Learner.fine_tune` and `fit_one_cycle`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyft.finetune.schedule import expect_number, one_cycle, per_group, positions

MOMENTUMS = (0.95, 0.85, 0.95)
HEAD_ALONE = "head alone"
MOST_STEPS = 10_000_000  # 100 epochs of ImageNet in batches of 16 are 8 million


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
        return cls(**values | arrays)


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

    Raises: ValueError for numbers that cannot be
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
    The groups from `head_at` on are the head's (default: the last), and learn at one rate.

    Raises: ValueError for numbers that cannot be
    """
    expect_number("base_lr", base_lr)
    expect_number("lr_mult", lr_mult, above_0=True)
    body = n_groups - 1 if head_at is None else head_at
    frozen = one_cycle_phase(
        HEAD_ALONE,
        freeze_epochs,
        steps_per_epoch,
        _with_one_head(slice(base_lr), body, n_groups),
        n_groups,
        first_trainable=body,
        pct_start=0.99,  # as fastai: below 100 steps a pure warm-up
        div_final=div_final, moms=moms,
    )  # fmt: skip
    base_lr /= 2
    unfrozen = one_cycle_phase(
        "everything",
        epochs,
        steps_per_epoch,
        _with_one_head(slice(base_lr / lr_mult, base_lr), body, n_groups),
        n_groups,
        first_trainable=0,
        pct_start=pct_start, div=div, div_final=div_final, moms=moms,
    )  # fmt: skip
    return [phase for phase in (frozen, unfrozen) if phase.epochs]


def _with_one_head(rates: slice, body: int, n_groups: int) -> list[float]:
    """A rate for each group: `per_group` of the body's groups and the head as one."""
    found = per_group(rates, body + 1)
    return found + found[-1:] * (n_groups - body - 1)


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
            wrong = "a learning rate that is negative or no number"
        elif not ((phase.momentum >= 0) & (phase.momentum < 1)).all():
            wrong = "a momentum that is not from 0 to below 1"
        if wrong:
            raise ValueError(f"the phase {phase.name!r} has {wrong}")
    names = [phase.name for phase in phases]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a plan needs phases whose names differ; got {names}")
