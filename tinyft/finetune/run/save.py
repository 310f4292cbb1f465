"""A trained learner as a file: weights and classes in a weights file, the rest as JSON in it. No
pickle.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import numpy as np

from tinyft import backends
from tinyft.errors import WeightsError
from tinyft.finetune.groups import BN_PRESETS, grouping_of
from tinyft.finetune.known import learn
from tinyft.finetune.optim import OPTIMIZERS, name_of
from tinyft.finetune.run.reading import (
    SWITCH,
    TEXT,
    Kind,
    mistake,
    number,
    one_of,
    optional,
    parsed,
    whole,
)
from tinyft.finetune.training import Training, listed_class_weights
from tinyft.nn.layers import BatchNorm, Dropout
from tinyft.nn.module import Module
from tinyft.nn.resnet import ARCHITECTURES
from tinyft.weights import Preprocess, Weights, save_weights
from tinyft.weights.hdf5.weights_file import BATCH_NORM_EPSILON

# What `save` writes beside the weights.
SETTINGS = {
    "head": optional(TEXT),
    "bn": one_of(BN_PRESETS),
    "seed": whole(),
    **dict.fromkeys(("label_smoothing", "weight_decay"), number()),
    "dtype": one_of(("float32", "float64")),
    **dict.fromkeys(("whole_squares", "mirrored"), SWITCH),
    "class_weights": optional([number()]),
    "groups": optional({str: [TEXT]}),
    "dropout": [Kind("a number from 0 to below 1", lambda p: number(0, 1).fits(p) and p < 1)],
    "optimizer": optional(one_of(tuple(OPTIMIZERS))),
    "known": optional(
        {
            "files": [TEXT],
            "threshold": optional(number(-2, 2)),
            "valid": whole(),
            "flagged": whole(),
        }
    ),
}
# What some versions did not write; a preprocessing says by itself now that it is whole squares.
LATER: dict[str, Any] = {"groups": None, "dropout": [], "optimizer": "adam", "whole_squares": False,
         "mirrored": False, "known": None}  # fmt: skip
OPTIONS = ("mirrored", "bn", "seed", "label_smoothing", "weight_decay", "dtype", "class_weights")


def save(
    learner: Training, path: str | os.PathLike[str], *, training: str = "", known: bool = True
) -> None:
    """Write weights (as float32), classes, preprocessing and settings; an old file of that name is
    replaced whole. With `known` also what tells strangers from its training pictures, which are
    looked at once more: see known.py.

    Raises: ValueError for what such a file cannot hold
    """
    expect_savable(learner)
    # differs from fastai, which pickles the learner
    state = {name: backends.host(array) for name, array in learner.model.state_dict().items()}
    arrays = {name: np.asarray(array, np.float32, order="C") for name, array in state.items()}
    settings = {"head": learner.origin.head, "bn": learner.bn,
                "seed": learner.seed, "label_smoothing": learner.label_smoothing,
                "weight_decay": learner.weight_decay, "dtype": learner.dtype,
                "mirrored": learner.mirrored,
                "groups": grouping_of(learner.model, learner.groups),
                "dropout": [dropout.probability for dropout in learner.dropouts],
                "optimizer": name_of(learner.optimizer),
                "class_weights": listed_class_weights(learner)}  # fmt: skip
    seen = learn(learner) if known else None
    settings["known"] = seen.settings() if seen else None
    beside = {"known": seen.features} if seen else {}
    last = learner.validation
    metadata: dict[str, Any] = {
        "head": learner.origin.head or "custom",
        "training": training,
        "parent_sha256": learner.origin.metadata.get("content_sha256", ""),
        "metrics": json.dumps({"valid_accuracy": last.accuracy} if last else {}),
    }
    preprocess = learner.adjusted_preprocess()
    extra = {"learner": json.dumps(settings)}
    parts = learner.arch, arrays, learner.classes, preprocess, metadata, extra, beside
    save_weights(path, Weights(*parts))


def put_dropouts(head: Module, probabilities: list[float]) -> None:
    """Give the head's Dropout layers their probabilities, if they are known."""
    layers = [layer for _, layer in head.named_modules() if isinstance(layer, Dropout)]
    for layer, probability in zip(layers, probabilities, strict=False):
        layer.probability = probability


def judged_preprocess(path: str | os.PathLike[str], weights: Weights) -> Preprocess:
    """Return how pictures are prepared that a file's network judges. An older learner's file says
    beside its preprocessing that it judges whole squares: those are resized straight to the crop.
    """
    preprocess, settings = weights.preprocess, settings_in(path, weights)
    return replace(preprocess, resize=preprocess.crop) if settings["whole_squares"] else preprocess


def settings_in(path: str | os.PathLike[str], weights: Weights) -> dict[str, Any]:
    """Read what `save` wrote beside the weights; of others than a learner's, only the defaults.

    Raises: WeightsError if it is something else
    """
    if "learner" not in weights.extra:
        return dict(LATER)
    settings = parsed(weights.extra["learner"])
    if isinstance(settings, dict):
        settings = LATER | settings
    if wrong := mistake(settings, SETTINGS, "its learner"):
        raise WeightsError(f"{path}: {wrong}")
    return {name: settings[name] for name in SETTINGS}


def expect_savable(learner: Training) -> None:
    """Raises: ValueError if a batch norm has another eps than the one that weights files mean"""
    if learner.arch not in ARCHITECTURES:  # a network whose caller makes it again
        return
    own_head = learner.origin.head is None  # so is this
    for name, module in learner.model.named_modules():
        if own_head and name.startswith("head"):
            continue
        if isinstance(module, BatchNorm) and module.eps != BATCH_NORM_EPSILON:
            raise ValueError(
                f"{name} has eps {module.eps}, and a weights file means {BATCH_NORM_EPSILON}: with "
                "the file the network would compute something else"
            )
