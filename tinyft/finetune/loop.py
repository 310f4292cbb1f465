"""A plan carried out: its phases, epochs and steps, and who watches them.

`steps` is the whole of training: it walks through a plan and yields a record after each optimizer
step. `execute` is a loop over it, and so may be the reader's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from tinyft import backends
from tinyft.data.loader import Batch
from tinyft.engine.tensor import Tensor
from tinyft.finetune.feature_cache import FeatureCache
from tinyft.finetune.groups import expected_identical, prove
from tinyft.finetune.judge import evaluate, expect_finite
from tinyft.finetune.plan import Plan
from tinyft.finetune.planning import expect_unchanged
from tinyft.finetune.records import Evaluation, StepRecord
from tinyft.finetune.run.folder import Run
from tinyft.finetune.schedule import Phase
from tinyft.finetune.training import Training
from tinyft.progress import Display, showing_training, working

Gradients = Callable[[dict[str, Tensor]], None]  # may change the `grad` of parameters


Watched = TypeVar("Watched", bound=Training, contravariant=True)  # in practice a Learner


class Observer(Protocol[Watched]):
    """A follower of a run: a progress display, a run folder, a ledger.

    One with a true attribute `norms` has every step measured; one with a method `release` has it
    called at the end, however the run ends.
    """

    def begin(self, learner: Watched, plan: Plan, /) -> None: ...

    def after_step(self, learner: Watched, record: StepRecord, /) -> None: ...

    def end(self, learner: Watched, /) -> None: ...


def execute(
    learner: Watched,
    plan: Plan,
    *,
    out: str | Path | None = None,
    observers: Sequence[Observer[Watched]] = (),
    start: int = 0,
    progress: bool | None = None,
) -> list[Evaluation]:
    """Run a plan to its end (from its step `start`, when resumed), and tell the observers of every
    step; the validation of each epoch.

    With `out` the run is written to that folder, and `finetune/run/resume.py` goes on with it.
    Fastai's table is printed as it grows, and a bar on a terminal, unless `progress=False`.
    Raises: DataError for pictures that cannot be decoded, before anything begins; as `steps`;
    RunError if the folder is taken
    """
    with showing_training(progress) as display:
        table: list[Observer[Training]] = [Table(display)] if display else []
        return _execute(learner, plan, out, [*table, *observers], start)


def _execute(
    learner: Watched, plan: Plan, out: str | Path | None, observers: list[Observer[Watched]],
    start: int,
) -> list[Evaluation]:  # fmt: skip
    learner.own_data().expect_whole(learner.preprocess)
    learner.run_folder = None
    if out is not None:
        run = Run.create(out)
        learner.run_folder = run.path
        observers.append(run)  # last: what it saves, the others have seen
    try:
        for observer in observers:
            observer.begin(learner, plan)
        norms = any(getattr(observer, "norms", False) for observer in observers)
        with working(plan.phases[0].name, plan.steps, "steps", done=start) as work:
            for record in steps(learner, plan, norms=norms, start=start):
                work.what = record.phase
                work.advance(note=_figures(learner, record))
                for observer in observers:
                    observer.after_step(learner, record)
        for observer in observers:
            observer.end(learner)
    finally:
        for observer in observers:  # a run lets others work on its folder
            getattr(observer, "release", bool)()
    return [r.validation for r in learner.history[-plan.steps :] if r.validation]


def _figures(learner: Training, record: StepRecord) -> str:
    """Loss and accuracy so far; "" while a GPU has the loss, which is not worth waiting for."""
    if not record.is_fetched:
        return ""
    newest = learner.validation
    accuracy = f", accuracy {100 * newest.accuracy:.2f} %" if newest else ""
    return f"loss {record.smooth_loss:.4f}{accuracy}"


class Table:
    """Prints a line an epoch and a header a phase, as fastai does.

    Source: fastai 2.8.12 `Recorder`, fastprogress 1.0.3 `ConsoleMasterBar`
    """

    HEADER = ("epoch   ", "train_loss", "valid_loss", "accuracy", "time    ")

    def __init__(self, display: Display):
        self.display = display
        self.phase: int | None = None

    def begin(self, learner: Training, plan: Plan) -> None:
        self.plan, self.began = plan, time.monotonic()
        fair = ("balanced",) if learner.own_data().uneven else ()
        self.header = (*self.HEADER[:4], *fair, *self.HEADER[4:])

    def after_step(self, learner: Training, record: StepRecord) -> None:
        number, i = self.plan.at(record.step - self.plan.first_step)
        if number != self.phase:
            self.phase = number
            self.display.line("  ".join(self.header))
        if record.validation:
            epoch = i // self.plan.phases[number].steps_per_epoch
            minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
            hours = f"{minutes // 60}:" if minutes >= 60 else ""
            judged = record.validation
            figures = record.smooth_loss, judged.loss, judged.accuracy, judged.balanced_accuracy
            cells = [
                str(epoch),
                *(f"{value:.6f}" for value in figures if value is not None),
                f"{hours}{minutes % 60:02}:{seconds:02}",
            ]
            pairs = zip(cells, self.header, strict=True)
            self.display.line("  ".join(cell.ljust(len(title)) for cell, title in pairs))
            self.began = time.monotonic()

    def end(self, learner: Training) -> None:
        """Everything has been said."""


def steps(
    learner: Training,
    plan: Plan,
    *,
    norms: bool = False,
    start: int = 0,
    gradients: Gradients | None = None,
) -> Iterator[StepRecord]:
    """Execute a plan, one optimizer step each time that a record is asked for.

    `norms` measures gradients and updates, for the records' groups and per parameter in
    `learner.updates`, which costs a few percent of a step. `start` continues a plan whose first
    steps were made before, with the state that they left behind. `gradients` is called between
    backward and update with the parameters that have a gradient, by name, and may change it: clip
    it, or add those of other machines.
    Raises: NonFiniteLossError for a loss, also of a validation, that is NaN or infinite; RunError
    if a frozen tensor moved; ValueError if the learner was changed since the plan was made
    """
    learner.own_data()
    done = 0  # steps of the phases before this one
    for phase, cached_bytes in zip(plan.phases, plan.cached_bytes, strict=True):
        if start < done + phase.steps:
            expect_unchanged(learner, plan, max(start, done))
            learner.enter(phase, **plan.switches, resumed=start > done)
            learner.cache = FeatureCache(learner) if cached_bytes else None
            try:
                yield from _phase(learner, phase, norms, max(0, start - done), gradients)
            finally:
                learner.cache = None
        done += phase.steps


def _phase(
    learner: Training, phase: Phase, norms: bool, start: int, gradients: Gradients | None
) -> Iterator[StepRecord]:
    """All epochs of a phase: train on each batch, validate after each epoch, prove at the end."""
    groups, expected, data = learner.groups, expected_identical(learner.groups), learner.own_data()
    frozen = [group.frozen for group in groups]
    batches: Iterator[Batch] = iter(())
    for i in range(start, phase.steps):
        if learner.groups is not groups or [group.frozen for group in groups] != frozen:
            raise ValueError(
                f"groups were frozen, unfrozen or exchanged within the phase {phase.name!r}; "
                "what is frozen is the plan's: end here, and make a plan for what is to follow"
            )
        in_epoch = i % phase.steps_per_epoch
        if in_epoch == 0 or i == start:
            batches = data.train_batches(learner.epoch, learner.preprocess, in_epoch)
            batches = backends.get(learner.device).uploads(batches)
        learner.set_rates(phase, i)
        record = learner.train_step(next(batches), phase.name, norms=norms, gradients=gradients)
        if in_epoch == phase.steps_per_epoch - 1:
            learner.read_losses()
            record.validation = learner.validation = evaluate(learner, data)
            expect_finite(learner, record.validation)
            learner.epoch += 1
        if i == phase.steps - 1:
            record.proof = prove(learner.phase_digests, learner.model, expected)
        learner.history.append(record)
        yield record
