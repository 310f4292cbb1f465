"""A saved learner, ready to predict, to evaluate and to train on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyft.data.loader import PictureData, expect_pictures
from tinyft.errors import DataError, WeightsError
from tinyft.finetune.build import vision_learner
from tinyft.finetune.learner import Learner
from tinyft.finetune.optim import OPTIMIZERS, Adam, Optimizer
from tinyft.finetune.run.save import OPTIONS, judged_preprocess, put_dropouts, settings_in
from tinyft.finetune.training import KEPT, Origin
from tinyft.nn.head import HEADS, attach, cut
from tinyft.nn.module import Module
from tinyft.nn.resnet import build
from tinyft.weights import Weights, load_weights


def load_learner(
    path: str | os.PathLike[str],
    *,
    data: PictureData | None = None,
    head: Module | None = None,
    optimizer: str | Callable[..., Optimizer] | None = None,
    device: str = "auto",
) -> Learner:
    """The learner that `save` wrote, ready to predict and to evaluate; with `data` of its classes
    also to train on: its head, its settings, nothing frozen, an optimizer that starts empty.

    `head` is needed, untrained, where the learner was made with a Module of its own, and to train
    also its `optimizer`, if that was one.
    Raises: WeightsError if the file is not a learner's; DataError for data of other classes
    """
    weights = _weights_of_learner(path)
    settings = settings_in(path, weights)
    body = cut(build(weights.arch, seed=None))
    kind = settings["head"]
    if head is None:
        if kind not in HEADS:
            raise WeightsError(
                f"{path} was saved with a head of its own: ft.load_learner(path, head=...) takes it"
            )
        head = HEADS[kind](body.num_features, len(weights.classes))
    attach(body, head).load_state_dict(weights.arrays)
    try:
        if data is not None:
            _expect_classes(path, data, weights.classes)
            own_head = None if kind in HEADS else head
            settings["whole_squares"] |= weights.preprocess.whole_square
            return _with_pictures(path, data, settings, own_head, optimizer, device)
        put_dropouts(head, settings["dropout"])
        optimizer = optimizer or settings["optimizer"] or Adam
        return Learner(
            body.astype(settings["dtype"]), None, judged_preprocess(path, weights),
            weights.arch, weights.classes,
            device=device, origin=Origin(str(path), head=kind, head_state=KEPT),
            grouping=settings["groups"],
            optimizer_class=OPTIMIZERS.get(optimizer, optimizer),
            **{name: settings[name] for name in OPTIONS},
        )  # fmt: skip
    except ValueError as error:
        raise WeightsError(f"{path}: no learner can be made of its settings: {error}") from None


def _weights_of_learner(path: str | os.PathLike[str]) -> Weights:
    """Raises: WeightsError if the file is not a learner's"""
    if Path(path).is_dir():
        raise WeightsError(f"{path} is a folder; a run's learner is its file learner.h5")
    weights = load_weights(path)
    if "learner" not in weights.extra or weights.classes is None:
        raise WeightsError(f"{path} holds weights but no learner; use vision_learner(weights=...)")
    return weights


def _with_pictures(
    path: str | os.PathLike[str],
    data: PictureData,
    settings: dict[str, Any],
    own_head: Module | None,
    optimizer: str | Callable[..., Optimizer] | None,
    device: str,
) -> Learner:
    """`load_learner` with data: made by `vision_learner`, so that its runs can be made again."""
    optimizer = optimizer or settings["optimizer"]
    if optimizer is None:
        raise WeightsError(
            f"{path} was trained by an optimizer of its caller's own: "
            "ft.load_learner(path, data=..., optimizer=...) takes it"
        )
    options = {name: settings[name] for name in (*OPTIONS, "groups")}
    learner = vision_learner(
        data, weights=path, head=own_head, optimizer=optimizer, device=device, **options
    )
    learner.origin.head_state, learner.origin.head_dropped = KEPT, ""
    learner.preprocess = replace(learner.preprocess, whole_square=settings["whole_squares"])
    learner.unfreeze()
    return learner


def _expect_classes(path: str | os.PathLike[str], data: PictureData, classes: list[str]) -> None:
    """Raises: TypeError for what is no data; DataError for pictures of other classes"""
    expect_pictures(data)
    if data.classes != classes:
        raise DataError(
            f"{path} knows the classes {', '.join(classes)}, the pictures have "
            f"{', '.join(data.classes)}; open them with classes=[...] as there, or begin a new "
            f"head with ft.vision_learner(data, weights={str(path)!r})"
        )
