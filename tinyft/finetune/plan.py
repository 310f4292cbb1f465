"""The plan: everything that training will do, as data, before it does it. The learner executes it
and decides nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyft.display import Displayed, counted
from tinyft.errors import DataError, RunError
from tinyft.finetune.feature_cache import cacheable_bytes
from tinyft.finetune.groups import (
    Group,
    expect_comparable,
    expect_grouped,
    head_at,
    norm_switches,
    trains,
)
from tinyft.finetune.judge import expect_judgeable
from tinyft.finetune.recipe import Phase, expect_phases, fine_tune_phases, one_cycle_phase
from tinyft.finetune.schedule import expect_number, per_group

if TYPE_CHECKING:
    from tinyft.finetune.training import Training

KEPT = "kept as the weights have it"  # of a head, which else is random or as given
REMEMBERS = "goes on with what it remembers"


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
    in_head: bool


@dataclass(frozen=True)
class Plan(Displayed):
    """Phases in order; `states[i][g]` says what group g does in phase i. `first_step` is the number
    of its first step, as metrics.csv and the ledger count; `dtype` that of the weights.
    """

    phases: list[Phase]
    states: list[list[GroupState]]
    cached_bytes: list[int]  # per phase: features of the body that are kept, 0 for none
    weight_decay: float
    bn: str
    stale_gradients: bool = False
    facts: list[str] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)  # of Learner.plan, to make it again
    first_step: int = 0
    dtype: str = "float32"
    reset_optimizer: bool = True  # at the start of each phase

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    def at(self, step: int) -> tuple[int, int]:
        """Which phase makes a step of the plan, and which of the phase's steps it is, from 0.

        Raises: ValueError if the plan has no such step
        """
        if not 0 <= step < self.steps:
            raise ValueError(
                f"step should be from 0 to {self.steps - 1}, the plan's last; got {step}"
            )
        number = 0
        while step >= self.phases[number].steps:
            step -= self.phases[number].steps
            number += 1
        return number, step

    @property
    def switches(self) -> dict[str, Any]:
        """What `Training.enter` asks of a plan beside the phase."""
        return {
            "weight_decay": self.weight_decay,
            "stale_gradients": self.stale_gradients,
            "reset_optimizer": self.reset_optimizer,
        }

    def __str__(self) -> str:
        lines = [_wrapped(fact) for fact in self.facts]
        first = self.first_step
        each = zip(self.phases, self.states, self.cached_bytes, strict=True)
        for number, (phase, states, cached_bytes) in enumerate(each, 1):
            last = first + phase.steps - 1
            lines += [
                "",
                f"Phase {number}: {phase.name}, {counted(phase.epochs, 'epoch')} of "
                f"{counted(phase.steps_per_epoch, 'step')} (steps {first} to {last})",
                f"  the optimizer {'starts empty' if self.reset_optimizer else REMEMBERS}",
                *_table(phase, states, self.stale_gradients),
                *_norm_lines(states),
                *_cache_line(cached_bytes),
            ]
            first = last + 1
        decay = f"weight decay {self.weight_decay:g}, times the learning rate; none on batch norms"
        stale = "; frozen weights that once trained decay on" if self.stale_gradients else ""
        return "\n".join([*lines, "", _wrapped(decay + " and biases" + stale)])


def fine_tune_plan(
    training: Training,
    epochs: int,
    base_lr: float = 2e-3,
    *,
    freeze_epochs: int = 1,
    weight_decay: float | None = None,
    stale_gradients: bool = False,
    **schedule: Any,
) -> Plan:
    """The plan that `Learner.plan` gives, which says what the arguments are."""
    options = {"base_lr": base_lr, "freeze_epochs": freeze_epochs, **schedule}
    steps, n_groups = training.own_data().steps_per_epoch, len(training.groups)
    phases = fine_tune_phases(epochs, steps, n_groups, head_at=head_at(training.groups), **options)
    switches = {"weight_decay": weight_decay, "stale_gradients": stale_gradients}
    return complete_plan(training, "plan", phases, {"epochs": epochs, **options}, **switches)


def one_cycle_plan(
    training: Training,
    epochs: int,
    lr_max: float | slice | Sequence[float] | None = None,
    *,
    first_trainable: int | None = None,
    reset_optimizer: bool | None = None,
    weight_decay: float | None = None,
    **schedule: Any,
) -> Plan:
    """The plan that `Learner.one_cycle_plan` gives, which says what the arguments are."""
    frozen_now = sum(group.frozen for group in training.groups)
    if first_trainable is None:
        first_trainable = frozen_now
    if reset_optimizer is None:
        reset_optimizer = first_trainable != frozen_now or not training.optimizer.state
    n_groups = len(training.groups)
    peaks = per_group(training.lr if lr_max is None else lr_max, n_groups)
    options = {"first_trainable": first_trainable, **schedule}
    steps = training.own_data().steps_per_epoch
    phase = one_cycle_phase("one cycle", epochs, steps, peaks, n_groups, **options)
    switches = {"weight_decay": weight_decay, "reset_optimizer": reset_optimizer}
    arguments = {"epochs": epochs, "lr_max": peaks, **options}
    return complete_plan(training, "one_cycle_plan", [phase], arguments, **switches)


def plan_of(
    training: Training,
    phases: Sequence[Phase],
    *,
    weight_decay: float | None = None,
    stale_gradients: bool = False,
    reset_optimizer: bool = True,
) -> Plan:
    """The plan that `Learner.plan_of` gives, which says what the arguments are."""
    phases = list(phases)
    expect_phases(phases, len(training.groups), training.own_data().steps_per_epoch)
    switches = {"weight_decay": weight_decay, "stale_gradients": stale_gradients,
                "reset_optimizer": reset_optimizer}  # fmt: skip
    arguments = {"phases": [asdict(phase) for phase in phases]}
    return complete_plan(training, "plan_of", phases, arguments, **switches)


def complete_plan(
    training: Training,
    method: str,
    phases: list[Phase],
    arguments: dict[str, Any],
    *,
    weight_decay: float | None,
    **switches: bool,
) -> Plan:
    """The plan of these phases for a learner as it is now. `method` and `arguments` say how to make
    it again; `switches` are stale_gradients and reset_optimizer.

    Raises: ValueError if nothing would be done or trained; DataError without pictures to validate,
    or with one picture a batch where a batch norm compares several
    """
    if weight_decay is None:
        weight_decay = training.weight_decay
    expect_number("weight_decay", weight_decay)
    weight_decay = float(weight_decay)  # as JSON takes it
    if not any(phase.steps for phase in phases):
        zero = "epochs is 0" if phases else "epochs and freeze_epochs are both 0"
        raise ValueError(f"there is nothing to do: {zero}")
    _expect_usable(training, phases)
    if not training.optimizer.has_momentum:  # the schedule's means nothing to it
        phases = [replace(phase, momentum=0 * phase.momentum) for phase in phases]
    states = [describe_groups(training.groups, phase, training.bn) for phase in phases]
    stale = switches.get("stale_gradients", False)
    for phase, groups in zip(phases, states, strict=True):
        if not stale and not any(group.trainable for group in groups):
            raise ValueError(
                f"in the phase {phase.name!r} nothing would train: all groups are frozen; "
                "unfreeze one"
            )
    return Plan(
        phases,
        states,
        [0 if stale else _cacheable_bytes(training, phase) for phase in phases],
        weight_decay,
        training.bn,
        facts=facts_of(training),
        arguments={"method": method, **arguments, "weight_decay": weight_decay, **switches},
        first_step=training.step,
        dtype=training.dtype,
        **switches,
    )


def _expect_usable(training: Training, phases: list[Phase]) -> None:
    """Raises: DataError if the learner's data cannot serve the phases"""
    if training.data.n_valid == 0:
        raise DataError("each epoch ends with validation, and there are no pictures for it")
    statistics = {
        norm_switches(training.bn, group.in_head, frozen=i < phase.first_trainable)[0]
        for phase in phases
        for i, group in enumerate(training.groups)
        if group.norms
    }
    expect_comparable(training.data, statistics)


def _cacheable_bytes(training: Training, phase: Phase) -> int:
    """What it takes to keep the body's features in a phase; 0 where they may change."""
    return cacheable_bytes(
        training.model,
        training.data,
        training.adjusted_preprocess().crop,
        bn=training.bn,
        body_frozen=phase.first_trainable >= head_at(training.groups),
        itemsize=np.dtype(training.dtype).itemsize,
    )


def remade(training: Training, arguments: dict[str, Any], first_step: int) -> Plan:
    """The plan that the learner makes from a plan's `arguments`.

    Raises: RunError if they name no method: it was a plan of the caller's own; or are damaged
    """
    makers = {
        "plan": fine_tune_plan,
        "one_cycle_plan": one_cycle_plan,
        "plan_of": plan_of,
    }
    arguments = dict(arguments)
    method = arguments.pop("method", None)
    if method not in makers:
        raise RunError(
            "the run followed a plan of its caller's own, and only that can make it again"
        )
    try:
        if method == "plan_of":
            arguments["phases"] = [Phase.from_dict(phase) for phase in arguments["phases"]]
        return replace(makers[method](training, **arguments), first_step=first_step)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"the run's plan is damaged, and cannot be made again: {error}") from None


def is_made_by_its_arguments(plan: Plan, training: Training) -> bool:
    """Whether `remade` makes this plan; a caller may have changed what a method had made."""

    def content(plan: Plan) -> list:
        phases = [
            (p.name, p.first_trainable, p.epochs, p.steps_per_epoch, p.lr.tolist(), [*p.momentum])
            for p in plan.phases
        ]
        return [phases, plan.weight_decay, plan.bn, plan.stale_gradients, plan.reset_optimizer]

    try:
        return content(plan) == content(remade(training, plan.arguments, plan.first_step))
    except RunError:
        return False


def expect_unchanged(training: Training, plan: Plan, start: int) -> None:
    """Raises: ValueError if the learner was changed since the plan was made, or since it was made
    itself, or is not at the plan's step `start`; DataError if its data has other classes now
    """
    if training.step != plan.first_step + start:
        raise ValueError(
            f"the plan would go on from step {plan.first_step + start}, and the learner has made "
            f"{counted(training.step, 'step')}; make a new plan"
        )
    if plan.bn != training.bn:
        raise ValueError(
            f"the plan has bn={plan.bn!r}, the learner has {training.bn!r} now; make a new plan"
        )
    expect_judgeable(
        training, training.data
    )  # or training would fail at the end of its first epoch
    epoch = training.data.steps_per_epoch
    planned = next((p.steps_per_epoch for p in plan.phases if p.steps_per_epoch != epoch), epoch)
    if planned != epoch:
        raise ValueError(
            f"epochs of the plan have {planned} steps, those of the learner's data {epoch} now; "
            "make a new plan"
        )
    trained = {p for group in training.groups for p in group.parameters.values()}
    if trained != {p for _, p in training.model.named_parameters()}:
        raise ValueError(
            "the network has other parameters than when the learner was made, which would not "
            "train; make a learner with the network as it is now (head=... takes a Module)"
        )
    expect_grouped(training.groups, training.model)
    for phase, states in zip(plan.phases, plan.states, strict=True):
        if states != describe_groups(training.groups, phase, training.bn):
            names = [", ".join(g.name for g in groups) for groups in (states, training.groups)]
            raise ValueError(
                f"the plan is for the layer groups {names[0]}, and the learner has {names[1]} now, "
                "or they hold other parameters; make a new plan"
            )


def facts_of(training: Training) -> list[str]:
    """What is true of the whole run, in sentences."""
    p, data = training.adjusted_preprocess(), training.data
    kind = "assumed" if p.assumed else "from the weights file"
    square = f"the middle square at {p.crop} px"
    if p.resize > p.crop and p.whole_square:
        square += f", sampled from {p.resize} px as augmentation does"
    elif p.resize > p.crop:
        square = f"the middle {p.crop} px of a short side of {p.resize} px"
    head, state = (
        training.facts.get("head") or "of the caller's own",
        f"after {training.step} steps",
    )
    dropped = training.facts.get("head_dropped")
    if training.step == 0:
        state = training.facts.get("head_state", "as given")
    return [
        f"network: {training.arch}, {training.model.count_parameters():,} parameters, "
        f"{training.dtype}; body: {training.facts.get('weights', 'as given')}",
        f"head: {head}, {state}, {len(training.classes)} classes"
        + (f"; the trained one of the weights is dropped: {dropped}" if dropped else ""),
        f"data: {data.n_train} pictures to train on, {data.n_valid} to validate, "
        f"batches of {data.batch_size}; augmentation: {data.augment or 'none'}",
        f"input: {square}, mean {p.mean}, std {p.std} ({kind})",
    ]


def describe_groups(groups: Sequence[Group], phase: Phase, bn: str) -> list[GroupState]:
    """What each group will do in `phase`."""
    states = []
    for i, group in enumerate(groups):
        frozen = i < phase.first_trainable
        trainable = sum(
            p.size for name, p in group.parameters.items() if trains(group, name, frozen, bn)
        )
        norms = _describe_norms(group, frozen, bn)
        states.append(GroupState(group.name, frozen, trainable, group.count, norms, group.in_head))
    return states


def _describe_norms(group: Group, frozen: bool, bn: str) -> str:
    """The three switches in words: what normalises, whether it moves, whether scale and shift
    train.
    """
    if not group.norms:
        return "none"
    statistics, moves = norm_switches(bn, group.in_head, frozen)
    trained = "train" if not frozen or bn == "fastai" else "frozen"
    moving = "running statistics move" if moves else "which stay"
    return f"by {statistics} statistics, {moving}; scale and shift {trained}"


def _table(phase: Phase, states: list[GroupState], stale: bool) -> list[str]:
    """One line a group: whether it is frozen, start, peak and end of its learning rate and of
    momentum (whose peak is its lowest), what trains. Where nothing moves, a rate means nothing.
    """
    width = max(len(state.name) for state in states)
    lines = [
        f"  {'group':{width}}  state   lr start  lr peak   lr end    momentum        "
        "numbers that train"
    ]
    for g, state in enumerate(states):
        lr = phase.lr[:, g]
        rates = [f"{rate:<8.2e}" for rate in (lr[0], lr.max(), lr[-1])]
        momentum = momentum_in_words(phase.momentum)
        if not state.trainable and not stale:
            rates, momentum = [f"{'-':8}"] * 3, "-"
        lines.append(
            f"  {state.name:{width}}  {'frozen' if state.frozen else 'trains'}  "
            f"{'  '.join(rates)}  {momentum:14}  {state.trainable:,} of {state.total:,}"
        )
    return lines


def momentum_in_words(momentum: np.ndarray) -> str:
    """ "0.95 0.85 0.94": at its start, lowest and end; an optimizer without any has zeros."""
    if not momentum.any():
        return "none"
    return " ".join(f"{m:.2f}" for m in (momentum[0], momentum.min(), momentum[-1]))


def _norm_lines(states: list[GroupState]) -> list[str]:
    """What the batch norms do, groups that do the same together."""
    by_text: dict[str, list[str]] = {}
    for state in states:
        by_text.setdefault(state.norms, []).append(state.name)
    return [
        _wrapped(f"  batch norms of {', '.join(names)}: {text}") for text, names in by_text.items()
    ]


def _wrapped(line: str) -> str:
    """The line over as many lines of 100 columns as it takes, but for a name that is longer."""
    return textwrap.fill(
        line, 100, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def _cache_line(cached_bytes: int) -> list[str]:
    if not cached_bytes:
        return []
    size = f"{cached_bytes / 1e6:.0f} MB"
    return [f"  features of the body are kept ({size}): each picture passes through it once"]
