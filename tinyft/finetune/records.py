"""Records that training leaves behind: of every step and its size, evaluations, predictions."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from tinyft import backends
from tinyft.backends import Backend
from tinyft.display import Displayed, aligned, counted
from tinyft.engine.tensor import Tensor
from tinyft.finetune.groups import Group, Proof


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate` over n pictures: the share that was right, and the mean loss; where
    classes are uneven, also the mean of each class's share, which counts rare ones as others.

    With class weights that is, as fastai's, the mean of the batches' weighted means: other batches,
    another loss.
    """

    n: int
    accuracy: float
    loss: float
    balanced_accuracy: float | None = None


@dataclass(frozen=True)
class Prediction(Displayed):
    """The most probable class of one picture; `probabilities` are in the order of
    `learner.classes`. The rest is None where the learner does not know its training pictures.

    `similarity` is the mean cosine with the `nearest` training pictures, which are named, and
    `unlike` says if that is less than most validation pictures have; see known.py.
    """

    file: str
    label: str
    probability: float
    probabilities: np.ndarray
    similarity: float | None = None
    unlike: bool | None = None
    nearest: tuple[str, ...] | None = None


@dataclass(frozen=True)
class GroupRecord:
    """One step of one layer group. Norms are measured on request; `updated` counts
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
        """True if the losses can be read without waiting for the device; on the CPU always."""
        return self.measured.array is None

    def lines(self) -> list[str]:
        """The step, its loss, its validation and its proof, a line each."""
        of = counted(len(self.ids), "picture")
        lines = [f"step {self.step}, epoch {self.epoch + 1}, {self.phase}: loss {self.loss:.4f}, "
                 f"smoothed {self.smooth_loss:.4f}; {of}"]  # fmt: skip
        if self.validation:
            v = self.validation
            fair = "" if v.balanced_accuracy is None else f", balanced {v.balanced_accuracy:.4f}"
            lines.append(f"validation: accuracy {v.accuracy:.4f}{fair}, loss {v.loss:.4f} on {v.n}")
        return [*lines, str(self.proof)] if self.proof else lines

    def rows(self) -> list[list[str]]:
        """A line for each group, below GROUP_COLUMNS; "-" is what was not measured."""
        return [
            [g.name, "frozen" if g.frozen else "trains", f"{g.lr:.2e}", f"{g.momentum:.3f}",
             *("-" if v is None else f"{v:.2e}" for v in
               (g.gradient_norm, g.weight_norm, g.update_norm))]
            for g in self.groups
        ]  # fmt: skip

    def __str__(self) -> str:
        return "\n".join([*self.lines(), *aligned([GROUP_COLUMNS, *self.rows()], indent="  ")])


GROUP_COLUMNS = ("group", "state", "lr", "momentum", "gradient", "weights", "update")


class Losses:
    """The losses of a learner's steps, left on the device until somebody reads one.

    Reading waits for the device. All that are due are fetched then, in the order of their steps,
    which is how the smoothed loss follows them.
    """

    def __init__(self) -> None:
        self.due: list[StepLoss] = []
        self.wrong: StepLoss | None = None  # the first that is NaN or infinite, until taken

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
        """Return the first loss since the last call that is NaN or infinite."""
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


# ------------------------------------------------------------------------------- the size of a step

# With w the weights before, v those after, d = v - w and g the gradient, eight sums over each
# parameter say everything that the ledger prints. They add up: those of a layer group are the sums
# of its parameters' sums.


class UpdateSums(NamedTuple):
    """Sums over the elements of a parameter, or of several; norms are L2 over all of them.

    The update has two parts: `decay` is the square of what weight decay took from the weights,
    `rest` that of what is left, which came from the gradient, past ones included.
    """

    before_before: float = 0.0  # w * w
    after_after: float = 0.0  # v * v
    update_update: float = 0.0  # d * d
    before_update: float = 0.0  # w * d
    gradient_gradient: float = 0.0  # g * g
    gradient_update: float = 0.0  # g * d
    gradient_before: float = 0.0  # g * w
    moved: float = 0.0  # how many elements have d != 0
    decay: float = 0.0
    rest: float = 0.0
    visited: int = 0  # parameters that the optimizer updated

    @property
    def weight_norm_before(self) -> float:
        return math.sqrt(self.before_before)

    @property
    def weight_norm(self) -> float:
        return math.sqrt(self.after_after)

    @property
    def update_norm(self) -> float:
        return math.sqrt(self.update_update)

    @property
    def gradient_norm(self) -> float:
        return math.sqrt(self.gradient_gradient)

    @property
    def update_ratio(self) -> float:
        """|update| / |weights before|; 0 / 0 is 0."""
        return _ratio(self.update_norm, self.weight_norm_before)

    @property
    def cosine(self) -> float:
        """Of the update and the negative gradient: 1 if the step goes straight downhill."""
        return -_ratio(self.gradient_update, self.gradient_norm * self.update_norm)


class UpdateMeasure:
    """Measures a step: the optimizer makes each update within a block of `update`.

    The norm of a parameter that is not updated is taken once and remembered.
    """

    def __init__(self, groups: Sequence[Group]):
        self.groups = groups
        self.measured: dict[str, tuple[np.ndarray, float]] = {}
        self.resting: dict[str, UpdateSums] = {}

    @contextlib.contextmanager
    def update(
        self, name: str, parameter: Tensor, decay: float, *, by_kernel: bool
    ) -> Iterator[None]:
        """Measure what happens to the parameter within this block. `decay` is lr * weight_decay,
        rounded here as the optimizer rounds it: 1 - 2e-8 is 1 in float32, and nothing decays.

        With `by_kernel` the kernels of optimizers within the block are measured, which is quick;
        without, the parameter is copied, and whatever moves it is measured.
        """
        backend = parameter.backend
        assert parameter.grad is not None  # an optimizer updates no other
        measured = backend.measured if by_kernel else functools.partial(Backend.measured, backend)
        with measured(parameter.data, parameter.grad) as updates:
            yield
        decay = 1 - float(parameter.data.dtype.type(1 - decay))
        self.measured[name] = _summed(updates), decay

    def take(self) -> dict[str, UpdateSums]:
        """The sums of every parameter over the step that was measured, by name."""
        sums = {}
        for group in self.groups:
            for name, parameter in group.parameters.items():
                if name in self.measured:
                    self.resting.pop(name, None)
                    array, decay = self.measured.pop(name)
                    values = array.tolist()  # waits for a GPU
                    before, _, update, before_update = values[:4]
                    rest = update + 2 * decay * before_update + decay**2 * before  # |d + decay w|^2
                    parts = decay**2 * before, max(rest, 0.0)
                    sums[name] = UpdateSums._make([*values, *parts, 1])
                    continue
                if name not in self.resting:
                    data = parameter.data
                    square = parameter.backend.update_sums(data, data, data).tolist()[0]
                    self.resting[name] = UpdateSums(before_before=square, after_after=square)
                sums[name] = self.resting[name]
        return sums


def _summed(updates: list[np.ndarray]) -> np.ndarray:
    """One update's eight sums from those of all updates that a parameter had in a step.

    A step updates a parameter once. If a faulty optimizer does so twice, w is from before the first
    and v from after the last, and the ledger's check of the books reports the difference.
    """
    if len(updates) == 1:
        return updates[0]
    whole, at_start = sum(updates[1:], updates[0]), [0, 4, 6]  # w * w, g * g, g * w
    whole[at_start], whole[1] = updates[0][at_start], updates[-1][1]
    return whole


def total(sums: Iterable[UpdateSums]) -> UpdateSums:
    """The sums of several parameters together."""
    return UpdateSums(*map(sum, zip(*sums, strict=True)))


def group_records(groups: Sequence[Group], sums: dict[str, UpdateSums] | None) -> list[GroupRecord]:
    """Record a step of each group; norms only where they were measured."""
    records = []
    for group in groups:
        record = GroupRecord(group.name, group.lr, group.momentum, group.weight_decay, group.frozen)
        if sums is not None:
            whole = total(sums[name] for name in group.parameters)
            record = replace(
                record, gradient_norm=whole.gradient_norm, update_norm=whole.update_norm,
                weight_norm=whole.weight_norm, updated=whole.visited,
            )  # fmt: skip
        records.append(record)
    return records


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0
