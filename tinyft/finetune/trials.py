"""Training tried out and undone: the learning-rate finder trains a little with a rate that grows
from tiny to huge, and the forecast measures what the steps of a plan cost.

Source of the finder: Smith, Cyclical learning rates (2017); fastai 2.8.12 `Learner.lr_find` and its
four suggestion rules.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tinyft import backends
from tinyft.data.loader import Batch
from tinyft.data.prefetch import free_memory
from tinyft.display import Displayed, aligned
from tinyft.engine.tape import no_grad
from tinyft.errors import NonFiniteLossError, RunError
from tinyft.finetune.feature_cache import FeatureCache
from tinyft.finetune.groups import expect_comparable
from tinyft.finetune.judge import judge_batch
from tinyft.finetune.plan import Plan
from tinyft.finetune.records import SmoothLoss
from tinyft.finetune.run.folder import EPOCH_CHECKPOINT_BYTES
from tinyft.finetune.run.state import undone
from tinyft.finetune.schedule import Phase
from tinyft.finetune.training import Training
from tinyft.nn.folding import fold
from tinyft.nn.layer_table import forward_nodes
from tinyft.progress import tracked

MEASURED = 2  # steps, or batches, that are timed after one that is not


@dataclass(frozen=True)
class Suggestion:
    """A learning rate, and in a sentence how the rule came to it."""

    lr: float
    working: str


@dataclass(frozen=True)
class LrFinding(Displayed):
    """The curve, raw and smoothed, and what each rule reads from it."""

    lrs: np.ndarray
    losses: np.ndarray
    smooth_losses: np.ndarray
    suggestions: dict[str, Suggestion]

    def __str__(self) -> str:
        rows = [(rule, f"{s.lr:.2e}", s.working) for rule, s in self.suggestions.items()]
        return "\n".join(aligned(rows))


def lr_find(
    training: Training,
    start_lr: float = 1e-7,
    end_lr: float = 10,
    num_it: int = 100,
    stop_div: bool = True,
) -> LrFinding:
    """Train up to `num_it` steps with one rate for all groups that grows from start_lr to end_lr.

    It stops when the smoothed loss exceeds four times its best (unless stop_div=False) or is no
    number. The learner is left exactly as it was, optimizer state and batch norm statistics
    included.
    Raises: ValueError for no whole number of steps, or rates that do not rise from above zero;
    DataError as a plan;
    RunError if there were too few steps to read anything from
    """
    data = training.own_data()
    if not isinstance(num_it, int | np.integer) or num_it < 1:
        raise ValueError(f"num_it must be a whole number of at least 1; got {num_it!r}")
    if not 0 < start_lr < end_lr < math.inf:
        raise ValueError(f"expected 0 < start_lr < end_lr; got {start_lr} and {end_lr}")
    expect_comparable(data, [norm.statistics for norm in training.batch_norms])
    # differs from fastai: counters and gradients are restored too
    with undone(training):
        lrs, losses, smooth, points = _sweep(training, start_lr, end_lr, num_it, stop_div)
    kept = slice(num_it // 10, max(0, points - 5))
    return LrFinding(
        np.array(lrs),
        np.array(losses),
        np.array(smooth, np.float32),
        suggest(np.array(lrs, np.float32)[kept], np.array(smooth, np.float32)[kept]),
    )


def _sweep(
    training: Training, start_lr: float, end_lr: float, num_it: int, stop_div: bool
) -> tuple[list[float], list[float], list[float], int]:
    """The rates that were tried, the loss of each step, and its smoothed value; and how many points
    fastai would have: it goes on after a NaN, and stops at the infinite one.
    """
    lrs: list[float] = []
    losses: list[float] = []
    smooth: list[float] = []
    training.smooth = SmoothLoss()
    best = math.inf
    for i, batch in enumerate(tracked(endless_batches(training), "trying rates", num_it, "steps")):
        lr = start_lr * (end_lr / start_lr) ** (i / num_it)
        for group in training.groups:
            group.lr = lr
        try:
            record = training.train_step(batch, "lr_find")
            training.read_losses()
        except NonFiniteLossError as error:
            return lrs, losses, smooth, num_it if math.isnan(error.loss) else i + 1
        lrs.append(lr)
        losses.append(record.loss)
        smooth.append(record.smooth_loss)
        best = min(best, record.smooth_loss)
        if i + 1 == num_it or (stop_div and record.smooth_loss > 4 * best):
            break
    return lrs, losses, smooth, len(lrs)


def endless_batches(training: Training) -> Iterator[Batch]:
    """Training batches, epoch after epoch."""
    for epoch in itertools.count(training.epoch):
        yield from training.own_data().train_batches(epoch, training.preprocess)


def suggest(lrs: np.ndarray, losses: np.ndarray) -> dict[str, Suggestion]:
    """Apply fastai's four rules to a curve (float32, float32), cut at the first NaN.

    Raises: RunError if fewer than two points are left
    """
    holes = np.flatnonzero(np.isnan(losses))
    if len(holes):
        lrs, losses = lrs[: holes[0]], losses[: holes[0]]
    if len(losses) < 2:
        raise RunError(
            f"the curve has only {len(losses)} usable points; give lr_find more steps, "
            "or a smaller start_lr if the loss exploded at once"
        )
    return {name: rule(lrs, losses) for name, rule in RULES.items()}


def valley(lrs: np.ndarray, losses: np.ndarray) -> Suggestion:
    """Halfway down the longest strictly falling subsequence."""
    n = len(losses)
    length = [1] * n
    start = best = 0
    for i in range(1, n):
        for j in range(i):
            if losses[i] < losses[j] and length[i] < length[j] + 1:
                length[i] = length[j] + 1
            if length[best] < length[i]:
                best = i
                start = best - length[best]  # as fastai: one too early
    third = (best - start) / 3
    index = start + int(third) + int(third / 2)
    first, last = lrs[max(start, 0)], lrs[best]
    working = f"the longest fall goes from {first:.2e} to {last:.2e}; this lies halfway down it"
    if best == 0:
        working = "the loss falls nowhere: the first rate of the curve"
    elif index < 0:
        working = "the loss falls once, at the start: too short a curve; the last rate of it"
    return Suggestion(float(lrs[index]), working)


def slide(lrs: np.ndarray, losses: np.ndarray) -> Suggestion:
    """The last rate, coming from the right, before the slope over 15 points becomes even."""
    slope = np.gradient(losses)
    right, left = -1, -16
    left = max(left, -len(losses))
    rate = lrs[left]
    while left >= -len(losses) and abs(slope[right] - slope[left]) > 0.005:
        rate = lrs[left]
        right, left = right - 1, left - 1
    if left >= -len(losses):
        working = "coming from the right, the slope over 15 points becomes even here"
    else:
        working = "the slope over 15 points is even nowhere: the first rate of the curve"
    return Suggestion(float(rate), working)


def minimum(lrs: np.ndarray, losses: np.ndarray) -> Suggestion:
    """A tenth of the rate with the smallest loss."""
    index = int(losses.argmin())
    return Suggestion(
        float(lrs[index]) / 10, f"the smallest loss is at {lrs[index]:.2e}; a tenth of it"
    )


def steep(lrs: np.ndarray, losses: np.ndarray) -> Suggestion:
    """The rate at which the loss falls fastest per multiple of the rate."""
    slope = (losses[1:] - losses[:-1]) / (np.log(lrs[1:]) - np.log(lrs[:-1]))
    index = int(slope.argmin())
    return Suggestion(float(lrs[index]), "the loss falls fastest per multiple of the rate")


RULES: dict[str, Callable[[np.ndarray, np.ndarray], Suggestion]] = {
    "valley": valley,
    "slide": slide,
    "minimum": minimum,
    "steep": steep,
}


# ------------------------------------------------------------------------------------- the forecast


@dataclass(frozen=True)
class Forecast:
    """Seconds of training and of validation, the most memory in use (None where unknown), and what
    a run's folder takes, most of it checkpoints.

    Where a step would not fit into `free_bytes`, nothing was measured: the seconds are NaN.
    """

    training_seconds: float
    validation_seconds: float
    peak_bytes: int | None
    free_bytes: int | None = None
    disk_bytes: int = 0

    def __str__(self) -> str:
        if self.free_bytes is not None and self.peak_bytes is not None:
            return (
                f"forecast: a step takes about {self.peak_bytes / 1e9:.1f} GB of memory, and "
                f"{self.free_bytes / 1e9:.1f} GB are free, so none was tried; use smaller batches "
                "or a smaller size"
            )
        total = self.training_seconds + self.validation_seconds
        memory = "" if self.peak_bytes is None else f", {self.peak_bytes / 1e9:.1f} GB of memory"
        return (
            f"forecast: about {total:.0f} s ({self.training_seconds:.0f} s of training, "
            f"{self.validation_seconds:.0f} s of validation){memory}, "
            f"{self.disk_bytes / 1e6:,.0f} MB on disk"
        )


def forecast(training: Training, plan: Plan) -> Forecast:
    """Measure some steps of each phase and some batches of validation, and multiply. The learner is
    left as it was.

    The first of each is not counted: it may compile kernels. Pictures come from the loader, as in
    training. Writing a run's files is not counted. What would not fit into memory is not tried.
    """
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
    peak = _peak_bytes(training, plan)
    return Forecast(seconds, validation, peak, disk_bytes=run_bytes(training, plan))


def run_bytes(training: Training, plan: Plan) -> int:
    """About what the folder of a run takes: a checkpoint an epoch, each with the weights and what
    the optimizer remembers of those that train, and the learner twice, once as it was best.
    """
    weights = sum(array.nbytes for array in training.model.state_dict().values())
    remembered = len((training.optimizer.remembers or {"average"}) - {"step"})
    itemsize, kept = np.dtype(training.dtype).itemsize, 0
    for phase, states in zip(plan.phases, plan.states, strict=True):
        trainable = sum(state.trainable for state in states)
        kept += phase.epochs * (weights + remembered * trainable * itemsize)
    return min(kept, EPOCH_CHECKPOINT_BYTES) + 2 * weights


def step_bytes(training: Training, plan: Plan) -> int:
    """About what the largest step of a plan takes, from shapes alone: pictures; weights, gradients
    and what the optimizer remembers; and the output of every op, which its backward pass or that of
    the next op reads. Where nothing of the body trains, only three outputs at a time.
    """
    side, N = training.adjusted_preprocess().crop, training.own_data().batch_size
    outputs = [
        math.prod(n.output_shape[1:]) for n in forward_nodes(training.model, (side, side, 3))
    ]
    trains = any(g.trainable and not g.in_head for states in plan.states for g in states)
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
    data, preprocess = training.own_data(), training.adjusted_preprocess()
    count = -(-data.n_valid // data.requested_batch_size)
    batches = itertools.chain.from_iterable(
        data.valid_batches(preprocess) for _ in itertools.count()
    )
    with no_grad(), backends.use(training.device):
        folding = _seconds(training, lambda: fold(training.model), 1)
        network = fold(training.model, mirrored=training.mirrored)
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
    data = training.own_data()
    to_come = data.cache.bytes_of(data.n_train + data.n_valid) - data.cache.used
    return so_far + max(plan.cached_bytes) + max(to_come, 0)
