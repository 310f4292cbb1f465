"""Why did the loss jump when the body was unfrozen?

One batch is looked at four times: before the step; after the switch of modes alone; after the step
without the body's update; after the whole step. What one look adds to the one before has one cause.
Each look is taken as training sees the batch and as evaluation does, since the two disagree: in
training batch norms use the batch and dropout is on.

In tinyft unfreezing switches no batch norm (groups.py), so that the training loss of "the switch
alone" must be 0; what the eye takes for a jump there is a comparison of the validation loss with
the training loss, or of different pictures. In evaluation the switch adds what the running
statistics moved when the batch went through.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from tinyft.display import aligned
from tinyft.finetune.groups import freeze_to
from tinyft.inspection.step.moment import Moment
from tinyft.inspection.step.probe import look, put_weights, weights_of
from tinyft.inspection.step.why import measured_step, signed

STATES = ("before", "modes switched", "without the body's update", "whole step")


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
        """What the switch, the head's update and the body's add to the loss."""
        values = [losses[state] for state in STATES]
        names = ("the switch of modes alone", "the head's update", "the body's update")
        pairs = itertools.pairwise(values)
        return dict(zip(names, (b - a for a, b in pairs), strict=True))

    def __str__(self) -> str:
        training, evaluation = self.parts(self.training), self.parts(self.evaluation)
        rows = [["before", *self._losses("before")]]
        rows += [[f"+ {n}", signed(training[n]), signed(evaluation[n])] for n in training]
        rows += [["after the whole step", *self._losses("whole step")]]
        gap = self.batch_norm + self.dropout
        lines = [
            f"one batch of {self.pictures} pictures through {self.where}",
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
    learner = moment.learner
    if previous is None and learner.history and learner.history[-1].step == moment.step - 1:
        previous = learner.history[-1].loss
    old = weights_of(learner)
    body = {n: old[n] for g in learner.groups if not g.in_head for n in g.parameters}
    training, evaluation = {}, {}

    def note(state: str) -> None:
        training[state], evaluation[state] = (_loss(moment, m) for m in ("training", "evaluation"))

    try:
        freeze_to(learner.groups, _frozen_before(moment), learner.bn)
        note("before")
        dry = _loss(moment, "no dropout")
        moment.restore()
        measured_step(moment)
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


def _loss(moment: Moment, mode: str) -> float:
    return look(moment.learner, moment.batch, mode, step=moment.step).loss


def _frozen_before(moment: Moment) -> int:
    """How many groups were frozen in the step before this one."""
    phases = moment.plan.phases
    number = moment.phase_number
    if moment.step_in_phase == 0 and number > 0:
        number -= 1
    return phases[number].first_trainable
