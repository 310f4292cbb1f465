"""What it learned: every validation picture judged, and where the judgements go wrong.

    confusion     which class was taken for which
    per class     precision (of what it calls a rose, how much is one) and recall (of the roses, how
                  many it finds), each with the interval that so few pictures allow to claim
    top losses    the pictures that it was most wrong about: often the labels, not the network
    calibration   when it says 90 %, is it right in 90 % of the cases?

Letters: N pictures, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tinyft import backends
from tinyft.data.loader import PictureData
from tinyft.display import aligned
from tinyft.engine.tape import no_grad
from tinyft.errors import DataError
from tinyft.finetune.judge import expect_judgeable, softmax
from tinyft.nn.folding import fold

if TYPE_CHECKING:
    from tinyft.finetune import Learner

Z_95 = 1.959963984540054  # the normal distribution's quantile at 0.975, for 95 % intervals


@dataclass(frozen=True)
class ClassScore:
    """How one class fares. Precision is None where nothing was called by its name, recall where no
    picture shows it; intervals are Wilson's at 95 %.
    """

    name: str
    shown: int  # pictures of this class
    called: int  # pictures that were given this class
    right: int  # both
    precision: float | None
    precision_interval: tuple[float, float]
    recall: float | None
    recall_interval: tuple[float, float]


@dataclass(frozen=True)
class Calibration:
    """Reliability in bins of confidence (the probability of the class that was chosen).

    `error` is the expected calibration error: the mean over pictures of |accuracy - confidence| of
    their bin. Empty bins hold NaN.

    Shapes: edges (bins + 1,); counts, confidence, accuracy (bins,)
    Source: Guo et al., On calibration of modern neural networks (2017), equations 2, 3 and 5
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


@dataclass(frozen=True)
class Judgements:
    """What a network says of N labelled pictures.

    Shapes: labels (N,) int64; probabilities (N, C) float64, in the order of `classes`
    """

    classes: list[str]
    files: list[str]
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of each picture: (N,) int64"""
        return self.probabilities.argmax(axis=1)

    @property
    def right(self) -> np.ndarray:
        """(N,) bool"""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def losses(self) -> np.ndarray:
        """-log of the true class's probability, without label smoothing or class weights: (N,)"""
        of_label = self.probabilities[np.arange(len(self.labels)), self.labels]
        return -np.log(np.maximum(of_label, np.finfo(np.float64).tiny))

    def confusion(self) -> np.ndarray:
        """How many pictures of class `row` were called class `column`: (C, C) int64"""
        n = len(self.classes)
        pairs = np.bincount(self.labels * n + self.predicted, minlength=n * n)
        return pairs.reshape(n, n)

    def most_confused(self, most: int = 5) -> list[tuple[str, str, int]]:
        """The commonest mistakes: (true class, what it was called, how often), commonest first."""
        wrong = self.confusion()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        rows, columns = np.unravel_index(order, wrong.shape)
        return [
            (self.classes[r], self.classes[c], int(wrong[r, c]))
            for r, c in zip(rows, columns, strict=True)
            if wrong[r, c]
        ]

    def per_class(self) -> list[ClassScore]:
        """Precision and recall of each class, in the order of `classes`."""
        matrix = self.confusion()
        scores = []
        for i, name in enumerate(self.classes):
            shown, called, right = map(int, (matrix[i].sum(), matrix[:, i].sum(), matrix[i, i]))
            scores.append(
                ClassScore(
                    name,
                    shown,
                    called,
                    right,
                    right / called if called else None,
                    wilson(right, called),
                    right / shown if shown else None,
                    wilson(right, shown),
                )
            )
        return scores

    def top_losses(self, most: int = 9) -> np.ndarray:
        """The pictures that the network was most wrong about, worst first: places in `files`."""
        return np.argsort(-self.losses, kind="stable")[:most]

    def calibration(self, bins: int = 10) -> Calibration:
        """Confidence beside accuracy, in `bins` bins of equal width; a bin holds its upper edge."""
        confidence, right = self.probabilities.max(axis=1), self.right
        edges = np.linspace(0, 1, bins + 1)
        bin_of = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
        counts = np.bincount(bin_of, minlength=bins)
        with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an empty bin
            mean_confidence = np.bincount(bin_of, confidence, minlength=bins) / counts
            accuracy = np.bincount(bin_of, right, minlength=bins) / counts
        gaps = np.abs(accuracy - mean_confidence)[counts > 0]
        error = float((gaps * counts[counts > 0]).sum() / len(confidence))
        return Calibration(edges, counts, mean_confidence, accuracy, error)

    def __str__(self) -> str:
        low, high = wilson(int(self.right.sum()), len(self.labels))
        lines = [
            f"{int(self.right.sum())} of {len(self.labels)} pictures right: {_percent(low)} to "
            f"{_percent(high)} with 95 % confidence; mean loss {self.losses.mean():.4f}; expected "
            f"calibration error {self.calibration().error:.3f}",
            "",
            *_score_lines(self.per_class()),
            "",
            *(f"{true} taken for {called}: {n}" for true, called, n in self.most_confused()),
        ]
        return "\n".join(lines).rstrip()


def judge_pictures(learner: Learner, data: PictureData | None = None) -> Judgements:
    """The learner's probabilities for every validation picture (of `data`, else its own), in
    evaluation mode. The learner is not changed.

    Raises: DataError if there are none, or their classes are not the learner's
    """
    data = data if data is not None else learner.data
    if data is None:
        raise DataError("there are no pictures to judge; pass some as data=")
    expect_judgeable(learner, data)
    found = []
    with no_grad(), backends.use(learner.device):
        network = fold(learner.model)
        for batch in data.valid_batches(learner.adjusted_preprocess()):
            logits = backends.host(network(learner.input(batch.images)).data)  # (N, C)
            found.append(softmax(logits.astype(np.float64)))
    labels = np.asarray(data.labels["valid"], np.int64)
    return Judgements(learner.classes, data.files("valid"), labels, np.concatenate(found))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The interval for a share that `successes` of `trials` allow to claim, at 95 %.

    Unlike mean +- z * deviation it stays within 0 to 1 and is no point at 0 or all successes:
    with 10 of 10 right, the true share may well be 0.73. Nothing tried is (0, 1).

    Source: Wilson, Probable inference, the law of succession, and statistical inference (1927)
    """
    if trials == 0:
        return 0.0, 1.0
    share, z = successes / trials, Z_95
    scale = 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _score_lines(scores: list[ClassScore]) -> list[str]:
    """Precision and recall as a table, the class of the lowest recall first."""
    rows = [["class", "pictures", "recall (95 %)", "precision (95 %)"]]
    for s in lowest_recall_first(scores):
        recall = with_interval(s.recall, s.recall_interval)
        precision = with_interval(s.precision, s.precision_interval)
        rows.append([s.name, f"{s.shown:8}", recall, precision])
    return aligned(rows)


def lowest_recall_first(scores: list[ClassScore]) -> list[ClassScore]:
    """Classes of which no picture was shown come last."""
    return sorted(scores, key=lambda score: 2.0 if score.recall is None else score.recall)


def with_interval(share: float | None, interval: tuple[float, float]) -> str:
    """ "0.90 (0.71 to 0.97)" """
    return "-" if share is None else f"{share:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
