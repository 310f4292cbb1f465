"""Explains a loss: why did it change in this step, and why did it jump when the body was unfrozen?

Both answers are made by changing one thing at a time, so their lines add up exactly.

**In a step** the gradient predicts: a small update d changes the loss by <gradient, d>. What is
measured differs, and each part of the difference has a name:

    predicted          <gradient, update>, summed over all weights
    + curvature        the loss is no plane: measured on the same batch with the same dropout masks
    = in training
    + dropout          the same without dropout
    + batch norm       normalised by running statistics, as they were before the step
    + statistics       these statistics moved in the step, too
    = in evaluation

"In training" is the step's own batch before and after its update, which no training loop shows: the
next recorded loss is that of other pictures.

**At a switch of modes** one batch is looked at four times, as training sees it and as evaluation
does: before the step; after the switch alone; after the step without the body's update; after the
whole step. In tinyft unfreezing switches no batch norm (groups.py), so that the training loss of
"the switch alone" must be 0; what the eye takes for a jump there is a comparison of the validation
loss with the training loss, or of different pictures. In evaluation the switch adds what the
running statistics moved when the batch went through.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from tinyft.display import aligned, counted
from tinyft.finetune.groups import Group, freeze_to
from tinyft.finetune.records import UpdateSums, total
from tinyft.inspection.step.moment import MODES, Look, Moment, put_weights, weights_of

PICTURES = 3  # that got better, and worse, in the text
STATES = ("before", "modes switched", "without the body's update", "whole step")


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
    """A step's effect on the loss of its own batch; see the head of this file.

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
        rows = [
            ("predicted by the gradient", self.predicted),
            ("+ curvature", self.curvature),
            ("= in training, same pictures and dropout masks", self.in_training),
            ("+ dropout", self.dropout),
            ("+ batch norm by running statistics", self.batch_norm),
            ("+ running statistics moved", self.statistics),
            ("= in evaluation", self.in_evaluation),
        ]
        return "\n".join([
            f"why did the loss change in {self.where}?",
            f"its {counted(len(self.names), 'picture')} before and after: {before.loss:.5f} -> "
            f"{after.loss:.5f} in training, {self.before['evaluation'].loss:.5f} -> "
            f"{self.after['evaluation'].loss:.5f} in evaluation",
            "",
            *self._group_lines(),
            "",
            *aligned([[name, signed(value)] for name, value in rows]),
            "",
            *self._picture_lines(),
        ])  # fmt: skip

    def _group_lines(self) -> list[str]:
        """A table with one line a group."""
        header = ["group", "", "rate", "moved", "in rates", "predicted", "by decay",
                  "measured alone"]  # fmt: skip
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
            for group in self.groups
        ]
        return aligned([header, *rows])

    def _picture_lines(self) -> list[str]:
        """The pictures whose loss fell and rose most."""
        before, after, changes = (
            self.before["training"],
            self.after["training"],
            self.picture_changes,
        )
        order = np.argsort(changes)
        better = [i for i in order if changes[i] < 0][:PICTURES]
        worse = [i for i in order[::-1] if changes[i] > 0][:PICTURES]
        count = int((changes < 0).sum())
        rows = [
            [
                verdict,
                f"{before.each[i]:.4f} -> {after.each[i]:.4f}",
                signed(float(changes[i])),
                self.names[i],
            ]
            for verdict, chosen in (("better", better), ("worse", worse))
            for i in chosen
        ]
        header = f"{count} of {len(changes)} pictures got better, {int((changes > 0).sum())} worse"
        if lost := int(np.isnan(changes).sum()):
            header += f"; of {lost} the loss is NaN or infinite now"
        return [header, *aligned(rows)] if rows else [header]


def explain_step(moment: Moment) -> Explanation:
    """Take the moment's step, look at its batch from all sides, and undo everything.

    Raises: NonFiniteLossError if the loss before the step is NaN or infinite
    """
    learner = moment.learner
    files = learner.own_data().files("train")
    before = {mode: moment.look(mode) for mode in MODES}
    old_weights = weights_of(learner)
    statistics = [(norm, norm.running_mean, norm.running_var) for norm in learner.batch_norms]
    statistics = [(norm, mean.copy(), variance.copy()) for norm, mean, variance in statistics]
    try:
        sums = moment.measured_step()
        after = {mode: moment.look(mode) for mode in MODES}
        new_weights = weights_of(learner)
        for norm, mean, variance in statistics:
            norm.running_mean, norm.running_var = mean, variance
        held = moment.look("evaluation")
        effects = []
        for group in learner.groups:
            put_weights(learner, old_weights)
            put_weights(learner, {name: new_weights[name] for name in group.parameters})
            alone = moment.look("training").loss - before["training"].loss
            effects.append(_effect(group, sums, alone))
    finally:
        moment.restore()
    names = [files[i] for i in moment.batch.ids.tolist()]
    return Explanation(moment.where, effects, before, after, held, names)


def _effect(group: Group, sums: dict[str, UpdateSums], alone: float) -> GroupEffect:
    """A group's part in the step, from the sums of its parameters."""
    whole, by_decay, visited = total(sums[name] for name in group.parameters), 0.0, 0
    for name, parameter in group.parameters.items():
        of = sums[name]
        if of.before_before:  # the share that decay took, as the optimizer rounded it
            by_decay += math.sqrt(of.decay / of.before_before) * of.gradient_before
        visited += parameter.size if of.visited else 0
    rate = group.lr * math.sqrt(visited)
    return GroupEffect(
        group.name,
        group.lr,
        group.frozen,
        whole.update_ratio,
        whole.update_norm / rate if rate else 0.0,
        whole.gradient_update,
        -by_decay,
        alone,
    )


def signed(value: float) -> str:
    """A change of a loss: with its sign, three digits at least, and no exponent for usual sizes."""
    if math.isnan(value):
        return " nan"
    if value == 0:
        return " 0"
    return f"{value:+.6f}" if abs(value) >= 1e-4 else f"{value:+.2e}"


# -------------------------------------------------------------------------------------- the jump


@dataclass(frozen=True)
class Jump:
    """The loss of one batch in each of STATES: in training mode and in evaluation mode.

    `batch_norm` and `dropout` say by how much the training loss of the first state exceeds its
    evaluation loss, and why. `previous` is the recorded loss of the step before, on its own
    pictures, or None.
    """

    where: str
    pictures: int
    training: dict[str, float]
    evaluation: dict[str, float]
    batch_norm: float
    dropout: float
    previous: float | None

    def parts(self, losses: dict[str, float]) -> dict[str, float]:
        """The changes of the loss by the switch, the head's update and the body's."""
        names = ("the switch of modes alone", "the head's update", "the body's update")
        pairs = itertools.pairwise(losses[state] for state in STATES)
        return dict(zip(names, (b - a for a, b in pairs), strict=True))

    def __str__(self) -> str:
        training, evaluation = self.parts(self.training), self.parts(self.evaluation)
        rows = [["before", *self._losses("before")]]
        rows += [[f"+ {n}", signed(training[n]), signed(evaluation[n])] for n in training]
        rows += [["after the whole step", *self._losses("whole step")]]
        gap = self.batch_norm + self.dropout
        lines = [
            f"one batch of {counted(self.pictures, 'picture')} through {self.where}",
            *aligned([["", "in training", "in evaluation"], *rows]),
            f"in training less in evaluation, before the step: {signed(gap).strip()}, of which "
            f"{signed(self.batch_norm).strip()} by batch norm and "
            f"{signed(self.dropout).strip()} by dropout",
        ]
        if self.previous is not None:
            other = self.training["before"] - self.previous
            lines.append(
                f"the step before recorded {self.previous:.6f}, before its update and on its own "
                f"pictures; from there to here: {signed(other).strip()}"
            )
        return "\n".join(lines)

    def _losses(self, state: str) -> list[str]:
        return [f" {self.training[state]:.6f}", f" {self.evaluation[state]:.6f}"]


def jump(moment: Moment, previous: float | None = None) -> Jump:
    """Look at the moment's batch four times while its step is made, then undo everything. The
    moment of interest is the first step of a phase: there the modes switch.

    `previous` is the loss that the step before recorded; by default the learner's last, if it
    made that step itself.
    """
    learner, phases, number = moment.learner, moment.plan.phases, moment.phase_number
    if previous is None and learner.history and learner.history[-1].step == moment.step - 1:
        previous = learner.history[-1].loss
    old = weights_of(learner)
    body = {n: old[n] for g in learner.groups if not g.in_head for n in g.parameters}
    training, evaluation = {}, {}

    def note(state: str) -> None:
        training[state] = moment.look("training").loss
        evaluation[state] = moment.look("evaluation").loss

    try:
        if moment.step_in_phase == 0 and number > 0:  # the step before is another phase's
            number -= 1
        freeze_to(learner.groups, phases[number].first_trainable, learner.bn)
        note("before")
        dry = moment.look("no dropout").loss
        moment.restore()
        moment.measured_step()
        note("whole step")
        put_weights(learner, body)
        note("without the body's update")
        put_weights(learner, old)
        note("modes switched")
    finally:
        moment.restore()
    return Jump(
        moment.where,
        len(moment.batch.ids),
        training,
        evaluation,
        dry - evaluation["before"],
        training["before"] - dry,
        previous,
    )
