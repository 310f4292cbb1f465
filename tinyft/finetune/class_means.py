"""A linear head that starts from what the features already tell, instead of at random.

Pictures of one class lie near each other in the features of a pretrained body, so the mean of a
class's features is a good guess of the row of weights that answers to it. With few pictures a
random head has too few steps to find that by itself: of 3 photos for each of eight animals 75 %
come out right instead of 38 %, of 27 still 90 instead of 86 % (docs/measurements.md).

Letters: N pictures, C classes, F features.
"""

from __future__ import annotations

import numpy as np

from tinyft import backends
from tinyft.finetune.known import of_length_1, own_features
from tinyft.finetune.training import Training
from tinyft.nn.head import LinearHead

SCALES = np.geomspace(1, 1000, 61)  # tried for the logits of a feature of mean length


def start_from_class_means(learner: Training, head: LinearHead) -> None:
    """Give the head of a learner the class means of its training pictures' features: the
    logit of class c is s cos(f, mean_c) |f|, for the s that suits pictures a mean has not seen.

    Source: weight imprinting, Qi, Brown and Lowe, 2018 (arXiv:1712.07136)
    """
    data = learner.own_data()
    ids = data.ids("train")
    features = own_features(learner, "train", ids)  # (N, F)
    means = mean_weights(features.astype(np.float64), data.labels["train"][ids], data.num_classes)
    weight = head.linear.weight.data
    weight[...] = backends.place_like(means.astype(weight.dtype), weight)
    learner.answers.forget()


def mean_weights(features: np.ndarray, labels: np.ndarray, classes: int = 0) -> np.ndarray:
    """The weights (C, F) of a linear layer without bias that compares features with class means.

    Shapes:  features (N, F) float64; labels (N,) int64, of at least so many `classes`
    """
    counts = np.bincount(labels, minlength=classes)
    sums = np.stack([features[labels == c].sum(0) for c in range(len(counts))])  # (C, F)
    means = of_length_1(sums)
    length = np.linalg.norm(features, axis=1).mean()
    scale = _best_scale(features, labels, counts, sums, means, SCALES / length)
    return scale * (means - means.mean(0))  # what all classes share changes no probability


def _best_scale(
    features: np.ndarray, labels: np.ndarray, counts: np.ndarray, sums: np.ndarray,
    means: np.ndarray, scales: np.ndarray,
) -> float:  # fmt: skip
    """The scale whose cross-entropy is least, each picture compared with the mean of its class
    without it: else the fewer the pictures, the surer the head would be of them.
    """
    judged = counts[labels] > 1  # a picture alone in its class has no other to be compared with
    if not judged.any():
        return float(scales[len(scales) // 2])
    features, labels = features[judged], labels[judged]
    rows = np.arange(len(labels))
    cosines = features @ means.T  # (N, C), times |f|
    cosines[rows, labels] = (features * of_length_1(sums[labels] - features)).sum(1)

    def loss(scale: float) -> float:
        logits = scale * cosines
        largest = logits.max(1, keepdims=True)
        total = largest[:, 0] + np.log(np.exp(logits - largest).sum(1))
        return float((total - logits[rows, labels]).mean())

    return float(min(scales, key=loss))
