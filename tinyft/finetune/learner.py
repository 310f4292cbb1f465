"""The learner: everything that one does with a network and its pictures.

Its methods are functions that work on a `Training`, each in the file that its import names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyft.data.loader import PictureData, expect_pictures
from tinyft.finetune import answering, describe, judge, loop, planning, trials
from tinyft.finetune.groups import Grouping, Network
from tinyft.finetune.loop import Observer
from tinyft.finetune.optim import Adam, Optimizer, optimizer_of
from tinyft.finetune.records import Evaluation
from tinyft.finetune.run import save
from tinyft.finetune.training import Training
from tinyft.nn.module import Module
from tinyft.nn.resnet import ARCHITECTURES, ResNet
from tinyft.weights.preprocess import Preprocess


class Learner(Training):
    """A network that can be trained on `data`: what `vision_learner` and `load_learner` return, or
    any Module that makes (N, classes) of pictures (N, H, W, 3).
    """

    def __init__(
        self, model: Network, data: PictureData | None, preprocess: Preprocess | None = None,
        arch: str | None = None, classes: Sequence[str] | None = None, *,
        groups: Grouping | Callable[[Network], Grouping] | None = None,
        optimizer: str | Callable[..., Optimizer] = Adam, weight_decay: float | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        """Nothing is frozen at first. `preprocess` defaults to ImageNet's mean and std at the
        data's size, `arch`, the network's name in files, to its class's, `classes` to the data's.
        `options` (mirrored, bn, seed, device, label_smoothing, class_weights, dtype) and the
        others are those of `vision_learner`; see `layer_groups` for the usual groups.

        A part `head`, or a group called so, can train alone. A network that has `features` too, and
        is head(features(x)), has kept features, `embed`, strangers and Grad-CAM.
        Raises: TypeError for what is no Module or no data; ValueError for an `arch` of tinyft's own
        """
        if not isinstance(model, Module):
            raise TypeError(f"expected a Module, as in tinyft.nn; got a {type(model).__name__}")
        arch, is_ours = arch or type(model).__name__, isinstance(model, ResNet) and model.head
        if arch in ARCHITECTURES and not is_ours:
            raise ValueError(f"{arch} is a network of tinyft's, with a head; give another arch")
        if preprocess is None:
            preprocess = Preprocess.for_architecture(arch)
            whole = expect_pictures(data).shows_whole_squares
            preprocess = replace(preprocess, whole_square=whole)
        names = list(expect_pictures(data).classes if classes is None else classes)
        options |= {"optimizer_class": optimizer_of(optimizer), "grouping": groups}
        super().__init__(model, data, preprocess, arch, names, decay=weight_decay, **options)

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
        self, epochs: int, base_lr: float = 2e-3, *, out: str | Path | None = None,
        observers: Sequence[Observer[Learner]] = (), progress: bool | None = None, **options: Any,
    ) -> list[Evaluation]:  # fmt: skip
        """Train the head alone, then everything; the validation of each epoch.

        `options` are those of `plan`, `out`, `observers` and `progress` those of `execute`.
        """
        plan = self.plan(epochs, base_lr, **options)
        return self.execute(plan, out=out, observers=observers, progress=progress)

    def fit_one_cycle(
        self, epochs: int, lr_max: float | slice | Sequence[float] | None = None, *,
        out: str | Path | None = None, observers: Sequence[Observer[Learner]] = (),
        progress: bool | None = None, **options: Any,
    ) -> list[Evaluation]:  # fmt: skip
        """Train one cycle with what is frozen now; the validation of each epoch.

        `options` are those of `one_cycle_plan`, the others those of `execute`.
        """
        plan = self.one_cycle_plan(epochs, lr_max, **options)
        return self.execute(plan, out=out, observers=observers, progress=progress)

    def __repr__(self) -> str:
        return f"<Learner: {self.arch}, {len(self.classes)} classes, {self.step} steps made>"
