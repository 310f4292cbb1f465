"""The plan: everything that training will do, as data, before it does it. The learner executes it
and decides nothing.

Next: tinyft/finetune/learner.py
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinyft.finetune.groups import Group, norm_switches, trains
from tinyft.finetune.recipe import Phase


@dataclass(frozen=True)
class GroupState:
    """One group in one phase: what trains, what its batch norms do, how many numbers change by
    gradient.
    """

    name: str
    frozen: bool
    trainable: int
    total: int
    norms: str


@dataclass(frozen=True)
class Plan:
    """Phases in order; `states[i][g]` says what group g does in phase i."""

    phases: list[Phase]
    states: list[list[GroupState]]
    weight_decay: float
    bn: str
    stale_gradients: bool = False
    facts: list[str] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)  # of Learner.plan, to make it again

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    def __str__(self) -> str:
        lines = list(self.facts)
        first = 1
        for number, (phase, states) in enumerate(zip(self.phases, self.states, strict=True), 1):
            last = first + phase.steps - 1
            lines += [
                "",
                f"Phase {number}: {phase.name}, {_count(phase.epochs, 'epoch')} of "
                f"{_count(phase.steps_per_epoch, 'step')} (steps {first} to {last}); "
                f"{_momentum(phase)}; the optimizer starts empty",
                *_table(phase, states),
            ]
            first = last + 1
        decay = f"weight decay {self.weight_decay:g}, times the learning rate; none on batch norms"
        stale = "; frozen weights that once trained decay on" if self.stale_gradients else ""
        return "\n".join([*lines, "", decay + " and biases" + stale])


def describe_groups(groups: list[Group], phase: Phase, bn: str) -> list[GroupState]:
    """What each group will do in `phase`."""
    states = []
    for i, group in enumerate(groups):
        frozen = i < phase.first_trainable
        trainable = sum(
            p.size for name, p in group.parameters.items() if trains(group, name, frozen, bn)
        )
        norms = _describe_norms(group, frozen, bn, in_body=group is not groups[-1])
        states.append(GroupState(group.name, frozen, trainable, group.count, norms))
    return states


def _describe_norms(group: Group, frozen: bool, bn: str, in_body: bool) -> str:
    """The three switches in words: what normalises, whether it moves, whether scale and shift
    train.
    """
    if not group.norms:
        return "none"
    statistics, moves = norm_switches(bn, in_body)
    trained = "train" if not frozen or bn == "fastai" else "frozen"
    moving = "running statistics move" if moves else "which stay"
    return f"by {statistics} statistics, {moving}; scale and shift {trained}"


def _table(phase: Phase, states: list[GroupState]) -> list[str]:
    """One line a group: start, peak and end of its learning rate, what trains, what its batch
    norms do.
    """
    width = max(len(state.name) for state in states)
    lines = [
        f"  {'group':{width}}  lr start   peak      end        trains              batch norms"
    ]
    for g, state in enumerate(states):
        lr = phase.lr[:, g]
        share = f"{state.trainable:,} of {state.total:,}"
        lines.append(
            f"  {state.name:{width}}  {lr[0]:<9.2e}  {lr.max():<8.2e}  {lr[-1]:<9.2e}  "
            f"{share:<24}  {state.norms}"
        )
    return lines


def _momentum(phase: Phase) -> str:
    values = phase.momentum
    return f"momentum {values[0]:.3f} to {values.min():.3f} to {values[-1]:.3f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
