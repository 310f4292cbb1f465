"""A moment: a learner just before one step, with everything set as that step will have it, and
looks at the loss of its batch.

Any step of a run can be made again, to the bit: every draw comes from a generator keyed by the
seed and the step, and a checkpoint holds the rest. What-if steps, explanations of a loss and the
microscope all begin with a moment; `take` makes the step, `restore` undoes it, as often as you
like. A look (`look`) moves nothing: no gradient, no running statistic, no counter. So the same
network can be looked at again and again, and a difference between two looks has one cause.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tinyft import backends
from tinyft.data.loader import Batch
from tinyft.engine.tape import no_grad
from tinyft.engine.tensor import Tensor
from tinyft.errors import RunError
from tinyft.finetune.answering import softmax
from tinyft.finetune.feature_cache import FeatureCache
from tinyft.finetune.learner import Learner
from tinyft.finetune.plan import Plan
from tinyft.finetune.records import StepRecord, UpdateSums
from tinyft.finetune.run.reading import MaybeMoved, read_description
from tinyft.finetune.run.resume import recreate
from tinyft.finetune.run.state import bookmark
from tinyft.finetune.schedule import Phase
from tinyft.inspection.trace.activations import Change, changing

MODES = (
    "training",  # batch norms by their switches, dropout with the step's own masks
    "no dropout",  # the same without dropout
    "evaluation",  # batch norms by running statistics, no dropout
)


@dataclass(frozen=True)
class Look:
    """The loss of a batch, and of each of its pictures by itself: each (N,) float64; and what the
    network says of them: probabilities (N, C) float64.
    """

    loss: float
    each: np.ndarray
    probabilities: np.ndarray


@dataclass(repr=False)
class Moment:
    """A learner that is about to make step `step` of `phase` on `batch`.

    The phase is entered (what is frozen, the batch norms' switches) and each group has the step's
    learning rate and momentum. `step` counts over the learner's life, as in metrics.csv;
    `step_in_phase` from the phase's first. `notices` are sentences on what may make the bits of a
    run differ.

    Example:
        moment = Moment.of_run("runs/pets-resnet18-1", 17)
        loss = moment.take().loss
        moment.restore()
        assert moment.take().loss == loss
    """

    learner: Learner
    plan: Plan
    phase: Phase
    step: int
    step_in_phase: int
    batch: Batch
    notices: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._kept = self._features_so_far()
        self._put_back: Callable[[], None] = bookmark(self.learner)

    def __repr__(self) -> str:
        return f"<Moment: before {self.where}>"

    @classmethod
    def of_run(cls, path: str | os.PathLike[str], step: int, data: MaybeMoved = None) -> Moment:
        """The moment before step `step` of the run at `path`, in the numbers of metrics.csv.

        The learner is made again from run.json and the newest checkpoint that is not beyond the
        step; the steps between are replayed. Nothing is written. `data` is the folder that
        its pictures were moved to, or, where the run was made from arrays in memory, those.
        Raises: RunError for a step that the plan does not have, data or weights that have
        changed, a run that cannot be made again
        """
        description = read_description(Path(path))
        first, steps = description["first_step"], description["steps"]
        if not first <= step < first + steps:
            raise RunError(
                f"{path} has no step {step}: its steps are {first} to {first + steps - 1}, "
                "counted as in metrics.csv"
            )
        learner, plan, done, notices, _ = recreate(path, data, last=step)
        if done < step - first:
            for record in learner.steps(plan, start=done):
                if record.step == step - 1:
                    break
        moment = cls.of(learner, plan, step - first)
        moment.notices += notices
        return moment

    @classmethod
    def of(cls, learner: Learner, plan: Plan, step: int) -> Moment:
        """The moment before step `step` of `plan` (from 0), for a learner that has made the steps
        before it. It enters the step's phase, as it would by itself.

        Raises: ValueError if the plan has no such step, or the learner has made more or fewer
        """
        number, i = plan.at(step)
        if learner.step != plan.first_step + step:
            raise ValueError(
                f"the learner has made {learner.step} steps; before step {step} of a plan that "
                f"began with step {plan.first_step} it has made {plan.first_step + step}"
            )
        phase = plan.phases[number]
        learner.enter(phase, **plan.switches, resumed=i > 0)
        learner.set_rates(phase, i)
        in_epoch = i % phase.steps_per_epoch
        batch = next(learner.own_data().train_batches(learner.epoch, learner.preprocess, in_epoch))
        return cls(learner, plan, phase, learner.step, i, batch)

    @property
    def phase_number(self) -> int:
        """The place of the phase among the plan's, from 0."""
        return next(i for i, phase in enumerate(self.plan.phases) if phase is self.phase)

    @property
    def where(self) -> str:
        """The place of the step in words: as `finetune` names epochs, and steps from 0 on as in
        metrics.csv.
        """
        return (
            f"step {self.step}, in epoch {self.learner.epoch + 1} (phase {self.phase.name!r}, "
            f"its step {self.step_in_phase} of {self.phase.steps})"
        )

    def take(self) -> StepRecord:
        """Make the step. As in a run, but without the validation that ends an epoch, which moves
        nothing.
        """
        cache = self._kept
        if cache is None and self.plan.cached_bytes[self.phase_number]:
            cache = FeatureCache(self.learner)
        self.learner.cache = cache
        try:
            return self.learner.train_step(self.batch, self.phase.name)
        finally:
            self.learner.cache = None

    def measured_step(self) -> dict[str, UpdateSums]:
        """Make the step as the learner is set now; the sums of each parameter's update.

        Without the feature cache, which holds for the plan's settings and not for others.
        """
        with np.errstate(all="ignore"):  # a rate that is ten times too high may overflow
            self.learner.train_step(self.batch, self.phase.name, norms=True)
        assert self.learner.updates is not None  # norms were asked for
        return dict(self.learner.updates)

    def look(self, mode: str, change: Mapping[str, Change] = {}) -> Look:
        """The batch's loss in one of MODES, by the network as it is now, with the step's dropout
        masks; with a `change` of layers' outputs, see tinyft/inspection/trace/activations.py. It
        may be infinite or NaN.

        It is computed from the logits in float64: a step changes it by so little that in float32
        half of the digits of the difference would be noise.
        Raises: ValueError for a mode that is none
        """
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
        learner, batch = self.learner, self.batch
        quietly = np.errstate(all="ignore")  # a rate that is ten times too high may overflow
        with _mode(learner, mode, self.step), no_grad(), backends.use(learner.device), quietly:
            with changing(learner.model, change):
                logits = learner.model(learner.input(batch.images)).data.astype(np.float64)
            rows = [(logits[i : i + 1], batch.labels[i : i + 1]) for i in range(len(batch.ids))]
            each = [learner.loss(Tensor.wrap(row), label).item() for row, label in rows]
            loss = learner.loss(Tensor.wrap(logits), batch.labels).item()
            return Look(loss, np.array(each), softmax(backends.host(logits)))

    def restore(self) -> None:
        """Put the learner back to just before the step, bit for bit: weights, statistics,
        gradients, the optimizer's memory, counters, what is frozen, history.
        """
        self._put_back()

    def _features_so_far(self) -> FeatureCache | None:
        """The body's features of the batch, where the run had kept them: from the second epoch on
        of a phase that does.
        """
        is_later = self.step_in_phase >= self.phase.steps_per_epoch
        if not (is_later and self.plan.cached_bytes[self.phase_number]):
            return None
        cache = FeatureCache(self.learner)
        with backends.use(self.learner.device):
            cache.features(self.batch)
        return cache


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
        for dropout, at in zip(learner.dropouts, steps, strict=True):
            dropout.step = at


def weights_of(learner: Learner) -> dict[str, np.ndarray]:
    """A copy of every parameter by its name."""
    return {n: p.data.copy("K") for group in learner.groups for n, p in group.parameters.items()}


def put_weights(learner: Learner, arrays: Mapping[str, np.ndarray]) -> None:
    """Write these arrays into the parameters of these names."""
    for group in learner.groups:
        for name, parameter in group.parameters.items():
            if name in arrays:
                parameter.data[...] = arrays[name]
