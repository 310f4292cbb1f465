"""Learners made: from data and an architecture's name (pretrained body, classifier cut off, random
head attached), from published weights as they are, from the file of a saved learner.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tinyft import backends
from tinyft.data.loader import PictureData, expect_pictures
from tinyft.display import first_few
from tinyft.errors import DataError, WeightsError
from tinyft.finetune.class_means import start_from_class_means
from tinyft.finetune.groups import Grouping, digests
from tinyft.finetune.known import Known
from tinyft.finetune.learner import Learner
from tinyft.finetune.optim import OPTIMIZERS, Adam, Optimizer, optimizer_of
from tinyft.finetune.run.folder import settings_of
from tinyft.finetune.run.save import OPTIONS, judged_preprocess, put_dropouts, settings_in
from tinyft.finetune.schedule import expect_number
from tinyft.finetune.training import KEPT, MEANS, RANDOM, Origin, expect_all_classes
from tinyft.nn.head import HEADS, FastaiHead, LinearHead, attach, cut
from tinyft.nn.module import Module
from tinyft.nn.resnet import ARCHITECTURES, ResNet, build, expect_architecture
from tinyft.weights import Preprocess, Weights, load_weights
from tinyft.weights.model import network_of, trained_head
from tinyft.weights.read import read_weights

# Whole recipes by what they do, as arguments of `vision_learner`: fastai's, and one that is better
# at the same epochs, the more so the fewer pictures there are (docs/measurements.md).
RECIPES: dict[str, dict[str, Any]] = {
    "fastai": {},
    "means-and-mirror": {"head": "linear", "head_init": "means", "mirrored": True},
}


def vision_learner(
    data: PictureData,
    arch: str | None = None,
    *,
    weights: str | Path | None = "default",
    head: str | Module | None = None,
    head_init: str = "random",
    mirrored: bool = False,
    bn: str = "fastai",
    seed: int = 0,
    device: str = "auto",
    dropout: float | None = None,
    label_smoothing: float = 0.0,
    class_weights: np.ndarray | str | None = None,
    weight_decay: float | None = None,
    optimizer: str | Callable[..., Optimizer] = Adam,
    dtype: str = "float32",
    groups: Grouping | Callable[[ResNet], Grouping] | None = None,
) -> Learner:
    """A learner for `data`: a pretrained network whose last layer is replaced by a random head for
    the data's classes, unless it was trained for these very classes.

    `arch` defaults to the weights file's, else resnet18. `weights`: "default" for the
    architecture's published weights, an id or a path, None for random weights from `seed`. `head`:
    "fastai" or "linear" for a new one, or a Module; None keeps the weights' trained head if its
    classes are among the data's (new ones get random rows), and is "fastai" otherwise; the plan
    says which and why. `dropout`: of a fastai head (0.5, or as a kept one had it), the only one
    that has it.
    `head_init`: "means" starts a linear head from the class means of the features, which is better
    than at random where pictures are few: see class_means.py. `mirrored`: what a linear head says
    of a picture is the mean over it and its mirror image, in validation and prediction.
    `bn`: see groups.py.
    `optimizer`: a name in `OPTIMIZERS` of optim.py, or what makes one from groups.
    `weight_decay`: None for the optimizer's own, 0.01 for adam and 0 for the others.
    `class_weights`: one for each class, or "balanced": a class counts in the loss as if all had
    equally many training pictures.
    `groups`: layer groups of one's own, {name: [parts of the network]} in order, each of its
    parameters in one; or a function of the network that returns that; see groups.py.
    `device`: auto (a GPU if one works, else the CPU), cpu, cpu:bf16 (its 1x1 convolutions in bf16,
    most of ResNet-50's), reference, gpu, gpu:1.
    `dtype="float64"` runs on the reference backend, or on a GPU.

    Pretrained weights are frozen at first, so that only the head trains; see `unfreeze`.

    Raises: ValueError for an unknown name, a `dropout` that the head has no place for, or `groups`
    that are no division of the network; TypeError for data that is none; DataError for fewer than
    two classes; WeightsError for an `arch` or id without published weights, or a file that does not
    fit; NetworkError if they cannot be fetched; DeviceError for a `device` that does not work here;
    OSError
    Source: fastai 2.8.12 `vision_learner`
    """
    arguments = dict(locals())
    _check(arguments)
    loaded, origin = None, Origin(f"random weights from seed {seed}", random_body=True)
    if weights is not None:
        if Path(weights).is_file():
            weights = Path(weights).resolve()  # a run may be resumed from anywhere
        arguments["weights"] = str(weights)
        source = (arch or "resnet18") if weights == "default" else str(weights)
        loaded = load_weights(source, arch=arch)
        origin = Origin(source, metadata=dict(loaded.metadata))
    arch = loaded.arch if loaded else arch or "resnet18"
    network = build(arch, seed=None if loaded else seed)
    preprocess = loaded.preprocess if loaded else Preprocess.for_architecture(arch)
    cut(network)
    if loaded:
        in_head = ("fc", "head")
        body = {n: a for n, a in loaded.arrays.items() if n.split(".")[0] not in in_head}
        network.load_state_dict(body)
        if "fc.weight" in loaded.arrays:
            num_classes, C = loaded.arrays["fc.weight"].shape
            origin.removed = f"fc ({C} features to {num_classes} classes)"
    top = _head(loaded, arguments, network.num_features, list(data.classes), origin)
    if origin.head is not None:
        again = None if origin.head_is_kept else origin.head
        origin.arguments = _plain(arguments | {"head": again})
    learner = Learner(
        attach(network, top), data,
        replace(preprocess, whole_square=data.shows_whole_squares), arch, list(data.classes),
        bn=bn, seed=seed, device=device, optimizer=optimizer, weight_decay=weight_decay,
        mirrored=mirrored,
        label_smoothing=label_smoothing, class_weights=class_weights, dtype=dtype, origin=origin,
        groups=groups,
    )  # fmt: skip
    if loaded:
        learner.freeze()
    origin.settings, origin.digests = settings_of(learner), digests(learner.model)
    if isinstance(top, LinearHead) and head_init == "means":
        start_from_class_means(learner, top)  # which a run keeps: it asks for the pictures again
        origin.head_state = MEANS
    return learner


def _check(arguments: dict[str, Any]) -> None:
    """Raises: what `vision_learner` does for arguments that cannot be, before weights are fetched
    for nothing
    """
    names = "data", "head", "head_init", "seed", "dropout"
    data, head, head_init, seed, dropout = (arguments[name] for name in names)
    if arguments["arch"] is not None:
        expect_architecture(arguments["arch"])
    backends.resolve(arguments["device"])
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0; got {seed!r}")
    if head is not None and not isinstance(head, Module) and head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, or a Module; got {head!r}")
    if head_init not in ("random", "means"):
        raise ValueError(f"head_init must be 'random' or 'means'; got {head_init!r}")
    if head_init == "means" and head != "linear":
        raise ValueError("head_init='means' is for head='linear': ask for both")
    if dropout is not None:
        expect_number("dropout", dropout, 1)
        _expect_place_for_dropout(dropout, head or "fastai")
    optimizer_of(arguments["optimizer"])
    expect_pictures(data)
    if head_init == "means":
        expect_all_classes(data, "head_init='means'")
    if data.num_classes < 2:
        found = ", ".join(data.classes)
        raise DataError(f"training needs at least two classes; found only {found}")


def _expect_place_for_dropout(dropout: float, head: str | Module) -> None:
    if head != "fastai":
        kind = repr(head) if isinstance(head, str) else "a Module of your own"
        raise ValueError(
            f"dropout={dropout} is for head='fastai', and the head is {kind}; leave it out, "
            "or put a Dropout layer into a head of your own"
        )


def _head(
    loaded: Weights | None, arguments: dict[str, Any], C: int, classes: list[str], origin: Origin
) -> Module:
    """The head that `vision_learner`'s arguments ask for; `origin` is told about it.

    Raises: ValueError for a `dropout` that a head which is kept has no place for; WeightsError for
    a head that does not fit its own description
    """
    asked, dropout, seed = (arguments[name] for name in ("head", "dropout", "seed"))
    kind, arrays = trained_head(loaded) if loaded else ("", {})
    origin.head_dropped = _why_dropped(kind, loaded, asked, classes) if loaded and kind else ""
    if isinstance(asked, Module):
        return asked
    options = {} if dropout is None else {"dropout": dropout}
    theirs = loaded.classes if loaded and kind and not origin.head_dropped else None
    if loaded is None or theirs is None:
        kind = asked or "fastai"
        origin.head, origin.head_state = kind, RANDOM
        return HEADS[kind](C, len(classes), seed=seed, **options)
    if dropout is not None:
        _expect_place_for_dropout(dropout, kind)
    # differs from fastai, where the head is always new
    new = [name for name in classes if name not in theirs]
    origin.head, origin.head_state = kind, KEPT
    if new:
        origin.head_state = f"{KEPT}, with random rows for {first_few(new)}"
    head = HEADS[kind](C, len(classes), seed=seed, **options)
    _put_rows_in_order(head, arrays, theirs, classes)
    head.load_state_dict(arrays)
    if dropout is None:
        put_dropouts(head, settings_in(arguments["weights"], loaded)["dropout"])
    return head


def _put_rows_in_order(
    head: FastaiHead | LinearHead, arrays: dict[str, np.ndarray], theirs: list[str],
    classes: list[str],
) -> None:  # fmt: skip
    """Move the rows of a trained head's last layer to where their classes are among `classes`; the
    others are as the new `head` has them.
    """
    own = head.state_dict()
    places = [classes.index(name) for name in theirs]
    for name in [name for name in arrays if name.startswith(f"{head.last}.")]:
        rows, arrays[name] = arrays[name], np.array(own[name])
        arrays[name][places] = rows


def _why_dropped(
    kind: str, weights: Weights, asked: str | Module | None, classes: list[str]
) -> str:
    """Say why a trained head is not kept; "" if it is."""
    theirs = weights.classes
    if theirs is None:
        return f"the weights do not name its {weights.num_classes or ''} classes".replace("  ", " ")
    if not set(theirs) <= set(classes):
        return f"it is for {len(theirs)} other classes, {first_few(theirs)}"
    if asked is not None:
        return "another head was asked for"
    if kind not in HEADS:
        return "it is a Module of its caller's own: load_learner(..., head=..., data=...) keeps it"
    return ""


def published_learner(weights: Weights, classes: list[str], *, device: str = "auto") -> Learner:
    """Weights with the classifier that they were published with, to evaluate and to predict.

    Raises: WeightsError if they have no classifier, or not one of as many classes
    """
    count = len(weights.arrays["fc.bias"]) if "fc.bias" in weights.arrays else 0
    if count == 0 or count != len(classes):
        expected = f"one for {len(classes)} classes" if classes else "one"
        raise WeightsError(
            f"the weights have {f'a classifier of {count} classes' if count else 'no classifier'} "
            f"(fc.weight and fc.bias); expected {expected}"
        )
    origin = Origin(head="linear", head_state=KEPT, metadata=dict(weights.metadata))
    return Learner(
        network_of(weights), None, weights.preprocess, weights.arch, list(classes), device=device,
        origin=origin,
    )  # fmt: skip


def _plain(arguments: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments of `vision_learner` as JSON holds them, for run.json; None if it cannot hold
    them.
    """
    # of the groups the run keeps what they came to
    arguments = {n: value for n, value in arguments.items() if n not in ("data", "groups")}
    names = {optimizer: name for name, optimizer in OPTIMIZERS.items()}
    arguments["optimizer"] = names.get(arguments["optimizer"], arguments["optimizer"])
    if not isinstance(arguments["optimizer"], str):
        return None
    arguments["seed"] = int(arguments["seed"])
    arguments["dtype"] = np.dtype(arguments["dtype"]).name
    if not isinstance(arguments["class_weights"], str | None):
        arguments["class_weights"] = [float(w) for w in arguments["class_weights"]]
    return arguments


# --------------------------------------------------------------------------------- a saved learner


def load_learner(
    path: str | os.PathLike[str], *, data: PictureData | None = None, model: Module | None = None,
    head: Module | None = None, optimizer: str | Callable[..., Optimizer] | None = None,
    device: str = "auto",
) -> Learner:  # fmt: skip
    """The learner that `save` wrote, ready to predict and to evaluate; with `data` of its classes,
    and new ones, also to train on: its head, with random rows for new classes, its settings,
    nothing frozen, an optimizer that starts empty.

    `model`, or for one of tinyft's networks `head`, is needed, untrained, where the learner was
    made with a Module of its own, and to train also its `optimizer`, if that was one.
    Raises: WeightsError if the file is not a learner's, or of another network than `model`;
    DataError for data of other classes; TypeError for a `model` that is no Module; ValueError for
    `model` and `head`
    """
    if Path(path).is_dir():
        raise WeightsError(f"{path} is a folder; a run's learner is its file learner.h5")
    if model is not None and not isinstance(model, Module):
        raise TypeError(f"model should be an untrained Module, such as Net(); got {model!r:.60}")
    if model is not None and head is not None:
        raise ValueError("model= has its head; head= is for one of tinyft's networks: leave it out")
    weights = load_weights(path) if model is None else read_weights(path, own=True)
    if "learner" not in weights.extra or weights.classes is None:
        raise WeightsError(f"{path} holds weights but no learner; use vision_learner(weights=...)")
    settings = settings_in(path, weights)
    kind, optimizer = settings["head"], optimizer or settings["optimizer"]
    network = model
    if network is None:
        body = cut(build(weights.arch, seed=None))
        if head is None:
            if kind not in HEADS:
                raise WeightsError(
                    f"{path} was saved with a head of its own: ft.load_learner(path, head=...) "
                    "takes it"
                )
            head = HEADS[kind](body.num_features, len(weights.classes))
        network = attach(body, head)
    network.load_state_dict(weights.arrays)
    options = {name: settings[name] for name in OPTIONS}
    try:
        if data is not None:
            _expect_trainable(path, data, weights, weights.classes, optimizer, more=kind in HEADS)
        optimizer = optimizer or Adam  # without data nobody trains with it
        if data is None or model is not None:
            put_dropouts(network, settings["dropout"])
            learner = Learner(
                network, data, judged_preprocess(path, weights), weights.arch, weights.classes,
                device=device, origin=Origin(str(path), head=kind, head_state=KEPT),
                groups=settings["groups"], optimizer=optimizer, **options,
            )  # fmt: skip
            learner.answers.known = Known.read(weights.beside.get("known"), settings["known"])
            return learner
        learner = vision_learner(  # so that its runs can be made again
            data, weights=Path(path), head=None if kind in HEADS else head, optimizer=optimizer,
            device=device, groups=settings["groups"], **options,
        )  # fmt: skip
    except ValueError as error:
        raise WeightsError(f"{path}: no learner can be made of its settings: {error}") from None
    if kind not in HEADS:
        learner.origin.head_state, learner.origin.head_dropped = KEPT, ""
    whole = settings["whole_squares"] or weights.preprocess.whole_square
    learner.preprocess = replace(learner.preprocess, whole_square=whole)
    learner.unfreeze()
    return learner


def _expect_trainable(
    path: str | os.PathLike[str], data: PictureData, weights: Weights, classes: list[str],
    optimizer: str | Callable[..., Optimizer] | None, more: bool,
) -> None:  # fmt: skip
    """Raises: TypeError for what is no data; DataError for pictures of other classes; with `more`
    there may be new ones beside the old, in any order; WeightsError without an optimizer
    """
    expect_pictures(data)
    anew = f"ft.vision_learner(data, weights={str(path)!r})"
    if weights.arch not in ARCHITECTURES:
        anew = f"ft.Learner({weights.arch}(...), data)"
    if data.classes != classes and not (more and set(classes) <= set(data.classes)):
        raise DataError(
            f"{path} knows the classes {', '.join(classes)}, the pictures have "
            f"{', '.join(data.classes)}; open them with classes=[...] as there, or begin a new "
            f"head with {anew}"
        )
    if optimizer is None:
        raise WeightsError(
            f"{path} was trained by an optimizer of its caller's own: "
            "ft.load_learner(path, data=..., optimizer=...) takes it"
        )
