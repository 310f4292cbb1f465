"""How often a network is right on labelled pictures: what it says of new ones is in answering.py.

Both run a copy whose batch norms are folded, and both prepare pictures as in training's validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tinyft import backends
from tinyft.data.loader import Batch, PictureData, expect_pictures
from tinyft.engine.tape import no_grad
from tinyft.engine.tensor import Tensor
from tinyft.errors import DataError, NonFiniteLossError
from tinyft.finetune.answering import computed, pooled
from tinyft.finetune.groups import rates_in_words
from tinyft.finetune.known import MOST
from tinyft.finetune.records import Evaluation
from tinyft.finetune.training import REMEDY, Training
from tinyft.nn.layer_table import halves
from tinyft.nn.module import Module


def evaluate(
    training: Training, data: PictureData | None = None, *, logits: list[np.ndarray] | None = None
) -> Evaluation:
    """Measure accuracy and mean loss over the validation pictures of `data`, else of the learner's
    own, whose features may be kept. `logits` is a list that gets those of each batch, (N, C).

    Raises: DataError if there are none, or their classes are not the learner's
    """
    data = data or training.own_data()
    expect_judgeable(training, data)
    keeps_features = data is training.data and training.has_features and data.n_valid <= MOST
    judged, features = [], []
    with no_grad(), backends.use(training.device):
        for scores, described, labels in _outputs(training, data):
            judged.append((*judge(training, Tensor.wrap(scores), labels), labels))
            if logits is not None:
                logits.append(backends.host(scores))
            if keeps_features:
                features.append(described)
    if keeps_features:  # for `learn`, which would compute them once more
        described = np.concatenate([backends.host(each) for each in features])  # (n_valid, F)
        training.answers.validated = data, training.adjusted_preprocess(), described
    loss = sum(float(backends.host(loss)) * len(labels) for _, loss, labels in judged)
    right = np.concatenate([backends.host(right) for right, _, _ in judged])
    shown = np.concatenate([labels for _, _, labels in judged])
    balanced = None
    if data.uneven:
        balanced = float(np.mean([right[shown == label].mean() for label in np.unique(shown)]))
    return Evaluation(data.n_valid, int(right.sum()) / len(right), loss / len(right), balanced)


def _outputs(
    training: Training, data: PictureData
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield logits (N, C), features (N, F) and labels (N,) of each validation batch; under no_grad.
    The body's output may be kept, of the learner's own pictures.
    """
    network = training.answers.network(training).network
    cache = training.cache if data is training.data else None

    def batches() -> Iterator[Batch]:
        decoded = data.valid_batches(training.adjusted_preprocess())
        return backends.get(training.device).uploads(decoded)

    if cache is not None:
        body, head = halves(network)
        for maps, labels in cache.valid_features(body, batches):
            yield head(maps).data, pooled(maps), labels
        return
    for batch in batches():
        x = training.input(batch.images)
        logits, features, *_ = computed(network, x, training.has_features)
        yield logits, features, batch.labels


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
