"""What a learner has seen: the features of its training pictures, by which it can tell that a new
picture is like none of them, and which it is most like.

A classifier has to choose one of its classes, and may be sure of it for a picture of something
else. Features know better: **similarity** is the mean cosine of a picture's features with those of
the three training pictures that are nearest. The **threshold** is chosen so that one in twenty of
the validation pictures, which show what was learnt, lies below: these are its false alarms.

Letters: N training pictures, n new ones, F features.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tinyft import backends
from tinyft.errors import DataError, WeightsError
from tinyft.seeds import generator

NEAREST = 3
FALSE_ALARMS = 0.05  # the share of validation pictures that is called unlike the training pictures
MOST = 2048  # pictures of each part: with 512 features 2 MB, and some 20 s at the most to compute


@dataclass(frozen=True)
class Known:
    """The training pictures' features, of length 1, and how similar a picture has to be.

    `flagged` of `valid` validation pictures lie below the `threshold`, which is None without any.

    Shapes: features (N, F) float16, in the order of `files`
    """

    features: np.ndarray
    files: list[str]
    threshold: float | None
    valid: int
    flagged: int

    @cached_property
    def columns(self) -> np.ndarray:
        """(F, N) float32, as the matrix product takes it"""
        return np.ascontiguousarray(self.features.T, np.float32)

    def judge(self, features: np.ndarray) -> list[dict[str, Any]]:
        """Say for each picture of features (n, F): its similarity, if it is unlike what was learnt
        (None where there is no threshold), and the names of the nearest training pictures.
        """
        rows = of_length_1(np.asarray(features, np.float32))
        cosines = backends.of(rows).matmul(rows, self.columns)  # (n, N)
        nearest = (-cosines).argsort(axis=1, kind="stable")[:, :NEAREST]
        similarity = np.take_along_axis(cosines, nearest, axis=1).mean(axis=1)
        return [
            {
                "similarity": float(value),
                "unlike": None if self.threshold is None else bool(value < self.threshold),
                "nearest": tuple(self.files[i] for i in places),
            }
            for value, places in zip(similarity, nearest, strict=True)
        ]

    def settings(self) -> dict[str, Any]:
        """What a learner's file says of it, beside the features."""
        names = "files", "threshold", "valid", "flagged"
        return {name: getattr(self, name) for name in names}

    @classmethod
    def read(cls, features: np.ndarray | None, settings: dict[str, Any] | None) -> Known | None:
        """As a file has it; None if it has none. Raises: WeightsError for parts that do not fit"""
        if features is None or settings is None:
            return None
        if len(features) != len(settings["files"]) or not len(features):
            raise WeightsError(
                f"the file has the features of {len(features)} pictures and names "
                f"{len(settings['files'])}; it is damaged or was edited"
            )
        return cls(features, **settings)


def learn(training: Any) -> Known | None:
    """Look at a learner's own pictures once more, as validation shows them. What is known already,
    or was computed by the last evaluation, is taken if nothing has changed since. None, with a
    warning where that is news, if no picture can be read.
    """
    service, data = training.answers, training.data
    with backends.use(training.device):
        service.network(training)  # forgets what was known of other weights
    if service.known is not None or data is None or data.n_train == 0 or not training.has_features:
        return service.known
    try:
        chosen = evenly_chosen(data.ids("train"), data.labels["train"], training.seed)
        features = np.asarray(own_features(training, "train", chosen), np.float32)
        features = of_length_1(features).astype(np.float16)
        names = data.files("train")
        known = Known(features, [names[i] for i in chosen], None, 0, 0)
        if data.n_valid:
            valid = _validation_features(training)
            similarities = np.array([each["similarity"] for each in known.judge(valid)])
            threshold = float(np.quantile(similarities, FALSE_ALARMS))
            flagged = int((similarities < threshold).sum())
            known = Known(features, known.files, threshold, len(similarities), flagged)
    except (DataError, OSError) as error:
        warnings.warn(
            f"the learner cannot tell what is unlike its training pictures: {error}", stacklevel=3
        )
        return None
    service.known = known
    return known


def _validation_features(training: Any) -> np.ndarray:
    """The features of at most MOST validation pictures: (n, F). Those of the last evaluation, if it
    was of these pictures with these weights.
    """
    data, validated = training.own_data(), training.answers.validated
    if validated is not None:
        shown, preprocess, features = validated
        if shown is data and preprocess == training.adjusted_preprocess():
            return features
    ids = evenly_chosen(data.ids("valid"), data.labels["valid"], training.seed)
    return own_features(training, "valid", ids)


def own_features(training: Any, split: str, ids: np.ndarray) -> np.ndarray:
    """The features of a learner's own pictures, as validation shows them: (len(ids), F)"""
    batches = training.data.chosen_pictures(split, ids, training.adjusted_preprocess())
    return np.concatenate([training.answers.ask(training, batch.images)[1] for batch in batches])


def evenly_chosen(ids: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Choose at most MOST of the pictures `ids` at random, as many of each class as it has.

    Shapes:  ids (n,) int64; labels (N,) int64, of all pictures; the result ascends
    """
    turn: Counter[int] = Counter()
    place: dict[int, int] = {}
    for i in generator(seed, "known").permutation(ids).tolist():
        label = int(labels[i])
        place[i] = turn[label]
        turn[label] += 1
    return np.array(sorted(sorted(place, key=place.__getitem__)[:MOST]), np.int64)


def of_length_1(features: np.ndarray) -> np.ndarray:
    """(..., F), each row divided by its length; zeros stay zeros."""
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
