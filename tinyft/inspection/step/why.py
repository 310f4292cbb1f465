"""Why did the loss change in this step?

The gradient predicts: a small update d changes the loss by <gradient, d>. What is measured differs,
and each part of the difference has a name:

    predicted          <gradient, update>, summed over all weights
    + curvature        the loss is no plane: measured on the same batch with the same dropout masks
    = in training
    + dropout          the same without dropout
    + batch norm       normalised by running statistics, as they were before the step
    + statistics       these statistics moved in the step, too
    = in evaluation

Each line is measured by changing one thing, so they add up exactly. "In training" is the step's own
batch before and after its update, which no training loop shows: the next recorded loss is that of
other pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tinyft.display import aligned
from tinyft.finetune.groups import Group
from tinyft.finetune.norms import UpdateSums, total
from tinyft.inspection.step.moment import Moment
from tinyft.inspection.step.probe import (
    MODES,
    Look,
    look,
    put_statistics,
    put_weights,
    statistics_of,
    weights_of,
)

PICTURES = 3  # that got better, and worse, in the text


@dataclass(frozen=True)
class GroupEffect:
    """One layer group's part in a step.

    `distance` is |update| / |weights|; `of_rate` the root mean square of what the updated weights
    moved, in learning rates: near 1 for the first steps of Adam, less once gradients disagree.
    `predicted` is <gradient, update>, of which `by_decay` comes from weight decay; `alone` what
    the loss changes by, measured, if this group alone moves.
    """

    name: str
    lr: float
    frozen: bool
    distance: float
    of_rate: float
    predicted: float
    by_decay: float
    alone: float


@dataclass(frozen=True)
class Explanation:
    """What a step did to the loss of its own batch; see the head of this file.

    `before` and `after` hold a Look for each of MODES; `held` is evaluation after the step with the
    running statistics from before it. `names` are the batch's pictures.
    """

    where: str
    groups: list[GroupEffect]
    before: dict[str, Look]
    after: dict[str, Look]
    held: Look
    names: list[str]

    @property
    def predicted(self) -> float:
        return sum(group.predicted for group in self.groups)

    @property
    def in_training(self) -> float:
        """The change as measured on the same batch, with the same dropout masks."""
        return self._change("training")

    @property
    def in_evaluation(self) -> float:
        return self._change("evaluation")

    @property
    def curvature(self) -> float:
        return self.in_training - self.predicted

    @property
    def dropout(self) -> float:
        return self._change("no dropout") - self.in_training

    @property
    def batch_norm(self) -> float:
        held = self.held.loss - self.before["evaluation"].loss
        return held - self._change("no dropout")

    @property
    def statistics(self) -> float:
        return self.after["evaluation"].loss - self.held.loss

    @property
    def picture_changes(self) -> np.ndarray:
        """(N,): how each picture's own loss changed in training; negative is better."""
        return self.after["training"].each - self.before["training"].each

    def _change(self, mode: str) -> float:
        return self.after[mode].loss - self.before[mode].loss

    def __str__(self) -> str:
        before, after = self.before["training"], self.after["training"]
        return "\n".join([
            f"why did the loss change in {self.where}?",
            f"its {len(self.names)} pictures before and after: {before.loss:.5f} -> "
            f"{after.loss:.5f} in training, {self.before['evaluation'].loss:.5f} -> "
            f"{self.after['evaluation'].loss:.5f} in evaluation",
            "",
            *group_lines(self.groups),
            "",
            *self._sum_lines(),
            "",
            *self._picture_lines(),
        ])  # fmt: skip

    def _sum_lines(self) -> list[str]:
        rows = [
            ("predicted by the gradient", self.predicted),
            ("+ curvature", self.curvature),
            ("= in training, same pictures and dropout masks", self.in_training),
            ("+ dropout", self.dropout),
            ("+ batch norm by running statistics", self.batch_norm),
            ("+ running statistics moved", self.statistics),
            ("= in evaluation", self.in_evaluation),
        ]
        return aligned([[name, signed(value)] for name, value in rows])

    def _picture_lines(self) -> list[str]:
        """The pictures whose loss fell and rose most."""
        changes = self.picture_changes
        order = np.argsort(changes)
        better = [i for i in order if changes[i] < 0][:PICTURES]
        worse = [i for i in order[::-1] if changes[i] > 0][:PICTURES]
        count = int((changes < 0).sum())
        rows = [self._picture("better", i) for i in better]
        rows += [self._picture("worse", i) for i in worse]
        header = f"{count} of {len(changes)} pictures got better, {int((changes > 0).sum())} worse"
        if lost := int(np.isnan(changes).sum()):
            header += f"; of {lost} the loss is no number any more"
        return [header, *aligned(rows)] if rows else [header]

    def _picture(self, verdict: str, i: int) -> list[str]:
        before, after = self.before["training"].each[i], self.after["training"].each[i]
        return [verdict, f"{before:.4f} -> {after:.4f}", signed(after - before), self.names[i]]


def explain_step(moment: Moment) -> Explanation:
    """Take the moment's step, look at its batch from all sides, and undo everything.

    Raises: NonFiniteLossError if the loss before the step is no number
    """
    learner, batch = moment.learner, moment.batch
    files = learner.data.files("train")
    before = _looks(moment)
    old_weights, old_statistics = weights_of(learner), statistics_of(learner)
    try:
        sums = measured_step(moment)
        after = _looks(moment)
        new_weights = weights_of(learner)
        put_statistics(learner, old_statistics)
        held = look(learner, batch, "evaluation", step=moment.step)
        effects = []
        for group in learner.groups:
            put_weights(learner, old_weights)
            put_weights(learner, {name: new_weights[name] for name in group.parameters})
            moved = look(learner, batch, "training", step=moment.step).loss
            effects.append(_effect(group, sums, moved - before["training"].loss))
    finally:
        moment.restore()
    return Explanation(
        moment.where, effects, before, after, held, [files[i] for i in batch.ids.tolist()]
    )


def measured_step(moment: Moment) -> dict[str, UpdateSums]:
    """Make the moment's step as the learner is set now; the sums of each parameter's update.

    Without the feature cache, which holds for the plan's settings and not for others.
    """
    with np.errstate(all="ignore"):  # a rate that is ten times too high may overflow
        moment.learner.train_step(moment.batch, moment.phase.name, norms=True)
    return dict(moment.learner.updates)


def _looks(moment: Moment) -> dict[str, Look]:
    return {m: look(moment.learner, moment.batch, m, step=moment.step) for m in MODES}


def _effect(group: Group, sums: dict[str, UpdateSums], alone: float) -> GroupEffect:
    """What the step did to one group, from the sums of its parameters."""
    whole = total(sums[name] for name in group.parameters)
    by_decay = sum(_decayed(sums[name]) * sums[name].gradient_before for name in group.parameters)
    visited = sum(p.size for name, p in group.parameters.items() if sums[name].visited)
    way = group.lr * math.sqrt(visited)
    return GroupEffect(
        group.name,
        group.lr,
        group.frozen,
        whole.update_ratio,
        whole.update_norm / way if way else 0.0,
        whole.gradient_update,
        -by_decay,
        alone,
    )


def _decayed(sums: UpdateSums) -> float:
    """The share of a parameter's weights that decay took, as the optimizer rounded it."""
    return math.sqrt(sums.decay / sums.before_before) if sums.before_before else 0.0


def group_lines(groups: list[GroupEffect]) -> list[str]:
    """A table with one line a group."""
    header = ["group", "", "rate", "moved", "in rates", "predicted", "by decay", "measured alone"]
    rows = [
        [
            group.name,
            "frozen" if group.frozen else "trains",
            f"{group.lr:.2e}",
            f"{group.distance:.1e}",
            f"{group.of_rate:.2f}",
            signed(group.predicted),
            signed(group.by_decay),
            signed(group.alone),
        ]
        for group in groups
    ]
    return aligned([header, *rows])


def signed(value: float) -> str:
    """A change of a loss: with its sign, three digits at least, and no exponent for usual sizes."""
    if math.isnan(value):
        return " nan"
    if value == 0:
        return " 0"
    return f"{value:+.6f}" if abs(value) >= 1e-4 else f"{value:+.2e}"
