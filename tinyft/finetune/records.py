"""What training leaves behind: a record of every step, evaluations, predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyft import backends
from tinyft.display import Displayed, aligned
from tinyft.finetune.proof import Proof

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found over n pictures: the share that was right, and the mean loss.

    With class weights that is, as fastai's, the mean of the batches' weighted means: other batches,
    another loss.
    """

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
class StepRecord(Displayed):
    """One optimizer step. Counts are from 0 over the life of the learner.

    `smooth_loss` is fastai's running value; `validation` is set on an epoch's last step, `proof`
    on a phase's.
    """

    phase: str
    epoch: int
    step: int
    ids: np.ndarray
    measured: StepLoss
    groups: list[GroupRecord]
    validation: Evaluation | None = None
    proof: Proof | None = None

    @property
    def loss(self) -> float:
        return self.measured.fetched().value

    @property
    def smooth_loss(self) -> float:
        return self.measured.fetched().smoothed

    @property
    def is_fetched(self) -> bool:
        """Whether the losses can be read without waiting for the device; on the CPU always."""
        return self.measured.array is None

    def facts(self) -> list[str]:
        """What is true of the whole step, in sentences."""
        found = [f"step {self.step}, epoch {self.epoch + 1}, {self.phase}: loss {self.loss:.4f}, "
                 f"smoothed {self.smooth_loss:.4f}; {len(self.ids)} pictures"]  # fmt: skip
        if self.validation:
            v = self.validation
            found.append(f"validation: accuracy {v.accuracy:.4f}, loss {v.loss:.4f} on {v.n}")
        return [*found, str(self.proof)] if self.proof else found

    def rows(self) -> list[list[str]]:
        """A line for each group, below GROUP_COLUMNS; "-" is what was not measured."""
        return [
            [g.name, "frozen" if g.frozen else "trains", f"{g.lr:.2e}", f"{g.momentum:.3f}",
             *("-" if v is None else f"{v:.2e}" for v in
               (g.gradient_norm, g.weight_norm, g.update_norm))]
            for g in self.groups
        ]  # fmt: skip

    def __str__(self) -> str:
        table = aligned([GROUP_COLUMNS, *self.rows()])
        return "\n".join([*self.facts(), *(f"  {line}" for line in table)])


GROUP_COLUMNS = ("group", "state", "lr", "momentum", "gradient", "weights", "update")


class Losses:
    """The losses of a learner's steps, left on the device until somebody reads one.

    Reading waits for the device. All that are due are fetched then, in the order of their steps,
    which is how the smoothed loss follows them.
    """

    def __init__(self) -> None:
        self.due: list[StepLoss] = []
        self.wrong: StepLoss | None = None  # the first that is no number, until it is taken

    def add(self, step: int, array: Any, smooth: SmoothLoss, rates: list[float]) -> StepLoss:
        """The loss () of a step at these learning rates, which will be smoothed by `smooth`."""
        self.due.append(StepLoss(self, step, array, smooth, rates))
        return self.due[-1]

    def fetch(self) -> None:
        """Read all that are due."""
        while self.due:
            loss = self.due.pop(0)
            loss.value, loss.array = backends.host(loss.array).item(), None
            if math.isfinite(loss.value):
                loss.smoothed = loss.smooth.add(loss.value)
            elif self.wrong is None:
                self.wrong = loss

    def take_wrong(self) -> StepLoss | None:
        """The first loss since the last call that is no number."""
        self.fetch()
        wrong, self.wrong = self.wrong, None
        return wrong


@dataclass
class StepLoss:
    """The loss of one step: `array` while it is on the device, then `value` and `smoothed`."""

    losses: Losses
    step: int
    array: Any
    smooth: SmoothLoss
    rates: list[float]  # of each group
    value: float = math.nan
    smoothed: float = math.nan

    def fetched(self) -> StepLoss:
        """Itself, read from the device."""
        if self.array is not None:
            self.losses.fetch()
        return self


@dataclass
class SmoothLoss:
    """fastai's reported training loss: an exponential mean with bias correction, in single
    precision and to the last bit.

    Source: fastai 2.8.12 `AvgSmoothLoss(beta=0.98)`
    """

    value: float = 0.0
    count: int = 0

    def add(self, loss: float) -> float:
        single = np.float32
        self.count += 1
        old, new, beta = single(self.value), single(loss), single(0.98)
        # as torch.lerp(new, old, beta): from the nearer end, and the product is not rounded
        step = np.float64(beta - single(1)) * np.float64(old - new)
        self.value = float(single(np.float64(old) + step))
        return float(single(self.value) / single(1 - 0.98**self.count))
