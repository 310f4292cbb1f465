"""A frozen phase, ours beside PyTorch's: `tinyft bench --frozen DIR`.

The first phase of `fine_tune`: some epochs in which the head trains and the body's weights do not,
without augmentation, each with its validation. Measured twice,

    frozen    the body's batch norms normalise with their running statistics and do not train
    fastai    the default: they normalise with the batch's and train, so gradients pass the body

Ours is the learner as anybody uses it: features are kept where the body cannot change, validation
folds the batch norms, the proof at the end that nothing frozen moved is part of the time. PyTorch's
is the same loop without those (bench/pytorch.py), in channels_last: same weights, head,
pictures, batches, rates, optimizer; in eval mode under `frozen`, and nothing of the body keeps
values for a gradient then. Only the dropout masks differ.

Both take their batches from our loader, whose threads crop pictures ahead of the step; all are
decoded and resized before the time begins (as far as the loader's budget of memory goes). Reading
weights, building the learner and compiling are not part of the time. What is kept of a picture is
lost with the learner: each run computes all features anew.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any
from unittest import mock

from tinyft.bench.cases import OURS
from tinyft.bench.measure import PAUSE, Clock, check, error_of, turns
from tinyft.data.loader import PictureData
from tinyft.engine.tape import no_grad
from tinyft.finetune import judge, loop
from tinyft.finetune.build import vision_learner
from tinyft.finetune.learner import Learner
from tinyft.finetune.records import Evaluation
from tinyft.nn.folding import fold

THEIRS = "pytorch_channels_last"


@dataclass
class Spent:
    """Seconds of one run of the phase, and what share of the validation pictures is right then."""

    training: float
    validation: float
    accuracy: float

    @property
    def total(self) -> float:
        return self.training + self.validation


@dataclass(frozen=True)
class FrozenCase:
    """The phase that is measured. `options`: arch and weights, as `vision_learner` takes them."""

    data: PictureData
    bn: str
    epochs: int
    options: dict[str, Any]

    def learner(self) -> Learner:
        return vision_learner(self.data, bn=self.bn, device="cpu", **self.options)


def our_phase(case: FrozenCase) -> Spent:
    """Run it once by the learner."""
    learner = case.learner()
    plan = learner.plan(0, freeze_epochs=case.epochs)
    learner.forecast(plan)  # compiles, and leaves no trace
    validation: list[float] = []

    def timed_evaluate(*arguments: Any) -> Evaluation:
        started = time.perf_counter()
        evaluation = judge.evaluate(*arguments)
        validation.append(time.perf_counter() - started)
        return evaluation

    with mock.patch.object(loop, "evaluate", timed_evaluate):
        started = time.perf_counter()
        evaluations = learner.execute(plan, progress=False)
        training = time.perf_counter() - started - sum(validation)
    return Spent(training, sum(validation), evaluations[-1].accuracy)


def their_phase(case: FrozenCase) -> Spent:
    """Run it once by PyTorch.

    Raises: TinyftError if it does not compute what we do
    """
    from tinyft.bench.pytorch import TorchLearner

    learner = case.learner()
    plan = learner.plan(0, freeze_epochs=case.epochs)
    phase = plan.phases[0]
    learner.enter(phase, **plan.switches)
    first = next(case.data.train_batches(0, learner.preprocess))
    unmeasured = TorchLearner(learner, "channels_last")
    with no_grad():
        ours = fold(learner.model)(learner.input(first.images)).data
    unmeasured.body.eval()
    unmeasured.head.eval()
    check({THEIRS: error_of(unmeasured.logits(first).detach().numpy(), ours)})
    unmeasured.step(first, phase, 0)
    theirs = TorchLearner(learner, "channels_last")
    training, validation, accuracy = 0.0, 0.0, math.nan
    for epoch in range(case.epochs):
        started = time.perf_counter()
        batches = case.data.train_batches(epoch, learner.preprocess)
        for i, batch in enumerate(batches, epoch * phase.steps_per_epoch):
            theirs.step(batch, phase, i)
        trained = time.perf_counter()
        accuracy = theirs.evaluate(case.data)
        training += trained - started
        validation += time.perf_counter() - trained
    return Spent(training, validation, accuracy)


def measure(case: FrozenCase, rounds: int, *, alone: bool) -> dict[str, Any]:
    """Run both sides in turns, and say how many times our time PyTorch takes, by medians: `ratio`
    of everything, `training_ratio` without validation.
    """
    decode_all(case)
    sides = {OURS: our_phase} if alone else {OURS: our_phase, THEIRS: their_phase}
    runs: dict[str, list[Spent]] = {name: [] for name in sides}
    before = Clock.read()
    for name in turns(sides, rounds, PAUSE):
        runs[name].append(sides[name](case))
    report: dict[str, Any] = {"bn": case.bn, "epochs": case.epochs, "why": why(case)}
    report["others"] = before.others(Clock.read())
    measures = ("training", "validation", "total", "accuracy")
    report["sides"] = measured = {
        side: {name: median(getattr(run, name) for run in spent) for name in measures}
        | {"runs": [asdict(run) for run in spent]}
        for side, spent in runs.items()
    }
    if not alone:
        report["ratio"] = measured[THEIRS]["total"] / measured[OURS]["total"]
        report["training_ratio"] = measured[THEIRS]["training"] / measured[OURS]["training"]
    return report


def why(case: FrozenCase) -> str:
    """Say in a sentence where the ratio comes from."""
    data, learner = case.data, case.learner()
    if not any(learner.plan(0, freeze_epochs=case.epochs).cached_bytes):
        return (
            "nothing can be kept, since the body's batch norms move with each batch: both sides "
            "pass through the whole body at every step, and the ratio is that of the kernels"
        )
    theirs = case.epochs * (data.steps_per_epoch * data.batch_size + data.n_valid)
    ours = computed_once(case) + data.n_valid
    return (
        f"the body looks at {ours} pictures instead of {theirs}, since the features of each are "
        "kept; the rest is the speed of inference"
    )


def computed_once(case: FrozenCase) -> int:
    """Count the pictures that pass through the body in training if features are kept: an epoch's,
    and with the next epoch those that it left out, filled up to a batch.
    """
    data = case.data
    epoch = data.steps_per_epoch * data.batch_size
    others_come = data.shuffle and case.epochs > 1 and epoch < data.n_train
    return epoch + (data.batch_size if others_come else 0)


def decode_all(case: FrozenCase) -> None:
    """Let the loader decode every picture once; it remembers them."""
    preprocess = case.learner().preprocess
    for epoch in range(case.epochs):
        for _ in case.data.train_batches(epoch, preprocess):
            pass
    for _ in case.data.valid_batches(preprocess):
        pass
