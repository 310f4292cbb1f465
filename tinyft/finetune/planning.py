"""Plans made, made again, and compared with the learner that is to carry them out.

The first three are methods of a learner: `plan`, `one_cycle_plan`, `plan_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from tinyft.display import counted
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
from tinyft.finetune.optim import name_of
from tinyft.finetune.plan import GroupState, Plan, Subject
from tinyft.finetune.schedule import (
    Phase,
    expect_number,
    expect_phases,
    fine_tune_phases,
    one_cycle_phase,
    per_group,
)
from tinyft.finetune.training import Training, listed_class_weights


def plan(
    learner: Training, epochs: int, base_lr: float = 2e-3, *, freeze_epochs: int = 1,
    weight_decay: float | None = None, stale_gradients: bool = False, **schedule: Any,
) -> Plan:  # fmt: skip
    """Plan what `fine_tune` with these arguments would do. Nothing is changed.

    `schedule` may hold lr_mult, pct_start, div, div_final and moms, with fastai's meaning and
    defaults.
    Raises: ValueError, also if there are no epochs; DataError without pictures for an epoch
    """
    options = {"base_lr": base_lr, "freeze_epochs": freeze_epochs, **schedule}
    steps, n_groups = learner.own_data().steps_per_epoch, len(learner.groups)
    head = head_at(learner.groups, needed=freeze_epochs != 0)
    head = min(head, n_groups - 1)  # without one, the last group has its rate
    phases = fine_tune_phases(epochs, steps, n_groups, head_at=head, **options)
    switches = {"stale_gradients": stale_gradients}
    arguments = {"epochs": epochs, **options}
    return _complete(learner, "plan", phases, arguments, weight_decay, switches)


def one_cycle_plan(
    learner: Training, epochs: int, lr_max: float | slice | Sequence[float] | None = None, *,
    first_trainable: int | None = None, reset_optimizer: bool | None = None,
    weight_decay: float | None = None, **schedule: Any,
) -> Plan:  # fmt: skip
    """Plan what `fit_one_cycle` would do, with the groups before `first_trainable` frozen (default:
    as now). The optimizer goes on with what it remembers, unless other groups are frozen than now
    or `reset_optimizer` says otherwise. `schedule` may hold pct_start, div, div_final and moms.

    Raises: ValueError, DataError as `plan`
    """
    frozen_now = sum(group.frozen for group in learner.groups)
    if first_trainable is None:
        first_trainable = frozen_now
    if reset_optimizer is None:
        reset_optimizer = first_trainable != frozen_now or not learner.optimizer.state
    n_groups = len(learner.groups)
    peaks = per_group(learner.lr if lr_max is None else lr_max, n_groups)
    options = {"first_trainable": first_trainable, **schedule}
    steps = learner.own_data().steps_per_epoch
    phase = one_cycle_phase("one cycle", epochs, steps, peaks, n_groups, **options)
    switches = {"reset_optimizer": reset_optimizer}
    arguments = {"epochs": epochs, "lr_max": peaks, **options}
    return _complete(learner, "one_cycle_plan", [phase], arguments, weight_decay, switches)


def plan_of(
    learner: Training, phases: Sequence[Phase], *, weight_decay: float | None = None,
    stale_gradients: bool = False, reset_optimizer: bool = True,
) -> Plan:  # fmt: skip
    """Plan phases of one's own, such as `one_cycle_phase` makes; for `execute` or `steps`.

    Gradual unfreezing is a phase for each group, last group first:

        steps, n = learner.data.steps_per_epoch, len(learner.groups)
        learner.plan_of([
            one_cycle_phase(f"{n - i} groups", 1, steps, 1e-3, n, first_trainable=i)
            for i in reversed(range(n))
        ])
    Raises: ValueError, DataError as `plan`; TypeError for what is no phase
    """
    phases = list(phases)
    expect_phases(phases, len(learner.groups), learner.own_data().steps_per_epoch)
    switches = {"stale_gradients": stale_gradients, "reset_optimizer": reset_optimizer}
    arguments = {"phases": [asdict(phase) for phase in phases]}
    return _complete(learner, "plan_of", phases, arguments, weight_decay, switches)


def _complete(
    learner: Training, method: str, phases: list[Phase], arguments: dict[str, Any],
    weight_decay: float | None, switches: dict[str, bool],
) -> Plan:  # fmt: skip
    """The plan of these phases for a learner as it is now. `method` and `arguments` say how to make
    it again; `switches` are stale_gradients and reset_optimizer.

    Raises: ValueError if nothing would be done or trained; DataError without pictures to validate,
    or with one picture a batch where a batch norm compares several
    """
    decay = learner.weight_decay if weight_decay is None else weight_decay
    expect_number("weight_decay", decay)
    decay, data = float(decay), learner.own_data()  # a float, as JSON takes it
    if not any(phase.steps for phase in phases):
        zero = "epochs is 0" if phases else "epochs and freeze_epochs are both 0"
        raise ValueError(f"there is nothing to do: {zero}")
    if data.n_valid == 0:
        raise DataError("each epoch ends with validation, and there are no pictures for it")
    statistics = {
        norm_switches(learner.bn, group.in_head, frozen=i < phase.first_trainable)[0]
        for phase in phases
        for i, group in enumerate(learner.groups)
        if group.batch_norms
    }
    expect_comparable(data, statistics)
    if not learner.optimizer.has_momentum:  # the schedule's means nothing to it
        phases = [replace(phase, momentum=0 * phase.momentum) for phase in phases]
    states = [_group_states(learner.groups, phase, learner.bn) for phase in phases]
    stale = switches.get("stale_gradients", False)
    for phase, groups in zip(phases, states, strict=True):
        if not stale and not any(group.trainable for group in groups):
            raise ValueError(
                f"in the phase {phase.name!r} nothing would train: all groups are frozen; "
                "unfreeze one"
            )
    head = head_at(learner.groups)
    frozen_bodies = [phase.first_trainable >= head and not stale for phase in phases]
    return Plan(
        phases,
        states,
        [cacheable_bytes(learner) if frozen else 0 for frozen in frozen_bodies],
        decay,
        learner.bn,
        subject_of(learner),
        first_step=learner.step,
        arguments={"method": method, **arguments, "weight_decay": decay, **switches},
        data=data,
        **switches,
    )


def subject_of(learner: Training) -> Subject:
    """The network and the pictures of a learner as they are now."""
    data = learner.own_data()
    return Subject(
        learner.arch, learner.model.count_parameters(), learner.dtype, learner.classes,
        learner.origin, learner.step, len(data.ids("train")), data.n_valid, data.batch_size,
        data.augment,
        learner.adjusted_preprocess(), name_of(learner.optimizer) or "of the caller's own",
        learner.label_smoothing, learner.mirrored, listed_class_weights(learner),
    )  # fmt: skip


def remade(learner: Training, arguments: dict[str, Any], first_step: int) -> Plan:
    """The plan that the learner makes from a plan's `arguments`.

    Raises: RunError if they name no method: it was a plan of the caller's own; or are damaged
    """
    makers: dict[str, Callable[..., Plan]] = {
        "plan": plan,
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
        return replace(makers[method](learner, **arguments), first_step=first_step)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"the run's plan is damaged, and cannot be made again: {error}") from None


def is_made_by_its_arguments(plan: Plan, learner: Training) -> bool:
    """Say if `remade` makes this plan; a caller may have changed what a method had made."""

    def content(plan: Plan) -> list:
        phases = [
            (p.name, p.first_trainable, p.epochs, p.steps_per_epoch, p.lr.tolist(), [*p.momentum])
            for p in plan.phases
        ]
        return [phases, plan.weight_decay, plan.bn, plan.stale_gradients, plan.reset_optimizer]

    try:
        return content(plan) == content(remade(learner, plan.arguments, plan.first_step))
    except RunError:
        return False


def expect_unchanged(learner: Training, plan: Plan, start: int) -> None:
    """Raises: ValueError if the learner was changed since the plan was made, or since it was made
    itself, or is not at the plan's step `start`; DataError if its data has other classes now
    """
    if learner.step != plan.first_step + start:
        raise ValueError(
            f"the plan would go on from step {plan.first_step + start}, and the learner has made "
            f"{counted(learner.step, 'step')}; make a new plan"
        )
    if plan.bn != learner.bn:
        raise ValueError(
            f"the plan has bn={plan.bn!r}, the learner has {learner.bn!r} now; make a new plan"
        )
    data = learner.own_data()
    expect_judgeable(learner, data)  # or it would fail at the end of an epoch
    epoch = data.steps_per_epoch
    planned = next((p.steps_per_epoch for p in plan.phases if p.steps_per_epoch != epoch), epoch)
    if planned != epoch:
        raise ValueError(
            f"epochs of the plan have {planned} steps, those of the learner's data {epoch} now; "
            "make a new plan"
        )
    trained = {p for group in learner.groups for p in group.parameters.values()}
    if trained != {p for _, p in learner.model.named_parameters()}:
        raise ValueError(
            "the network has other parameters than when the learner was made, which would not "
            "train; make a learner with the network as it is now (head=... takes a Module)"
        )
    expect_grouped(learner.groups, learner.model)
    for phase, states in zip(plan.phases, plan.states, strict=True):
        if states != _group_states(learner.groups, phase, learner.bn):
            names = [", ".join(g.name for g in groups) for groups in (states, learner.groups)]
            raise ValueError(
                f"the plan is for the layer groups {names[0]}, and the learner has {names[1]} now, "
                "or they hold other parameters; make a new plan"
            )


def _group_states(groups: Sequence[Group], phase: Phase, bn: str) -> list[GroupState]:
    """Describe what each group will do in `phase`."""
    states = []
    for i, group in enumerate(groups):
        frozen = i < phase.first_trainable
        trainable = sum(
            p.size for name, p in group.parameters.items() if trains(group, name, frozen, bn)
        )
        batch_norms = _batch_norms_in_words(group, frozen, bn)
        state = group.name, frozen, trainable, group.count, batch_norms, group.in_head
        states.append(GroupState(*state))
    return states


def _batch_norms_in_words(group: Group, frozen: bool, bn: str) -> str:
    """The three switches in words: what normalises, whether it moves, whether scale and shift
    train.
    """
    if not group.batch_norms:
        return "none"
    statistics, moves = norm_switches(bn, group.in_head, frozen)
    trained = "train" if not frozen or bn == "fastai" else "frozen"
    moving = "running statistics move" if moves else "which stay"
    return f"by {statistics} statistics, {moving}; scale and shift {trained}"
