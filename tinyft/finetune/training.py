"""The state of training, and its step: forward, loss, backward, update.

What else there is to training works on this and is not known here: a plan's phases (loop.py),
evaluation (judge.py) and prediction (answering.py), kept features, rates to try, files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from tinyft import backends
from tinyft.data.loader import Batch, PictureData
from tinyft.display import Displayed
from tinyft.engine.tensor import Tensor
from tinyft.errors import DataError, NonFiniteLossError, ShapeError
from tinyft.finetune.answering import Answers
from tinyft.finetune.groups import (
    BN_PRESETS,
    Group,
    Grouping,
    digests,
    freeze_to,
    head_at,
    layer_groups,
    rates_in_words,
)
from tinyft.finetune.optim import Adam, Optimizer
from tinyft.finetune.records import (
    Evaluation,
    Losses,
    SmoothLoss,
    StepRecord,
    UpdateMeasure,
    UpdateSums,
    group_records,
)
from tinyft.finetune.schedule import Phase, expect_number
from tinyft.nn.head import LinearHead
from tinyft.nn.layer_table import feature_shape, halves
from tinyft.nn.layers import BatchNorm, Dropout
from tinyft.nn.module import Module
from tinyft.ops import cross_entropy
from tinyft.weights.preprocess import Preprocess

REMEDY = "Use a smaller learning rate (a tenth is a good try; 0.002 is usual for a new head)"


# Of a head:
AS_GIVEN, RANDOM, KEPT = "as given", "random", "kept as the weights have it"
MEANS = "from the class means of the features"


@dataclass
class Origin:
    """Tells where a learner's network came from: for its plan, for files, and to make it again."""

    weights: str = AS_GIVEN  # a published name, a path, or which random ones
    random_body: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)  # of the weights file
    removed: str = "The last layer"  # of the weights' network, in words
    head: str | None = None  # one of HEADS; None for a Module of the caller's own
    head_state: str = AS_GIVEN
    head_dropped: str = ""  # why the weights' trained head is not the learner's
    arguments: dict[str, Any] | None = None  # of `vision_learner`, as JSON holds them
    settings: dict[str, Any] | None = None  # as `vision_learner` left them; see run/folder.py
    digests: dict[str, str] | None = None  # of the tensors, as `vision_learner` left them

    @property
    def head_is_kept(self) -> bool:
        return self.head_state.startswith(KEPT)


@dataclass(repr=False)
class Training(Displayed):
    """A network, its data, its layer groups with their optimizer, and how far training has come."""

    model: Module
    data: PictureData | None  # see `own_data`
    preprocess: Preprocess
    arch: str
    classes: list[str]
    bn: str = "fastai"
    seed: int = 0
    device: str = "auto"
    optimizer_class: Callable[..., Optimizer] = Adam
    label_smoothing: float = 0.0
    mirrored: bool = False  # answers are means over a picture and its mirror image
    class_weights: Any = None  # numbers, or "balanced"
    dtype: str = "float32"
    origin: Origin = field(default_factory=Origin)
    lr: float = 1e-3
    grouping: InitVar[Any] = None  # layer groups of one's own; see layer_groups
    decay: InitVar[float | None] = None  # None: the optimizer's own

    def __post_init__(self, grouping: Any, decay: float | None) -> None:
        if self.bn not in BN_PRESETS:
            raise ValueError(f"bn must be one of {', '.join(BN_PRESETS)}; got {self.bn!r}")
        self.dtype = np.dtype(self.dtype).name  # "float64", also from np.float64
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be float32 or float64; got {self.dtype}")
        self.model.astype(self.dtype)
        self.optimizer: Optimizer = self.optimizer_class(layer_groups(self.model, grouping))
        decay = self.optimizer.default_weight_decay if decay is None else decay
        expect_number("weight_decay", decay)
        expect_number("label_smoothing", self.label_smoothing, 1)
        if self.mirrored and not isinstance(getattr(self.model, "head", None), LinearHead):
            raise ValueError(
                "mirrored=True is for a linear head, which makes of a picture's and its mirror "
                "image's mean features the mean of their logits; ask for head='linear' too"
            )
        self.seed = int(self.seed)
        self.weight_decay: float = float(decay)
        self.label_smoothing = float(self.label_smoothing)
        if self.class_weights is not None:
            self.class_weights = _class_weights(self)
        self.groups = self.optimizer.groups
        modules = [module for _, module in self.model.named_modules()]
        self.dropouts: list[Dropout] = [m for m in modules if isinstance(m, Dropout)]
        for layer, dropout in enumerate(self.dropouts, 1):  # each draws its own masks
            dropout.seed, dropout.layer = self.seed, layer
        self.updates: dict[str, UpdateSums] | None = None  # of the last step, if it was measured
        self.trained: frozenset[str] = frozenset()  # parameters that ever had a gradient
        self.step: int = 0
        self.epoch: int = 0
        self.smooth: SmoothLoss = SmoothLoss()
        self.losses: Losses = Losses()
        self.cache: Any = None  # of the phase in progress, if it keeps features: feature_cache.py
        self.answers: Answers = Answers()
        self.phase_digests: dict[str, str] = {}
        self.history: list[StepRecord] = []
        self.validation: Evaluation | None = None  # the newest
        self.run_folder: Path | None = None  # where the run in progress is written
        self.to(self.device)

    def to(self, device: str) -> Self:
        """Move parameters, statistics, what the optimizer remembers and kept features to "cpu",
        "gpu" or "gpu:1"; "auto" is a GPU if one works. Returns itself.

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
    def groups(self) -> tuple[Group, ...]:
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
        norms = [norm for group in groups for norm in group.batch_norms.values()]
        self.batch_norms: list[BatchNorm] = norms
        self.measure: UpdateMeasure = UpdateMeasure(groups)

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
        """Freeze all but the head. Raises: ValueError for a network without one"""
        self.freeze_to(head_at(self.groups, needed=True))

    def unfreeze(self) -> None:
        """Train everything."""
        self.freeze_to(0)

    def enter(
        self, phase: Phase, weight_decay: float, *, stale_gradients: bool = False,
        reset_optimizer: bool = True, resumed: bool = False,
    ) -> None:  # fmt: skip
        """Freeze what the phase says. A new phase starts without optimizer state if
        `reset_optimizer`.
        """
        remembered = dict(self.optimizer.state)
        self.freeze_to(phase.first_trainable, stale_gradients=stale_gradients)
        if resumed or not reset_optimizer:
            self.optimizer.state.update(remembered)
        self.measure = UpdateMeasure(self.groups)
        self.weight_decay = weight_decay  # for good, as in fastai
        for group in self.groups:
            group.weight_decay = weight_decay
        if not resumed:
            self.smooth = SmoothLoss()
            self.phase_digests = digests(self.model)

    def set_rates(self, phase: Phase, i: int) -> None:
        """Give each group the learning rate and momentum of the phase's step `i`."""
        for group, lr in zip(self.groups, phase.lr[i], strict=True):
            group.lr, group.momentum = float(lr), float(phase.momentum[i])

    # ------------------------------------------------------------------------------------- one step

    def train_step(
        self,
        batch: Batch,
        phase: str,
        *,
        norms: bool = False,
        gradients: Callable[[dict[str, Tensor]], None] | None = None,
    ) -> StepRecord:
        """Forward, loss, backward, update: one step on one batch. `gradients` may change those of
        the parameters that have one, which it is given by name, before the update.
        """
        self.answers.forget()
        self.model.train()
        for dropout in self.dropouts:
            dropout.step = self.step
        statistics = [(n, n.running_mean, n.running_var) for n in self.batch_norms]
        with backends.use(self.device):
            loss = self.loss(self.logits(batch), batch.labels)
            rates = [group.lr for group in self.groups]
            step_loss = self.losses.add(self.step, loss.data, self.smooth, rates)
            if self.step % backends.get(self.device).steps_between_reads == 0:
                self.read_losses(statistics)
            self.optimizer.zero_grad()  # of a step that was stopped, or the caller's own
            loss.backward()
            if gradients is not None:
                named = self.model.named_parameters()
                gradients({name: p for name, p in named if p.grad is not None})
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

    def logits(self, batch: Batch) -> Tensor:
        """(N, classes): through the whole network, or through the head from features that a frozen
        body gave before.
        """
        if self.cache is not None:
            return halves(self.model)[1](self.cache.features(batch))
        return self.model(self.input(batch.images))

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
                f"the network gives {logits.shape[-1]} numbers for each picture, and there are "
                f"{len(self.classes)} classes; attach a head for these"
            )
        smoothing, weights = self.label_smoothing, self.class_weights
        return cross_entropy(logits, labels, label_smoothing=smoothing, class_weights=weights)

    def read_losses(
        self, statistics: Sequence[tuple[BatchNorm, np.ndarray, np.ndarray]] = ()
    ) -> None:
        """Read the losses that are still on the device.

        Raises: NonFiniteLossError for one that is NaN or infinite. A step that is only forward so
        far is taken back: its batch norms get the running `statistics` from before.
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

    # --------------------------------------------------------------------------------- its pictures

    def adjusted_preprocess(self) -> Preprocess:
        """Return how validation and prediction prepare a picture: as the weights say, at the data's
        size.

        Where training showed whole squares, so does this, through the same two resizings: one
        alone, straight to 224 pixels, would be a fifth sharper.
        """
        return self.data.adjusted(self.preprocess) if self.data else self.preprocess

    @cached_property
    def has_features(self) -> bool:
        """True if the network is `features` and then a `head`, so that these can be had alone."""
        return feature_shape(self.model, self.adjusted_preprocess().crop) is not None

    def expect_features(self, what: str) -> None:
        """Raises: ValueError for a network that has none; `what` needs them"""
        if not self.has_features:
            raise ValueError(
                f"{what} needs features, and {self.arch} has none: give it a part or method "
                "`features` and a part `head`, and let its forward be head(features(x))"
            )

    def own_data(self) -> PictureData:
        """Its pictures. Raises: DataError if it has none"""
        if self.data is None:
            raise DataError(
                "this learner was loaded from a file and has no pictures; pass some to evaluate, "
                "or load it with them to train on: ft.load_learner(FILE, data=...)"
            )
        return self.data


def expect_all_classes(data: PictureData, what: str) -> np.ndarray:
    """The training pictures of each class, counted (C,). Raises: DataError for a class of none"""
    counts = np.bincount(data.labels["train"], minlength=data.num_classes)
    if not counts.all():
        name = data.classes[int(counts.argmin())]
        raise DataError(f"{what} needs training pictures of {name}; add some")
    return counts


def listed_class_weights(training: Training) -> list[float] | None:
    """A learner's class weights as JSON holds them."""
    weights = training.class_weights
    return None if weights is None else backends.host(weights).tolist()


def _class_weights(training: Training) -> np.ndarray:
    """(classes,) in the learner's dtype.

    Raises: ValueError for weights that cannot be; DataError for a class that cannot be balanced
    """
    asked, classes = training.class_weights, len(training.classes)
    if isinstance(asked, str):
        if asked != "balanced":
            raise ValueError(f"class_weights must be 'balanced' or numbers; got {asked!r}")
        data = training.own_data()
        asked = data.n_train / (classes * expect_all_classes(data, "class_weights='balanced'"))
    weights = np.asarray(asked, training.dtype)
    if weights.shape != (classes,):
        raise ValueError(
            f"class_weights should be {classes} numbers, one for each class; got the shape "
            f"{weights.shape}"
        )
    for weight in weights:  # a batch whose classes all weigh 0 would have no mean loss
        expect_number("a class weight", weight.item(), above_0=True)
    return weights
