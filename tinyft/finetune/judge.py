"""Using a trained network: how often it is right on labelled pictures, and what it says of new
ones.

Both run a copy whose batch norms are folded, and both prepare pictures as in training's validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyft import backends
from tinyft.data.loader import Batch, PictureData, expect_pictures
from tinyft.data.prepare import prepare
from tinyft.engine.tape import no_grad
from tinyft.engine.tensor import Tensor
from tinyft.errors import DataError, NonFiniteLossError
from tinyft.finetune.groups import rates_in_words
from tinyft.finetune.records import Evaluation, Prediction
from tinyft.nn.fold import fold
from tinyft.nn.module import Module

if TYPE_CHECKING:
    from tinyft.finetune.feature_cache import FeatureCache
    from tinyft.finetune.learner import Learner

REMEDY = "Use a smaller learning rate (a tenth is a good try)"


def evaluate(learner: Learner, data: PictureData, cache: FeatureCache | None = None) -> Evaluation:
    """Accuracy and mean loss over the validation pictures of `data`, in evaluation mode. A `cache`
    belongs to these pictures.

    Raises: DataError if there are none, or their classes are not the learner's
    """
    expect_judgeable(learner, data)

    def batches() -> Iterator[Batch]:
        found = data.valid_batches(learner.adjusted_preprocess())
        return backends.get(learner.device).uploads(found)

    with no_grad(), backends.use(learner.device):
        network = fold(learner.model)
        if cache is None:
            judged = [(*judge_batch(learner, network, b), len(b.ids)) for b in batches()]
        else:
            body, head = network.network.features, network.network.head
            kept = cache.valid_features(body, batches)
            judged = [(*judge(learner, head(x), labels), len(labels)) for x, labels in kept]
    right = sum(int(backends.host(right)) for right, _, _ in judged)
    loss = sum(float(backends.host(loss)) * n for _, loss, n in judged)
    return Evaluation(data.n_valid, right / data.n_valid, loss / data.n_valid)


def expect_finite(learner: Learner, found: Evaluation) -> None:
    """Raises: NonFiniteLossError for a validation in training whose loss is no number"""
    if not np.isfinite(found.loss):
        rates = rates_in_words(learner.groups, [group.lr for group in learner.groups])
        raise NonFiniteLossError(
            f"the validation after step {learner.step - 1} has a loss of {found.loss} ({rates}): "
            f"training diverged. {REMEDY}, and start anew",
            found.loss,
        )


def expect_judgeable(learner: Learner, data: PictureData) -> None:
    """Raises: TypeError for what is no data; DataError if there are no validation pictures, or of
    other classes
    """
    expect_pictures(data)
    if data.classes != learner.classes:
        raise DataError(
            f"the learner knows the classes {', '.join(learner.classes)}, the pictures have "
            f"{', '.join(data.classes)}; open them with classes=learner.classes"
        )
    if data.n_valid == 0:
        raise DataError("there are no validation pictures; give some")


def judge_batch(learner: Learner, network: Module, batch: Batch) -> tuple[Any, Any]:
    """What `judge` says of a batch."""
    return judge(learner, network(learner.input(batch.images)), batch.labels)


def judge(learner: Learner, logits: Tensor, labels: np.ndarray) -> tuple[Any, Any]:
    """How many pictures are right, and their mean loss: numbers () on the device, to be read when
    every batch is on its way.
    """
    beside = backends.beside(labels, logits.data)
    right = (logits.data.argmax(axis=1) == beside).sum()
    return right, learner.loss(logits, labels).data


def predict(learner: Learner, images: list[Any] | tuple[Any, ...]) -> list[Prediction]:
    """The class of each picture: paths, or arrays (H, W, 3) uint8.

    Raises: DataError for a picture that cannot be used, naming the file if it is damaged; OSError
    """
    preprocess = learner.adjusted_preprocess()
    predictions = []
    with no_grad(), backends.use(learner.device):
        network = fold(learner.model)
        for image in images:
            pixels = prepare(image, preprocess)[None]  # (1, S, S, 3)
            probabilities = softmax(backends.host(network(learner.input(pixels)).data[0]))
            best = int(probabilities.argmax())
            name = str(image) if isinstance(image, str | Path) else "array"
            label, probability = learner.classes[best], float(probabilities[best])
            predictions.append(Prediction(name, label, probability, probabilities))
    return predictions


def softmax(logits: np.ndarray) -> np.ndarray:
    """(..., C) -> probabilities (..., C)"""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
