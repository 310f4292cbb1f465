"""The learner: everything that one does with a network and its pictures, a line each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tinyft.data.loader import PictureData
from tinyft.finetune import loop
from tinyft.finetune import plan as plans
from tinyft.finetune.describe import Description, describe
from tinyft.finetune.forecast import Forecast, forecast
from tinyft.finetune.judge import evaluate, predict
from tinyft.finetune.loop import Watcher
from tinyft.finetune.lr_find import LrFinding, lr_find
from tinyft.finetune.plan import Plan
from tinyft.finetune.recipe import Phase
from tinyft.finetune.records import Evaluation, Prediction, StepRecord
from tinyft.finetune.run.save import save
from tinyft.finetune.training import Training


class Learner(Training):
    """A network that can be trained on `data`. Made by `vision_learner`."""

    def __repr__(self) -> str:
        return f"<Learner: {self.arch}, {len(self.classes)} classes, {self.step} steps made>"

    # ------------------------------------------------------------------------------------- planning

    def plan(
        self,
        epochs: int,
        base_lr: float = 2e-3,
        *,
        freeze_epochs: int = 1,
        weight_decay: float | None = None,
        stale_gradients: bool = False,
        **schedule: Any,
    ) -> Plan:
        """What `fine_tune` with these arguments would do. Nothing is changed.

        `schedule` may hold lr_mult, pct_start, div, div_final and moms, with fastai's meaning and
        defaults.
        Raises: ValueError, also if there are no epochs; DataError without pictures for an epoch
        """
        return plans.fine_tune_plan(
            self, epochs, base_lr, freeze_epochs=freeze_epochs, weight_decay=weight_decay,
            stale_gradients=stale_gradients, **schedule,
        )  # fmt: skip

    def one_cycle_plan(
        self,
        epochs: int,
        lr_max: float | slice | Sequence[float] | None = None,
        *,
        first_trainable: int | None = None,
        reset_optimizer: bool | None = None,
        weight_decay: float | None = None,
        **schedule: Any,
    ) -> Plan:
        """What `fit_one_cycle` would do, with the groups before `first_trainable` frozen (default:
        as now). The optimizer goes on with what it remembers, unless other groups are frozen than
        now or `reset_optimizer` says otherwise.
        Raises: ValueError, DataError as `plan`
        """
        return plans.one_cycle_plan(
            self, epochs, lr_max, first_trainable=first_trainable,
            reset_optimizer=reset_optimizer, weight_decay=weight_decay, **schedule,
        )  # fmt: skip

    def plan_of(
        self,
        phases: Sequence[Phase],
        *,
        weight_decay: float | None = None,
        stale_gradients: bool = False,
        reset_optimizer: bool = True,
    ) -> Plan:
        """The plan of phases of one's own, such as `one_cycle_phase` makes; for `execute` or
        `steps`.

        Gradual unfreezing is a phase for each group, last group first:

            steps, n = learner.data.steps_per_epoch, len(learner.groups)
            learner.plan_of([
                one_cycle_phase(f"{n - i} groups", 1, steps, 1e-3, n, first_trainable=i)
                for i in reversed(range(n))
            ])
        Raises: ValueError, DataError as `plan`; TypeError for what is no phase
        """
        return plans.plan_of(
            self, phases, weight_decay=weight_decay, stale_gradients=stale_gradients,
            reset_optimizer=reset_optimizer,
        )  # fmt: skip

    def describe(self) -> Description:
        """One line a layer: group, rate now, what trains, what moves; prints as a table."""
        return describe(self)

    def forecast(self, plan: Plan) -> Forecast:
        """What a plan will take, from a measurement of a few steps that leaves no trace."""
        self.own_data()
        return forecast(self, plan)

    # ------------------------------------------------------------------------------------- training

    def fine_tune(
        self,
        epochs: int,
        base_lr: float = 2e-3,
        *,
        out: str | Path | None = None,
        observers: Sequence[Watcher] = (),
        **options: Any,
    ) -> list[Evaluation]:
        """Train the head alone, then everything; options: see `plan`. The validation of each epoch.

        With `out` the run is written to that folder; `finetune/run/resume.py` goes on with it.
        """
        return self.execute(self.plan(epochs, base_lr, **options), out=out, observers=observers)

    def fit_one_cycle(
        self,
        epochs: int,
        lr_max: float | slice | Sequence[float] | None = None,
        *,
        out: str | Path | None = None,
        observers: Sequence[Watcher] = (),
        **options: Any,
    ) -> list[Evaluation]:
        """One cycle with what is frozen now; options: see `one_cycle_plan`, and pct_start, div,
        div_final, moms.
        """
        plan = self.one_cycle_plan(epochs, lr_max, **options)
        return self.execute(plan, out=out, observers=observers)

    def execute(
        self,
        plan: Plan,
        *,
        out: str | Path | None = None,
        observers: Sequence[Watcher] = (),
        start: int = 0,
    ) -> list[Evaluation]:
        """Run a plan to its end (from its step `start`, when resumed) and tell the observers of
        every step, measured if one of them asks for `norms`.
        """
        return loop.execute(self, plan, out=out, observers=observers, start=start)

    def steps(self, plan: Plan, *, norms: bool = False, start: int = 0) -> Iterator[StepRecord]:
        """Execute a plan, one optimizer step at a time.

        `norms` measures gradients and updates, for the records' groups and per parameter in
        `self.updates`, which costs a few percent of a step.
        `start` continues a plan whose first steps were made before, with the state that they left
        behind.
        Raises: NonFiniteLossError for a loss, also of a validation, that is no number; RunError if
        a frozen tensor moved; ValueError if the learner was changed since the plan was made
        """
        return loop.steps(self, plan, norms=norms, start=start)

    # ------------------------------------------------------------------------------------- using it

    def evaluate(self, data: PictureData | None = None) -> Evaluation:
        """Accuracy and mean loss over the validation pictures (of `data`, else the learner's)."""
        return evaluate(self, data or self.own_data())

    def predict(self, images: Any) -> Prediction | list[Prediction]:
        """The class of a picture: a path, or an array (H, W, 3) uint8. A list gives a list."""
        if isinstance(images, list | tuple):
            return predict(self, images)
        return predict(self, [images])[0]

    def lr_find(self, **options: Any) -> LrFinding:
        """Try learning rates from tiny to huge, and restore everything; options: see lr_find.py."""
        self.own_data()
        return lr_find(self, **options)

    def save(self, path: str | Path) -> None:
        """Write the learner as a weights file that `load_learner` reads; see run/save.py."""
        save(self, path)
