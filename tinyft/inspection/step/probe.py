"""The loss of one batch, seen as training sees it, without dropout, or as evaluation sees it.

Nothing moves: no gradient, no running statistic, no counter. So the same network can be looked at
again and again, and a difference between two looks has one cause.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tinyft import backends
from tinyft.data.loader import Batch
from tinyft.engine.tape import no_grad
from tinyft.engine.tensor import Tensor
from tinyft.finetune.learner import Learner

# as training: batch norms by their switches, dropout with the step's own masks
# no dropout: the same without dropout
# evaluation: batch norms by running statistics, no dropout
MODES = ("training", "no dropout", "evaluation")

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Look:
    """The loss of a batch, and of each of its pictures by itself: each (N,) float64."""

    loss: float
    each: np.ndarray


def look(learner: Learner, batch: Batch, mode: str, *, step: int) -> Look:
    """The batch's loss in one of MODES; `step` says which dropout masks the network draws.

    The loss is computed from the logits in float64: a step changes it by so little that in float32
    half of the digits of the difference would be noise. It may be infinite or NaN.

    Raises: ValueError for a mode that is none
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    quietly = np.errstate(all="ignore")  # a rate that is ten times too high may overflow
    with _mode(learner, mode, step), no_grad(), backends.use(learner.device), quietly:
        logits = learner.model(learner.input(batch.images)).data.astype(np.float64)
        rows = [(logits[i : i + 1], batch.labels[i : i + 1]) for i in range(len(batch.ids))]
        each = [learner.loss(Tensor.wrap(row), label).item() for row, label in rows]
        return Look(learner.loss(Tensor.wrap(logits), batch.labels).item(), np.array(each))


@contextlib.contextmanager
def _mode(learner: Learner, mode: str, step: int) -> Iterator[None]:
    """Within this block the network is in that mode and none of its statistics moves."""
    put_modes_back = learner.model.remember_modes()
    updates = [norm.updates for norm in learner.batch_norms]
    steps = [dropout.step for dropout in learner.dropouts]
    learner.model.train(mode != "evaluation")
    for norm in learner.batch_norms:
        norm.updates = False
    for dropout in learner.dropouts:
        dropout.training = mode == "training"
        dropout.step = step
    try:
        yield
    finally:
        put_modes_back()
        for norm, was in zip(learner.batch_norms, updates, strict=True):
            norm.updates = was
        for dropout, was in zip(learner.dropouts, steps, strict=True):
            dropout.step = was


def weights_of(learner: Learner) -> Arrays:
    """A copy of every parameter by its name."""
    return {n: p.data.copy("K") for group in learner.groups for n, p in group.parameters.items()}


def statistics_of(learner: Learner) -> list[tuple[np.ndarray, np.ndarray]]:
    """A copy of the running mean and variance of every batch norm."""
    return [(norm.running_mean.copy(), norm.running_var.copy()) for norm in learner.batch_norms]


def put_weights(learner: Learner, arrays: Mapping[str, np.ndarray]) -> None:
    """Write these numbers into the parameters of these names."""
    for group in learner.groups:
        for name, parameter in group.parameters.items():
            if name in arrays:
                parameter.data[...] = arrays[name]


def put_statistics(learner: Learner, saved: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Give every batch norm copies of these running statistics."""
    for norm, (mean, variance) in zip(learner.batch_norms, saved, strict=True):
        norm.running_mean, norm.running_var = mean.copy(), variance.copy()
