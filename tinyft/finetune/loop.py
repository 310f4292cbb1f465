"""A plan carried out: its phases, epochs and steps, and who watches them.

`steps` is the whole of training: it walks through a plan and yields a record after each optimizer
step. `execute` is a loop over it, and so may be the reader's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from tinyft import backends
from tinyft.finetune.feature_cache import FeatureCache
from tinyft.finetune.judge import evaluate, expect_finite
from tinyft.finetune.plan import Plan, expect_unchanged
from tinyft.finetune.proof import expected_identical, prove
from tinyft.finetune.recipe import Phase
from tinyft.finetune.records import Evaluation, StepRecord
from tinyft.finetune.run.folder import Run
from tinyft.finetune.training import Training


class Watcher(Protocol):
    """What can follow a run: a progress display, a run folder, a ledger."""

    def begin(self, learner: Training, plan: Plan) -> None: ...

    def after_step(self, learner: Training, record: StepRecord) -> None: ...

    def end(self, learner: Training) -> None: ...


def execute(
    training: Training,
    plan: Plan,
    *,
    out: str | Path | None = None,
    observers: Sequence[Watcher] = (),
    start: int = 0,
) -> list[Evaluation]:
    """The validations of a plan that is run to its end; see `Learner.execute`."""
    training.run_folder = None
    if out is not None:
        run = Run.create(out)
        training.run_folder = run.path
        observers = [*observers, run]  # last: what it saves, the others have seen
    with released(observers):
        for observer in observers:
            observer.begin(training, plan)
        norms = any(getattr(observer, "norms", False) for observer in observers)
        for record in steps(training, plan, norms=norms, start=start):
            for observer in observers:
                observer.after_step(training, record)
        for observer in observers:
            observer.end(training)
    return [r.validation for r in training.history[-plan.steps :] if r.validation]


def steps(
    training: Training, plan: Plan, *, norms: bool = False, start: int = 0
) -> Iterator[StepRecord]:
    """The records of a plan's steps, each made when it is asked for; see `Learner.steps`."""
    training.own_data()
    done = 0  # steps of the phases before this one
    for phase, cached_bytes in zip(plan.phases, plan.cached_bytes, strict=True):
        if start < done + phase.steps:
            expect_unchanged(training, plan, max(start, done))
            training.enter(phase, **plan.switches, resumed=start > done)
            training.cache = FeatureCache(training) if cached_bytes else None
            try:
                yield from _phase(training, phase, norms, max(0, start - done))
            finally:
                training.cache = None
        done += phase.steps


def _phase(training: Training, phase: Phase, norms: bool, start: int) -> Iterator[StepRecord]:
    """All epochs of a phase: train on each batch, validate after each epoch, prove at the end."""
    groups, expected = training.groups, expected_identical(training.groups)
    frozen = [group.frozen for group in groups]
    for i in range(start, phase.steps):
        if training.groups is not groups or [group.frozen for group in groups] != frozen:
            raise ValueError(
                f"groups were frozen, unfrozen or exchanged within the phase {phase.name!r}; "
                "what is frozen is the plan's: end here, and make a plan for what is to follow"
            )
        in_epoch = i % phase.steps_per_epoch
        if in_epoch == 0 or i == start:
            batches = training.data.train_batches(training.epoch, training.preprocess, in_epoch)
            batches = backends.get(training.device).uploads(batches)
        training.set_rates(phase, i)
        record = training.train_step(next(batches), phase.name, norms=norms)
        if in_epoch == phase.steps_per_epoch - 1:
            training.read_losses()
            record.validation = training.validation = evaluate(training, training.data)
            expect_finite(training, record.validation)
            training.epoch += 1
        if i == phase.steps - 1:
            record.proof = prove(training.phase_digests, training.model, expected)
        training.history.append(record)
        yield record


@contextlib.contextmanager
def released(observers: Sequence[Watcher]) -> Iterator[None]:
    """However this block ends, observers that have a `release` are then called by it: a run lets
    others work on its folder.
    """
    try:
        yield
    finally:
        for observer in observers:
            getattr(observer, "release", bool)()
