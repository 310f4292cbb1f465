"""How often a network is right on labelled pictures: what it says of new ones is in answering.py.

Both run a copy whose batch norms are folded, and both prepare pictures as in training's validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyft import backends
from tinyft.data.loader import Batch, PictureData, expect_pictures
from tinyft.engine.tape import no_grad
from tinyft.engine.tensor import Tensor
from tinyft.errors import DataError, NonFiniteLossError
from tinyft.finetune.groups import rates_in_words
from tinyft.finetune.records import Evaluation
from tinyft.finetune.training import REMEDY
from tinyft.nn.layer_table import halves
from tinyft.nn.module import Module

if TYPE_CHECKING:
    from tinyft.finetune.training import Training


def evaluate(
    training: Training, data: PictureData | None = None, *, logits: list[np.ndarray] | None = None
) -> Evaluation:
    """Measure accuracy and mean loss over the validation pictures of `data`, else of the learner's
    own, whose features may be kept. `logits` is a list that gets those of each batch, (N, C).

    Raises: DataError if there are none, or their classes are not the learner's
    """
    data = data or training.own_data()
    expect_judgeable(training, data)

    def batches() -> Iterator[Batch]:
        decoded = data.valid_batches(training.adjusted_preprocess())
        return backends.get(training.device).uploads(decoded)

    with no_grad(), backends.use(training.device):
        network = training.answers.network(training)
        cache = training.cache if data is training.data else None
        if cache is None:
            scored = ((network(training.input(b.images)), b.labels) for b in batches())
        else:
            body, head = halves(network.network)
            scored = ((head(x), labels) for x, labels in cache.valid_features(body, batches))
        judged = []
        for scores, labels in scored:
            judged.append((*judge(training, scores, labels), labels))
            if logits is not None:
                logits.append(backends.host(scores.data))
    loss = sum(float(backends.host(loss)) * len(labels) for _, loss, labels in judged)
    right = np.concatenate([backends.host(right) for right, _, _ in judged])
    shown = np.concatenate([labels for _, _, labels in judged])
    balanced = None
    if data.uneven:
        balanced = float(np.mean([right[shown == label].mean() for label in np.unique(shown)]))
    return Evaluation(data.n_valid, int(right.sum()) / len(right), loss / len(right), balanced)


def expect_finite(training: Training, judged: Evaluation) -> None:
    """Raises: NonFiniteLossError for a validation in training whose loss is NaN or infinite"""
    if not np.isfinite(judged.loss):
        rates = rates_in_words(training.groups, [group.lr for group in training.groups])
        raise NonFiniteLossError(
            f"the validation after step {training.step - 1} has a loss of {judged.loss} ({rates}): "
            f"training diverged. {REMEDY}, and start anew",
            judged.loss,
        )


def expect_judgeable(training: Training, data: PictureData) -> None:
    """Raises: TypeError for what is no data; DataError if there are no validation pictures, or of
    other classes
    """
    expect_pictures(data)
    if data.classes != training.classes:
        raise DataError(
            f"the learner knows the classes {', '.join(training.classes)}, the pictures have "
            f"{', '.join(data.classes)}; open them with classes=learner.classes"
        )
    if data.n_valid == 0:
        raise DataError("there are no validation pictures; give some")


def judge_batch(training: Training, network: Module, batch: Batch) -> tuple[Any, Any]:
    """Judge a batch of pictures."""
    return judge(training, network(training.input(batch.images)), batch.labels)


def judge(training: Training, logits: Tensor, labels: np.ndarray) -> tuple[Any, Any]:
    """Find which pictures are right, and take their mean loss: arrays (N,) and () on the device, to
    be read when every batch is on its way.
    """
    beside = backends.place_like(labels, logits.data)
    right = logits.data.argmax(axis=1) == beside
    return right, training.loss(logits, labels).data
