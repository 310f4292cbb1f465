"""Asks what if: makes a step from the same state on the same batch, with one thing changed.

Each counterfactual changes the learner's settings, makes the step, looks at the batch, and undoes
everything to the bit. The evaluation columns are common ground: there every step begins with the
same loss, whatever it does to batch norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tinyft.display import aligned
from tinyft.errors import NonFiniteLossError
from tinyft.finetune.groups import Group, freeze_to, head_at
from tinyft.finetune.learner import Learner
from tinyft.finetune.records import total
from tinyft.inspection.step.moment import Moment
from tinyft.inspection.step.why import signed

PLANNED = "as planned"

Change = Callable[[Learner], None]


@dataclass(frozen=True)
class Outcome:
    """One step that might have been made.

    Losses are (before, after) of the step's own batch, in training (same dropout masks) and in
    evaluation. `predicted` is <gradient, update>; `distance` |update| / |weights| over everything,
    `distances` by group. A step whose loss is NaN or infinite is not made: all that follows is NaN.
    """

    name: str
    training: tuple[float, float]
    evaluation: tuple[float, float]
    predicted: float
    distance: float
    distances: dict[str, float]


@dataclass(frozen=True)
class WhatIf:
    """The outcomes side by side, the planned step first."""

    where: str
    outcomes: list[Outcome]

    def __getitem__(self, name: str) -> Outcome:
        """The outcome of that name. Raises: KeyError that lists the names there are"""
        outcomes = {outcome.name: outcome for outcome in self.outcomes}
        if name not in outcomes:
            raise KeyError(f"no outcome is called {name!r}; there are {', '.join(outcomes)}")
        return outcomes[name]

    def __str__(self) -> str:
        groups = list(self.outcomes[0].distances)
        header = ["", "predicted", "in training", "in evaluation", "moved", *groups]
        rows = [
            [
                o.name,
                signed(o.predicted),
                signed(o.training[1] - o.training[0]),
                signed(o.evaluation[1] - o.evaluation[0]),
                *(f"{distance:.1e}" for distance in (o.distance, *o.distances.values())),
            ]
            for o in self.outcomes
        ]
        first = self.outcomes[0]
        return "\n".join([
            f"what if {self.where} had been made otherwise?",
            f"the loss of its batch before: {first.training[0]:.5f} in training, "
            f"{first.evaluation[0]:.5f} in evaluation",
            "how the step changes it, and how far the weights go, |update| / |weights|:",
            *aligned([header, *rows]),
        ])  # fmt: skip


def what_if(moment: Moment, changes: Mapping[str, Change] | None = None) -> WhatIf:
    """Make the moment's step as planned and with each of `changes`, and leave the learner as it
    was, bit for bit.

    A change is a function that alters the learner's settings just before the step; the default is
    all of `usual_changes`.
    """
    changes = usual_changes(moment) if changes is None else changes
    every = {PLANNED: lambda learner: None, **changes}
    return WhatIf(moment.where, [_outcome(moment, name, every[name]) for name in every])


def usual_changes(moment: Moment) -> dict[str, Change]:
    """The counterfactuals that make sense here: what would change nothing is left out."""
    learner = moment.learner
    groups, head = learner.groups, learner.groups[-1]
    frozen = moment.phase.first_trainable
    stale = learner.trained if moment.plan.stale_gradients else frozenset()

    def freezing(first_trainable: int, bn: str) -> Change:
        """Freeze as the plan would, but keep the optimizer's memory: one change at a time."""
        return lambda learner: freeze_to(learner.groups, first_trainable, bn, stale)

    def rates(rate_of: Callable[[Group], float]) -> Change:
        def change(learner: Learner) -> None:
            for group in learner.groups:
                group.lr = rate_of(group)

        return change

    changes: dict[str, Change] = {
        "all rates x 10": rates(lambda group: group.lr * 10),
        "all rates / 10": rates(lambda group: group.lr * (1 / 10)),
    }
    training = [g for g in groups if any(p.requires_grad for p in g.parameters.values())]
    if any(group.lr != head.lr for group in training):
        changes["the head's rate for all"] = rates(lambda group: head.lr)
    if learner.bn != "frozen":
        changes["batch norms frozen"] = freezing(frozen, "frozen")
    if any(group.weight_decay for group in groups):
        changes["no weight decay"] = _no_decay
    if learner.optimizer.state:
        changes["optimizer without memory"] = lambda learner: learner.optimizer.clear()
    body = head_at(groups)
    if frozen < body < len(groups):
        changes["body frozen"] = freezing(body, learner.bn)
    if frozen > 0:
        changes["nothing frozen"] = freezing(0, learner.bn)
    return changes


def _outcome(moment: Moment, name: str, change: Change) -> Outcome:
    learner = moment.learner

    def losses() -> tuple[float, float]:
        return moment.look("training").loss, moment.look("evaluation").loss

    try:
        change(learner)
        before = losses()
        try:
            sums = moment.measured_step()
        except NonFiniteLossError:  # it stopped at its own loss
            nan = math.nan
            nothing = dict.fromkeys((group.name for group in learner.groups), nan)
            return Outcome(name, (before[0], nan), (before[1], nan), nan, nan, nothing)
        after = losses()
    finally:
        moment.restore()
    whole = total(sums.values())
    by_group = {
        group.name: total(sums[n] for n in group.parameters).update_ratio
        for group in learner.groups
    }
    training, evaluation = zip(before, after, strict=True)
    return Outcome(name, training, evaluation, whole.gradient_update, whole.update_ratio, by_group)


def _no_decay(learner: Learner) -> None:
    for group in learner.groups:
        group.weight_decay = 0.0
