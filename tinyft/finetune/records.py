"""What training leaves behind: a record of every step, evaluations, predictions.

Next: tinyft/finetune/proof.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tinyft.finetune.proof import Proof

if TYPE_CHECKING:
    from tinyft.finetune.learner import Learner
    from tinyft.finetune.plan import Plan


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found over n pictures: the share that was right, and the mean loss."""

    n: int
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Prediction:
    """The most probable class of one picture; `probabilities` are in the order of
    `learner.classes`.
    """

    file: str
    label: str
    probability: float
    probabilities: np.ndarray


@dataclass(frozen=True)
class GroupRecord:
    """What one step did to one layer group. Norms are measured on request; `updated` counts
    tensors with a gradient.
    """

    name: str
    lr: float
    momentum: float
    weight_decay: float
    frozen: bool
    gradient_norm: float | None = None
    update_norm: float | None = None
    weight_norm: float | None = None
    updated: int | None = None


@dataclass
class StepRecord:
    """One optimizer step. Counts are from 0 over the life of the learner.

    `smooth_loss` is fastai's running value; `validation` is set on an epoch's last step, `proof`
    on a phase's.
    """

    phase: str
    epoch: int
    step: int
    ids: np.ndarray
    loss: float
    smooth_loss: float
    groups: list[GroupRecord]
    validation: Evaluation | None = None
    proof: Proof | None = None


class Watcher(Protocol):
    """What can follow a run: a progress display, a run folder, a ledger."""

    def begin(self, learner: Learner, plan: Plan) -> None: ...

    def after_step(self, learner: Learner, record: StepRecord) -> None: ...

    def end(self, learner: Learner) -> None: ...


@dataclass
class SmoothLoss:
    """fastai's reported training loss: an exponential mean with bias correction, in single
    precision.

    Source: fastai 2.8.12 `AvgSmoothLoss(beta=0.98)`
    """

    value: float = 0.0
    count: int = 0

    def add(self, loss: float) -> float:
        single = np.float32
        self.count += 1
        self.value = float(single(loss) + single(0.98) * (single(self.value) - single(loss)))
        return self.value / (1 - 0.98**self.count)
