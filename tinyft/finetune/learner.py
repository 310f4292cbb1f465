"""The learner: a network, its data, and the loop that trains one on the other.

`steps` is the whole of training: it walks through a plan and yields a record after each optimizer
step. `fine_tune` is a loop over it, and so may be the reader's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import InitVar, asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyft import backends
from tinyft.data.loader import Batch, PictureData
from tinyft.engine.tensor import Tensor
from tinyft.errors import DataError, NonFiniteLossError, ShapeError
from tinyft.finetune.describe import Description, describe
from tinyft.finetune.feature_cache import FeatureCache
from tinyft.finetune.forecast import Forecast, forecast
from tinyft.finetune.groups import (
    BN_PRESETS,
    Group,
    Grouping,
    freeze_to,
    head_at,
    layer_groups,
    rates_in_words,
)
from tinyft.finetune.judge import REMEDY, evaluate, expect_finite, predict
from tinyft.finetune.lr_find import LrFinding, lr_find
from tinyft.finetune.norms import UpdateMeasure, UpdateSums, group_records
from tinyft.finetune.optim import Adam
from tinyft.finetune.plan import Plan, complete_plan, expect_unchanged
from tinyft.finetune.proof import digests, expected_identical, prove
from tinyft.finetune.recipe import (
    Phase,
    expect_phases,
    fine_tune_phases,
    one_cycle_phase,
)
from tinyft.finetune.records import (
    Evaluation,
    Losses,
    Prediction,
    SmoothLoss,
    StepRecord,
    Watcher,
    released,
)
from tinyft.finetune.run.save import save
from tinyft.finetune.schedule import expect_number, per_group
from tinyft.nn.layers import Dropout
from tinyft.nn.resnet import ResNet
from tinyft.ops import cross_entropy
from tinyft.weights.preprocess import Preprocess


@dataclass(repr=False)
class Learner:
    """A network that can be trained on `data`. Made by `vision_learner`."""

    model: ResNet
    data: PictureData
    preprocess: Preprocess
    arch: str
    classes: list[str]
    bn: str = "fastai"
    seed: int = 0
    device: str = "auto"
    optimizer_class: Any = Adam
    weight_decay: float | None = None  # None: the optimizer's own
    label_smoothing: float = 0.0
    class_weights: np.ndarray | None = None
    dtype: str = "float32"
    facts: dict[str, Any] = field(default_factory=dict)  # where the weights came from, which head
    lr: float = 1e-3
    grouping: InitVar[Any] = None  # layer groups of one's own; see layer_groups

    def __post_init__(self, grouping: Any) -> None:
        if self.bn not in BN_PRESETS:
            known = ", ".join(BN_PRESETS)
            raise ValueError(f"bn must be one of {known}; got {self.bn!r}")
        self.dtype = np.dtype(self.dtype).name  # "float64", also from np.float64
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be float32 or float64; got {self.dtype}")
        self.optimizer = self.optimizer_class(layer_groups(self.model, grouping))
        if self.weight_decay is None:
            self.weight_decay = self.optimizer.default_weight_decay
        expect_number("weight_decay", self.weight_decay)
        expect_number("label_smoothing", self.label_smoothing, 1)
        self.seed, self.weight_decay = int(self.seed), float(self.weight_decay)
        self.label_smoothing = float(self.label_smoothing)
        if self.class_weights is not None:
            self.class_weights = _class_weights(self.class_weights, len(self.classes), self.dtype)
        self.groups = self.optimizer.groups
        self.dropouts = [m for _, m in self.model.named_modules() if isinstance(m, Dropout)]
        for layer, dropout in enumerate(self.dropouts, 1):  # each draws its own masks
            dropout.seed, dropout.layer = self.seed, layer
        self.updates: dict[str, UpdateSums] | None = None  # of the last step, if it was measured
        self.trained: frozenset[str] = frozenset()  # parameters that ever had a gradient
        self.step = self.epoch = 0
        self.smooth, self.losses = SmoothLoss(), Losses()
        self.cache: FeatureCache | None = None  # of the phase in progress, if it keeps features
        self.phase_digests: dict[str, str] = {}
        self.history: list[StepRecord] = []
        self.validation: Evaluation | None = None  # the newest
        self.run_folder: Path | None = None  # where the run in progress is written
        self.to(self.device)

    def __repr__(self) -> str:
        return f"<Learner: {self.arch}, {len(self.classes)} classes, {self.step} steps made>"

    def to(self, device: str) -> Learner:
        """Move everything to a device, "cpu", "gpu" or "gpu:1": parameters, statistics, what the
        optimizer remembers, features that were kept. "auto": a GPU if one works. Returns itself.

        Files never say where a learner was: they are written from main memory.
        Raises: DeviceError for a device that does not work here; nothing is moved then
        """
        device = backends.resolve(device)
        self.read_losses()
        self.model.to(device)
        self.optimizer.to(device)
        if self.class_weights is not None:
            self.class_weights = backends.place(self.class_weights, device)
        if self.cache is not None:
            self.cache.to(device)
        self.device = device
        return self

    # ---------------------------------------------------------------------------------- what trains

    @property
    def groups(self) -> Sequence[Group]:
        """The layer groups, as the optimizer has them: there are no others.

        What `layer_groups` takes may be assigned, between two plans: the optimizer goes on with
        them, and a new group is frozen if all that is in it was.
        Raises: ValueError for what is no division of the network
        """
        return self.optimizer.groups

    @groups.setter
    def groups(self, own: Grouping | Sequence[Group] | Any) -> None:
        groups = layer_groups(self.model, own)
        held = {name for group in self.groups if group.frozen for name in group.parameters}
        rests = [bool(group.parameters) and group.parameters.keys() <= held for group in groups]
        self.optimizer.groups = groups
        freeze_to(groups, [*rests, False].index(False), self.bn)
        for group in groups:
            group.weight_decay = self.weight_decay
        self.batch_norms = [norm for group in groups for norm in group.norms.values()]
        self.measure = UpdateMeasure(groups)

    def freeze_to(self, first_trainable: int, *, stale_gradients: bool = False) -> None:
        """Freeze the groups before this one (negative: from the end); the optimizer forgets all.

        With `stale_gradients`, frozen parameters that once trained decay on, as in fastai.
        Raises: ValueError for a group that is not there
        """
        n = len(self.groups)
        if not isinstance(first_trainable, int | np.integer) or not -n <= first_trainable <= n:
            raise ValueError(
                f"first_trainable should be a whole number from {-n} to {n}; got {first_trainable}"
            )
        if first_trainable < 0:
            first_trainable += n
        stale = self.trained if stale_gradients else frozenset()
        freeze_to(self.groups, first_trainable, self.bn, stale)
        self.optimizer.clear()

    def freeze(self) -> None:
        """Freeze all but the head."""
        self.freeze_to(head_at(self.groups))

    def unfreeze(self) -> None:
        """Train everything."""
        self.freeze_to(0)

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
        options = {"base_lr": base_lr, "freeze_epochs": freeze_epochs, **schedule}
        steps, n_groups = self._own_data().steps_per_epoch, len(self.groups)
        phases = fine_tune_phases(epochs, steps, n_groups, head_at=head_at(self.groups), **options)
        switches = {"weight_decay": weight_decay, "stale_gradients": stale_gradients}
        return complete_plan(self, "plan", phases, {"epochs": epochs, **options}, **switches)

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
        frozen_now = sum(group.frozen for group in self.groups)
        if first_trainable is None:
            first_trainable = frozen_now
        if reset_optimizer is None:
            reset_optimizer = first_trainable != frozen_now or not self.optimizer.state
        n_groups = len(self.groups)
        peaks = per_group(self.lr if lr_max is None else lr_max, n_groups)
        options = {"first_trainable": first_trainable, **schedule}
        steps = self._own_data().steps_per_epoch
        phase = one_cycle_phase("one cycle", epochs, steps, peaks, n_groups, **options)
        switches = {"weight_decay": weight_decay, "reset_optimizer": reset_optimizer}
        arguments = {"epochs": epochs, "lr_max": peaks, **options}
        return complete_plan(self, "one_cycle_plan", [phase], arguments, **switches)

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
        phases = list(phases)
        expect_phases(phases, len(self.groups), self._own_data().steps_per_epoch)
        switches = {"weight_decay": weight_decay, "stale_gradients": stale_gradients,
                    "reset_optimizer": reset_optimizer}  # fmt: skip
        arguments = {"phases": [asdict(phase) for phase in phases]}
        return complete_plan(self, "plan_of", phases, arguments, **switches)

    def describe(self) -> Description:
        """One line a layer: group, rate now, what trains, what moves; prints as a table."""
        return describe(self)

    def forecast(self, plan: Plan) -> Forecast:
        """What a plan will take, from a measurement of a few steps that leaves no trace."""
        self._own_data()
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
        self.run_folder = None
        if out is not None:
            from tinyft.finetune.run.folder import Run

            run = Run.create(out)
            self.run_folder = run.path
            observers = [*observers, run]  # last: what it saves, the others have seen
        with released(observers):
            for observer in observers:
                observer.begin(self, plan)
            norms = any(getattr(observer, "norms", False) for observer in observers)
            for record in self.steps(plan, norms=norms, start=start):
                for observer in observers:
                    observer.after_step(self, record)
            for observer in observers:
                observer.end(self)
        return [r.validation for r in self.history[-plan.steps :] if r.validation]

    def steps(self, plan: Plan, *, norms: bool = False, start: int = 0) -> Iterator[StepRecord]:
        """Execute a plan, one optimizer step at a time.

        `norms` measures gradients and updates, for the records' groups and per parameter in
        `self.updates`, which costs a few percent of a step.
        `start` continues a plan whose first steps were made before, with the state that they left
        behind.
        Raises: NonFiniteLossError for a loss, also of a validation, that is no number; RunError if
        a frozen tensor moved; ValueError if the learner was changed since the plan was made
        """
        self._own_data()
        done = 0  # steps of the phases before this one
        for phase, cached_bytes in zip(plan.phases, plan.cached_bytes, strict=True):
            if start < done + phase.steps:
                expect_unchanged(self, plan, max(start, done))
                self.enter(phase, plan, resumed=start > done)
                self.cache = FeatureCache(self) if cached_bytes else None
                try:
                    yield from self._phase(phase, norms, max(0, start - done), self.cache)
                finally:
                    self.cache = None
            done += phase.steps

    def enter(self, phase: Phase, plan: Plan, *, resumed: bool) -> None:
        """Freeze what the phase says. A new phase starts without optimizer state, unless the plan
        says otherwise.
        """
        keeps = resumed or not plan.reset_optimizer
        remembered = dict(self.optimizer.state) if keeps else {}
        self.freeze_to(phase.first_trainable, stale_gradients=plan.stale_gradients)
        self.optimizer.state.update(remembered)
        self.measure = UpdateMeasure(self.groups)
        self.weight_decay = plan.weight_decay  # for good, as in fastai
        for group in self.groups:
            group.weight_decay = plan.weight_decay
        if not resumed:
            self.smooth = SmoothLoss()
            self.phase_digests = digests(self.model)

    def set_rates(self, phase: Phase, i: int) -> None:
        """Give each group the learning rate and momentum of the phase's step `i`."""
        for group, lr in zip(self.groups, phase.lr[i], strict=True):
            group.lr, group.momentum = float(lr), float(phase.momentum[i])

    def _phase(
        self, phase: Phase, norms: bool, start: int, cache: FeatureCache | None
    ) -> Iterator[StepRecord]:
        """All epochs of a phase: train on each batch, validate after each epoch, prove at the
        end.
        """
        groups, expected = self.groups, expected_identical(self.groups)
        frozen = [group.frozen for group in groups]
        for i in range(start, phase.steps):
            if self.groups is not groups or [group.frozen for group in groups] != frozen:
                raise ValueError(
                    f"groups were frozen, unfrozen or exchanged within the phase {phase.name!r}; "
                    "what is frozen is the plan's: end here, and make a plan for what is to follow"
                )
            in_epoch = i % phase.steps_per_epoch
            if in_epoch == 0 or i == start:
                batches = self.data.train_batches(self.epoch, self.preprocess, in_epoch)
                batches = backends.get(self.device).uploads(batches)
            self.set_rates(phase, i)
            record = self.train_step(next(batches), phase.name, norms=norms, cache=cache)
            if in_epoch == phase.steps_per_epoch - 1:
                self.read_losses()
                record.validation = self.validation = self.evaluate(cache=cache)
                expect_finite(self, record.validation)
                self.epoch += 1
            if i == phase.steps - 1:
                record.proof = prove(self.phase_digests, self.model, expected)
            self.history.append(record)
            yield record

    def train_step(
        self, batch: Batch, phase: str, *, norms: bool = False, cache: FeatureCache | None = None
    ) -> StepRecord:
        """Forward, loss, backward, update: one step on one batch."""
        self.model.train()
        for dropout in self.dropouts:
            dropout.step = self.step
        statistics = [(n, n.running_mean, n.running_var) for n in self.batch_norms]
        with backends.use(self.device):
            if cache:
                logits = self.model.head(cache.features(batch))
            else:
                logits = self.model(self.input(batch.images))
            loss = self.loss(logits, batch.labels)
            rates = [group.lr for group in self.groups]
            step_loss = self.losses.add(self.step, loss.data, self.smooth, rates)
            if self.step % backends.get(self.device).steps_between_reads == 0:
                self.read_losses(statistics)
            self.optimizer.zero_grad()  # of a step that was stopped, or the caller's own
            loss.backward()
            self.optimizer.step(self.measure if norms else None)
        self.updates = self.measure.take() if norms else None
        record = StepRecord(
            phase,
            self.epoch,
            self.step,
            batch.ids,
            step_loss,
            group_records(self.groups, self.updates),
        )
        self.optimizer.zero_grad()  # the next forward pass can use their memory
        self.trained |= self.optimizer.visited
        self.step += 1
        return record

    def input(self, images: np.ndarray) -> Tensor:
        """uint8 pictures (N, S, S, 3) as the network wants them: normalised by the weights' mean
        and std.
        """
        images = backends.place(images, self.device)
        backend = backends.of(images)
        mean, std = (np.array(v, np.float32) for v in (self.preprocess.mean, self.preprocess.std))
        return Tensor.wrap(backend.images(images, mean, std, np.dtype(self.dtype)))

    def loss(self, logits: Tensor, labels: np.ndarray) -> Tensor:
        if logits.shape[-1] != len(self.classes):
            raise ShapeError(
                f"the head gives {logits.shape[-1]} numbers for each picture, and there are "
                f"{len(self.classes)} classes; attach a head for these"
            )
        return cross_entropy(
            logits,
            labels,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
        )

    def read_losses(self, statistics: Sequence[tuple] = ()) -> None:
        """Read the losses that are still on the device: all of them, or none where reading costs
        nothing, because then every step reads its own.

        Raises: NonFiniteLossError for one that is no number. A step that is only forward so far is
        taken back: its batch norms get the running `statistics` from before.
        """
        wrong = self.losses.take_wrong()
        if wrong is None:
            return
        # differs from fastai, which trains on
        outcome = "nothing changed"
        if wrong.step < self.step:  # the device was further than what had been read
            outcome = f"seen before step {self.step}: the weights are spoilt, go on from a copy"
        else:
            for norm, mean, variance in statistics:
                norm.running_mean, norm.running_var = mean, variance
            if not all(
                np.isfinite(backends.host(a)).all() for a in self.model.state_dict().values()
            ):
                outcome = "the weights were spoilt by an earlier step, go on from a copy"
        rates = rates_in_words(self.groups, wrong.rates)
        raise NonFiniteLossError(
            f"the loss of step {wrong.step} is {wrong.value} ({rates}); {outcome}. {REMEDY}, or "
            "look at this step's pictures",
            wrong.value,
        )

    # ------------------------------------------------------------------------------------- using it

    def evaluate(
        self, data: PictureData | None = None, cache: FeatureCache | None = None
    ) -> Evaluation:
        """Accuracy and mean loss over the validation pictures (of `data`, else the learner's). A
        phase in which the body cannot change keeps their features in `cache`.
        """
        return evaluate(self, data or self._own_data(), cache)

    def predict(self, images: Any) -> Prediction | list[Prediction]:
        """The class of a picture: a path, or an array (H, W, 3) uint8. A list gives a list."""
        if isinstance(images, list | tuple):
            return predict(self, images)
        return predict(self, [images])[0]

    def adjusted_preprocess(self) -> Preprocess:
        """How validation and prediction prepare a picture: the weights' preprocessing, at the size
        that the learner works with.

        Where training showed whole squares, so does this, through the same two resizings: one
        alone, straight to 224 pixels, would be a fifth sharper than what training showed.
        """
        return self.data.adjusted(self.preprocess) if self.data else self.preprocess

    def _own_data(self) -> PictureData:
        if self.data is None:
            raise DataError(
                "this learner was loaded from a file and has no pictures; pass some to evaluate, "
                "or load it with them to train on: ft.load_learner(FILE, data=...)"
            )
        return self.data

    def lr_find(self, **options: Any) -> LrFinding:
        """Try learning rates from tiny to huge, and restore everything; options: see lr_find.py."""
        self._own_data()
        return lr_find(self, **options)

    def save(self, path: str | Path) -> None:
        """Write the learner as a weights file that `load_learner` reads; see run/save.py."""
        save(self, path)


def _class_weights(weights: Any, classes: int, dtype: str) -> np.ndarray:
    """(classes,) in the learner's dtype. Raises: ValueError for weights that cannot be"""
    weights = np.asarray(weights, dtype)
    if weights.shape != (classes,):
        raise ValueError(
            f"class_weights should be {classes} numbers, one for each class; got the shape "
            f"{weights.shape}"
        )
    for weight in weights:  # a batch whose classes all weigh 0 would have no mean loss
        expect_number("a class weight", weight.item(), above_0=True)
    return weights
