"""The learner: everything that one does with a network and its pictures.

Its methods are functions that work on a `Training`, each in the file that its import names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyft.finetune import answering, describe, judge, loop, planning, trials
from tinyft.finetune.loop import Observer
from tinyft.finetune.records import Evaluation
from tinyft.finetune.run import save
from tinyft.finetune.training import Training


class Learner(Training):
    """A network that can be trained on `data`. Made by `vision_learner`."""

    # look before you leap
    plan = planning.plan
    one_cycle_plan = planning.one_cycle_plan
    plan_of = planning.plan_of
    describe = describe.describe
    forecast = trials.forecast
    lr_find = trials.lr_find
    # train
    execute = loop.execute
    steps = loop.steps
    # use what was trained
    evaluate = judge.evaluate
    predict = answering.predict
    embed = answering.embed
    save = save.save

    def fine_tune(
        self,
        epochs: int,
        base_lr: float = 2e-3,
        *,
        out: str | Path | None = None,
        observers: Sequence[Observer] = (),
        progress: bool | None = None,
        **options: Any,
    ) -> list[Evaluation]:
        """Train the head alone, then everything; the validation of each epoch.

        `options` are those of `plan`, `out`, `observers` and `progress` those of `execute`.
        """
        plan = self.plan(epochs, base_lr, **options)
        return self.execute(plan, out=out, observers=observers, progress=progress)

    def fit_one_cycle(
        self,
        epochs: int,
        lr_max: float | slice | Sequence[float] | None = None,
        *,
        out: str | Path | None = None,
        observers: Sequence[Observer] = (),
        progress: bool | None = None,
        **options: Any,
    ) -> list[Evaluation]:
        """Train one cycle with what is frozen now; the validation of each epoch.

        `options` are those of `one_cycle_plan`, the others those of `execute`.
        """
        plan = self.one_cycle_plan(epochs, lr_max, **options)
        return self.execute(plan, out=out, observers=observers, progress=progress)

    def __repr__(self) -> str:
        return f"<Learner: {self.arch}, {len(self.classes)} classes, {self.step} steps made>"
