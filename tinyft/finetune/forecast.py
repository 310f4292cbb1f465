"""What a plan will cost, from a short measurement: two steps of each phase, whose traces are
removed.

Next: tinyft/finetune/run.py
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyft.finetune.state import undone

if TYPE_CHECKING:
    from tinyft.finetune.learner import Learner
    from tinyft.finetune.plan import Plan


@dataclass(frozen=True)
class Forecast:
    """Seconds of training and of validation, and the most memory in use (None where unknown)."""

    training_seconds: float
    validation_seconds: float
    peak_bytes: int | None

    def __str__(self) -> str:
        total = self.training_seconds + self.validation_seconds
        memory = "" if self.peak_bytes is None else f", {self.peak_bytes / 1e9:.1f} GB of memory"
        return (
            f"forecast: about {total:.0f} s ({self.training_seconds:.0f} s of training, "
            f"{self.validation_seconds:.0f} s of validation){memory}"
        )


def forecast(learner: Learner, plan: Plan) -> Forecast:
    """Measure a step of each phase and a batch of validation, and multiply. The learner is left as
    it was.

    The first step of a phase is not counted: it may compile kernels and decode pictures.
    """
    batch = next(learner.data.train_batches(learner.epoch, learner.preprocess))
    training = 0.0
    with undone(learner):
        for phase in plan.phases:
            learner.freeze_to(phase.first_trainable)
            learner.train_step(batch, phase.name)
            training += phase.steps * _seconds(lambda: learner.train_step(batch, "forecast"))
    validation_batches = -(-learner.data.n_valid // len(batch.ids))
    pictures = list(batch.images)
    learner.predict(pictures)
    validation = _seconds(lambda: learner.predict(pictures)) * validation_batches * plan.epochs
    return Forecast(training, validation, _peak_bytes())


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _peak_bytes() -> int | None:
    """The most memory that this process has used so far."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
