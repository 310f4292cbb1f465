"""The learning-rate finder: train a little with a rate that grows from tiny to huge, and watch
where the loss falls.

Source: Smith, Cyclical learning rates (2017); fastai 2.8.12 `Learner.lr_find` and its four
suggestion rules.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tinyft.data.loader import Batch
from tinyft.errors import NonFiniteLossError, RunError
from tinyft.finetune.groups import expect_comparable
from tinyft.finetune.records import SmoothLoss
from tinyft.finetune.run.state import undone

if TYPE_CHECKING:
    from tinyft.finetune.training import Training


@dataclass(frozen=True)
class Suggestion:
    """A learning rate, and in a sentence how the rule came to it."""

    lr: float
    working: str


@dataclass(frozen=True)
class LrFinding:
    """The curve, raw and smoothed, and what each rule reads from it."""

    lrs: np.ndarray
    losses: np.ndarray
    smooth_losses: np.ndarray
    suggestions: dict[str, Suggestion]

    def __str__(self) -> str:
        lines = [
            f"{rule:8} {found.lr:.2e}  {found.working}" for rule, found in self.suggestions.items()
        ]
        return "\n".join(lines)


def lr_find(
    training: Training,
    start_lr: float = 1e-7,
    end_lr: float = 10,
    num_it: int = 100,
    stop_div: bool = True,
) -> LrFinding:
    """Train up to `num_it` steps with one rate for all groups that grows from start_lr to end_lr.

    It stops when the smoothed loss exceeds four times its best (unless stop_div=False) or is no
    number. The learner is left exactly as it was, optimizer state and batch norm statistics
    included.
    Raises: ValueError for no whole number of steps, or rates that do not rise from above zero;
    DataError as a plan;
    RunError if there were too few steps to read anything from
    """
    training.own_data()
    if not isinstance(num_it, int | np.integer) or num_it < 1:
        raise ValueError(f"num_it must be a whole number of at least 1; got {num_it!r}")
    if not 0 < start_lr < end_lr < math.inf:
        raise ValueError(f"expected 0 < start_lr < end_lr; got {start_lr} and {end_lr}")
    expect_comparable(training.data, [norm.statistics for norm in training.batch_norms])
    # differs from fastai: counters and gradients are restored too
    with undone(training):
        lrs, losses, smooth, points = _sweep(training, start_lr, end_lr, num_it, stop_div)
    kept = slice(num_it // 10, max(0, points - 5))
    return LrFinding(
        np.array(lrs),
        np.array(losses),
        np.array(smooth, np.float32),
        suggest(np.array(lrs, np.float32)[kept], np.array(smooth, np.float32)[kept]),
    )


def _sweep(
    training: Training, start_lr: float, end_lr: float, num_it: int, stop_div: bool
) -> tuple[list[float], list[float], list[float], int]:
    """The rates that were tried, the loss of each step, and its smoothed value; and how many points
    fastai would have: it goes on after a NaN, and stops at the infinite one.
    """
    lrs, losses, smooth = [], [], []
    training.smooth = SmoothLoss()
    best = math.inf
    for i, batch in enumerate(endless_batches(training)):
        lr = start_lr * (end_lr / start_lr) ** (i / num_it)
        for group in training.groups:
            group.lr = lr
        try:
            record = training.train_step(batch, "lr_find")
            training.read_losses()
        except NonFiniteLossError as error:
            return lrs, losses, smooth, num_it if math.isnan(error.loss) else i + 1
        lrs.append(lr)
        losses.append(record.loss)
        smooth.append(record.smooth_loss)
        best = min(best, record.smooth_loss)
        if i + 1 == num_it or (stop_div and record.smooth_loss > 4 * best):
            break
    return lrs, losses, smooth, len(lrs)


def endless_batches(training: Training) -> Iterator[Batch]:
    """Training batches, epoch after epoch."""
    for epoch in itertools.count(training.epoch):
        yield from training.data.train_batches(epoch, training.preprocess)


def suggest(lrs: np.ndarray, losses: np.ndarray) -> dict[str, Suggestion]:
    """What fastai's four rules read from a curve (float32, float32), cut at the first NaN.

    Raises: RunError if fewer than two points are left
    """
    holes = np.flatnonzero(np.isnan(losses))
    if len(holes):
        lrs, losses = lrs[: holes[0]], losses[: holes[0]]
    if len(losses) < 2:
        raise RunError(
            f"the curve has only {len(losses)} usable points; give lr_find more steps, "
            "or a smaller start_lr if the loss exploded at once"
        )
    return {name: rule(lrs, losses) for name, rule in RULES.items()}


def valley(lrs: np.ndarray, losses: np.ndarray) -> Suggestion:
    """Halfway down the longest strictly falling subsequence."""
    n = len(losses)
    length = [1] * n
    start = best = 0
    for i in range(1, n):
        for j in range(i):
            if losses[i] < losses[j] and length[i] < length[j] + 1:
                length[i] = length[j] + 1
            if length[best] < length[i]:
                best = i
                start = best - length[best]  # as fastai: one too early
    third = (best - start) / 3
    index = start + int(third) + int(third / 2)
    first, last = lrs[max(start, 0)], lrs[best]
    working = f"the longest fall goes from {first:.2e} to {last:.2e}; this lies halfway down it"
    if best == 0:
        working = "the loss falls nowhere: the first rate of the curve"
    elif index < 0:
        working = "the loss falls once, at the start: too short a curve; the last rate of it"
    return Suggestion(float(lrs[index]), working)


def slide(lrs: np.ndarray, losses: np.ndarray) -> Suggestion:
    """The last rate, coming from the right, before the slope over 15 points becomes even."""
    slope = np.gradient(losses)
    right, left = -1, -16
    left = max(left, -len(losses))
    found = lrs[left]
    while left >= -len(losses) and abs(slope[right] - slope[left]) > 0.005:
        found = lrs[left]
        right, left = right - 1, left - 1
    if left >= -len(losses):
        working = "coming from the right, the slope over 15 points becomes even here"
    else:
        working = "the slope over 15 points is even nowhere: the first rate of the curve"
    return Suggestion(float(found), working)


def minimum(lrs: np.ndarray, losses: np.ndarray) -> Suggestion:
    """A tenth of the rate with the smallest loss."""
    index = int(losses.argmin())
    return Suggestion(
        float(lrs[index]) / 10, f"the smallest loss is at {lrs[index]:.2e}; a tenth of it"
    )


def steep(lrs: np.ndarray, losses: np.ndarray) -> Suggestion:
    """The rate at which the loss falls fastest per multiple of the rate."""
    slope = (losses[1:] - losses[:-1]) / (np.log(lrs[1:]) - np.log(lrs[:-1]))
    index = int(slope.argmin())
    return Suggestion(float(lrs[index]), "the loss falls fastest per multiple of the rate")


RULES: dict[str, Callable[[np.ndarray, np.ndarray], Suggestion]] = {
    "valley": valley,
    "slide": slide,
    "minimum": minimum,
    "steep": steep,
}
