"""A trained learner as a file: weights and classes in a weights file, the rest as JSON in it. No
pickle.

Next: tinyft/finetune/run.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyft import backends
from tinyft.errors import WeightsError
from tinyft.finetune.groups import BN_PRESETS, grouping_of
from tinyft.nn.head import HEADS, attach, cut
from tinyft.nn.layers import BatchNorm
from tinyft.nn.module import Module
from tinyft.nn.resnet import build

if TYPE_CHECKING:
    from tinyft.finetune.learner import Learner
    from tinyft.weights import Preprocess, Weights


def save(learner: Learner, path: str | os.PathLike[str], *, training: str = "") -> None:
    """Write weights (as float32), classes, preprocessing and settings; an old file of that name is
    replaced whole.

    Raises: ValueError for what such a file cannot hold
    """
    from tinyft.weights import Weights, save_weights

    expect_savable(learner)
    # differs from fastai, which pickles the learner
    state = {name: backends.host(array) for name, array in learner.model.state_dict().items()}
    arrays = {name: np.asarray(array, np.float32, order="C") for name, array in state.items()}
    settings = {"head": learner.facts.get("head"), "bn": learner.bn,
                "seed": learner.seed, "label_smoothing": learner.label_smoothing,
                "weight_decay": learner.weight_decay, "dtype": learner.dtype,
                "whole_squares": learner.whole_squares,
                "groups": grouping_of(learner.model, learner.groups),
                "class_weights": _plain(learner.class_weights)}  # fmt: skip
    last = learner.validation
    metadata: dict[str, Any] = {
        "head": learner.facts.get("head") or "custom",
        "training": training,
        "parent_sha256": learner.facts.get("metadata", {}).get("content_sha256", ""),
        "metrics": json.dumps({"valid_accuracy": last.accuracy} if last else {}),
    }
    preprocess = learner.preprocess
    if learner.data is not None:
        preprocess = learner.data.adjusted(preprocess)
    extra = {"learner": json.dumps(settings)}
    save_weights(path, Weights(learner.arch, arrays, learner.classes, preprocess, metadata, extra))


def load_learner(
    path: str | os.PathLike[str], *, head: Module | None = None, device: str = "auto"
) -> Learner:
    """The learner that `save` wrote, ready to predict and to evaluate. It has no data to train on.

    `head` is needed, untrained, where the learner was made with a Module of its own.
    Raises: WeightsError if the file is not a learner's
    """
    from tinyft.finetune.learner import Learner
    from tinyft.weights import load_weights

    if Path(path).is_dir():
        raise WeightsError(f"{path} is a folder; a run's learner is its file learner.h5")
    weights = load_weights(path)
    if "learner" not in weights.extra or weights.classes is None:
        raise WeightsError(f"{path} holds weights but no learner; use vision_learner(weights=...)")
    settings = _settings(path, weights.extra["learner"])
    body = cut(build(weights.arch, seed=None))
    if head is None:
        if settings["head"] not in HEADS:
            raise WeightsError(
                f"{path} was saved with a head of its own: ft.load_learner(path, head=...) takes it"
            )
        head = HEADS[settings["head"]](body.num_features, len(weights.classes))
    attach(body, head).load_state_dict(weights.arrays)
    options = {name: settings[name] for name in settings if name not in ("head", "groups")}
    options["grouping"] = settings["groups"]
    facts = {"head": settings["head"], "weights": str(path)}
    parts = body.astype(settings["dtype"]), None, weights.preprocess, weights.arch, weights.classes
    try:
        return Learner(*parts, device=device, facts=facts, **options)
    except ValueError as error:
        raise WeightsError(f"{path}: no learner can be made of its settings: {error}") from None


def judged_preprocess(path: str | os.PathLike[str], weights: Weights) -> Preprocess:
    """How pictures are prepared that a file's network judges: a learner may see whole squares."""
    preprocess = weights.preprocess
    if "learner" not in weights.extra:
        return preprocess
    settings = _settings(path, weights.extra["learner"])
    return preprocess.whole_square() if settings["whole_squares"] else preprocess


def _settings(path: str | os.PathLike[str], text: str) -> dict[str, Any]:
    """What `save` wrote beside the weights. Raises: WeightsError if it is something else"""
    number = int | float
    expected = {
        "head": lambda value: isinstance(value, str | None),
        "bn": lambda value: value in BN_PRESETS,
        "seed": lambda value: type(value) is int and value >= 0,
        "label_smoothing": lambda value: isinstance(value, number),
        "weight_decay": lambda value: isinstance(value, number),
        "dtype": lambda value: value in ("float32", "float64"),
        "whole_squares": lambda value: isinstance(value, bool),
        "class_weights": lambda value: (
            value is None
            or (isinstance(value, list) and all(isinstance(weight, number) for weight in value))
        ),
        "groups": lambda value: (
            value is None
            or (isinstance(value, dict) and all(map(_is_list_of_texts, value.values())))
        ),
    }
    later = {"groups": None}  # what files of earlier versions do not say
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):  # lists within lists a thousand deep are the latter
        settings = None
    if isinstance(settings, dict):
        settings = later | settings
    if not isinstance(settings, dict) or not expected.keys() <= settings.keys():
        raise WeightsError(f"{path}: its learner should be JSON with {', '.join(sorted(expected))}")
    for name, is_right in expected.items():
        if not is_right(settings[name]):
            raise WeightsError(f"{path}: its learner's {name} cannot be {settings[name]!r}")
    return {name: settings[name] for name in expected}


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def expect_savable(learner: Learner) -> None:
    """Raises: ValueError if a batch norm has another eps than the one that weights files mean"""
    from tinyft.weights.hdf5 import BATCH_NORM_EPSILON

    own_head = learner.facts.get("head") is None  # whose caller makes it again
    for name, module in learner.model.named_modules():
        if own_head and name.startswith("head"):
            continue
        if isinstance(module, BatchNorm) and module.eps != BATCH_NORM_EPSILON:
            raise ValueError(
                f"{name} has eps {module.eps}, and a weights file means {BATCH_NORM_EPSILON}: with "
                "the file the network would compute something else"
            )


def _plain(class_weights: np.ndarray | None) -> list[float] | None:
    return None if class_weights is None else backends.host(class_weights).tolist()
