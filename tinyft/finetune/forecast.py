"""What a plan will cost, from a short measurement: a few steps of each phase and a few batches of
validation, whose traces are removed.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tinyft import backends
from tinyft.data.loader import Batch
from tinyft.data.prefetch import free_memory
from tinyft.engine.tape import no_grad
from tinyft.finetune.feature_cache import FeatureCache
from tinyft.finetune.judge import judge_batch
from tinyft.finetune.lr_find import endless_batches
from tinyft.finetune.recipe import Phase
from tinyft.finetune.run.state import undone
from tinyft.nn.folding import fold
from tinyft.nn.layer_table import forward_nodes

if TYPE_CHECKING:
    from tinyft.finetune.plan import Plan
    from tinyft.finetune.training import Training

MEASURED = 2  # steps, or batches, that are timed after one that is not


@dataclass(frozen=True)
class Forecast:
    """Seconds of training and of validation, and the most memory in use (None where unknown).

    Where a step would not fit into `free_bytes`, nothing was measured: the seconds are NaN.
    """

    training_seconds: float
    validation_seconds: float
    peak_bytes: int | None
    free_bytes: int | None = None

    def __str__(self) -> str:
        if self.free_bytes is not None:
            return (
                f"forecast: a step takes about {self.peak_bytes / 1e9:.1f} GB of memory, and "
                f"{self.free_bytes / 1e9:.1f} GB are free, so none was tried; use smaller batches "
                "or a smaller size"
            )
        total = self.training_seconds + self.validation_seconds
        memory = "" if self.peak_bytes is None else f", {self.peak_bytes / 1e9:.1f} GB of memory"
        return (
            f"forecast: about {total:.0f} s ({self.training_seconds:.0f} s of training, "
            f"{self.validation_seconds:.0f} s of validation){memory}"
        )


def forecast(training: Training, plan: Plan) -> Forecast:
    """Measure some steps of each phase and some batches of validation, and multiply. The learner is
    left as it was.

    The first of each is not counted: it may compile kernels. Pictures come from the loader, as in
    training. Writing a run's files is not counted. What would not fit into memory is not tried.
    """
    training.own_data()
    needed, free = step_bytes(training, plan), free_memory()
    if needed > free and not training.device.startswith("gpu"):  # whose memory it is not
        return Forecast(math.nan, math.nan, needed, free)
    seconds, evaluations = 0.0, 0
    with undone(training):
        for phase, cached_bytes in zip(plan.phases, plan.cached_bytes, strict=True):
            training.enter(phase, **plan.switches)
            training.set_rates(phase, 0)
            seconds += (_with_cache if cached_bytes else _without_cache)(training, phase)
            evaluations += 1 if cached_bytes else phase.epochs  # the head alone takes no time
    validation = evaluations * _evaluation(training)
    return Forecast(seconds, validation, _peak_bytes(training, plan))


def step_bytes(training: Training, plan: Plan) -> int:
    """About what the largest step of a plan takes, from shapes alone: pictures; weights, gradients
    and what the optimizer remembers; and the output of every op, which its backward pass or that of
    the next op reads. Where nothing of the body trains, only three outputs at a time.
    """
    side, N = training.adjusted_preprocess().crop, training.data.batch_size
    outputs = [
        math.prod(n.output_shape[1:]) for n in forward_nodes(training.model, (side, side, 3))
    ]
    trains = any(group.trainable for states in plan.states for group in states[:-1])
    numbers = sum(outputs) + max(outputs) if trains else 3 * max(outputs)
    itemsize, parameters = np.dtype(training.dtype).itemsize, training.model.count_parameters()
    return (N * numbers + 4 * parameters) * itemsize + N * side * side * 3


def _without_cache(training: Training, phase: Phase) -> float:
    """The seconds of a phase, each of whose steps costs the same."""
    batches = endless_batches(training)
    training.train_step(next(batches), phase.name)
    return phase.steps * _seconds(training, lambda: training.train_step(next(batches), phase.name))


def _with_cache(training: Training, phase: Phase) -> float:
    """The seconds of a phase in whose first epoch alone pictures pass through the body."""
    batches = endless_batches(training)

    def step(batch: Batch, cache: FeatureCache) -> None:
        training.cache = cache
        try:
            training.train_step(batch, phase.name)
        finally:
            training.cache = None

    cache = FeatureCache(training)
    batch = next(batches)
    step(batch, cache)
    kept = _seconds(training, lambda: step(batch, cache))
    new = _seconds(training, lambda: step(next(batches), FeatureCache(training)))
    return phase.steps_per_epoch * new + (phase.steps - phase.steps_per_epoch) * kept


def _evaluation(training: Training) -> float:
    """The seconds of one evaluation: folding the batch norms, and every batch."""
    data, preprocess = training.data, training.adjusted_preprocess()
    count = -(-data.n_valid // data.requested_batch_size)
    batches = itertools.chain.from_iterable(
        data.valid_batches(preprocess) for _ in itertools.count()
    )
    with no_grad(), backends.use(training.device):
        folding = _seconds(training, lambda: fold(training.model), 1)
        network = fold(training.model)
        judge_batch(training, network, next(batches))
        # Batch 0 is past, and the last one may be short: all of them once, or full ones only.
        times = count if count <= MEASURED + 1 else MEASURED
        return folding + count * _seconds(
            training, lambda: judge_batch(training, network, next(batches)), times
        )


def _seconds(training: Training, work: Callable[[], object], times: int = MEASURED) -> float:
    """Of one call on the learner's device, the mean over several."""
    device = backends.get(training.device)
    device.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        work()
    device.synchronize()
    return (time.perf_counter() - start) / times


def _peak_bytes(training: Training, plan: Plan) -> int | None:
    """The most memory that this process has used so far, which includes steps of every phase, and
    what will be kept beside: the body's features, and pictures that were not decoded yet.
    """
    so_far = backends.get(training.device).peak_bytes()
    if so_far is None:
        return None
    pictures = training.data.n_train + training.data.n_valid
    to_come = training.data.cache.bytes_of(pictures) - training.data.cache.used
    return so_far + max(plan.cached_bytes) + max(to_come, 0)
