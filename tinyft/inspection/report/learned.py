"""The network judged: its answers to every validation picture, and where they are wrong.

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
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from tinyft.data.loader import PictureData
from tinyft.data.picture import prepare
from tinyft.display import aligned
from tinyft.errors import DataError
from tinyft.finetune.answering import softmax
from tinyft.finetune.records import Evaluation
from tinyft.inspection.html import escape, picture, table
from tinyft.inspection.report.charts import reliability_chart
from tinyft.inspection.report.images import grad_cams, overlay

if TYPE_CHECKING:
    from tinyft.finetune import Learner

Z_95 = 1.959963984540054  # the normal distribution's quantile at 0.975, for 95 % intervals
MOST_CELLS = 20  # classes of a confusion matrix that is written out; more are a picture
SHOWN = 9  # pictures with the largest losses
PICTURE_WIDTH = 150  # CSS pixels


@dataclass(frozen=True)
class ClassScore:
    """Precision and recall of one class. Precision is None where nothing was called by its name,
    recall where no picture shows it; intervals are Wilson's at 95 %.
    """

    name: str
    shown: int  # pictures of this class
    called: int  # pictures that were given this class
    right: int  # both
    precision: float | None
    precision_interval: tuple[float, float]
    recall: float | None
    recall_interval: tuple[float, float]

    def cells(self) -> list[str]:
        """Recall and precision: "0.90 (0.71 to 0.97)"."""
        pairs = (self.recall, self.recall_interval), (self.precision, self.precision_interval)
        return [
            "-" if share is None else f"{share:.2f} ({low:.2f} to {high:.2f})"
            for share, (low, high) in pairs
        ]


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
    """A network's answers to N labelled pictures.

    Shapes: labels (N,) int64; probabilities (N, C) float64, in the order of `classes`
    """

    classes: list[str]
    files: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    evaluation: Evaluation | None = None  # its accuracy, and its loss as in training

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
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have pictures: rare ones count as much as others."""
        recalls = [score.recall for score in self.per_class() if score.recall is not None]
        return sum(recalls) / len(recalls)

    @property
    def losses(self) -> np.ndarray:
        """-log of the true class's probability, without label smoothing or class weights: (N,)"""
        of_label = self.probabilities[np.arange(len(self.labels)), self.labels]
        return -np.log(np.maximum(of_label, np.finfo(np.float64).tiny))

    def confusion(self) -> np.ndarray:
        """Count the pictures of class `row` that were called class `column`: (C, C) int64"""
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
        matrix, scores = self.confusion(), []
        for i, name in enumerate(self.classes):
            shown, called, right = map(int, (matrix[i].sum(), matrix[:, i].sum(), matrix[i, i]))
            scores.append(ClassScore(
                name, shown, called, right,
                right / called if called else None, wilson(right, called),
                right / shown if shown else None, wilson(right, shown),
            ))  # fmt: skip
        return scores

    def lowest_recall_first(self) -> list[ClassScore]:
        """Sort the classes; those of which no picture was shown come last."""
        return sorted(self.per_class(), key=lambda s: 2.0 if s.recall is None else s.recall)

    def top_losses(self, most: int = 9) -> np.ndarray:
        """The pictures that the network was most wrong about, worst first: places in `files`."""
        return np.argsort(-self.losses, kind="stable")[:most]

    def calibration(self, bins: int = 10) -> Calibration:
        """Compare confidence to accuracy in bins of equal width; a bin holds its upper edge."""
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
        right, n = int(self.right.sum()), len(self.labels)
        low, high = wilson(right, n)
        scores = [[s.name, f"{s.shown:8}", *s.cells()] for s in self.lowest_recall_first()]
        lines = [
            f"{right} of {n} pictures right: {100 * low:.1f} % to {100 * high:.1f} % with 95 % "
            f"confidence; mean loss {self.losses.mean():.4f}; expected calibration error "
            f"{self.calibration().error:.3f}",
            "",
            *aligned([["class", "pictures", "recall (95 %)", "precision (95 %)"], *scores]),
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
    logits: list[np.ndarray] = []
    found = learner.evaluate(data, logits=logits)
    probabilities = softmax(np.concatenate(logits).astype(np.float64))
    labels = np.asarray(data.labels["valid"], np.int64)
    return Judgements(learner.classes, data.files("valid"), labels, probabilities, found)


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


# ------------------------------------------------------------------------------------- as sections


def learned(judged: Judgements) -> str:
    """Show scores of each class, who is taken for whom, calibration."""
    confused = judged.most_confused(8)
    scores = [[score.name, score.shown, *score.cells()] for score in judged.lowest_recall_first()]
    parts = [
        "<p>Recall: of the pictures of a class, the share that was found. Precision: of those that "
        "were given its name, the share that is one. In brackets what so few pictures allow to "
        "claim (Wilson's interval, 95 %).</p>",
        table(["class", "pictures", "recall", "precision"], scores),
        "<h3>Who is taken for whom</h3>",
        table(["shown", "taken for", "pictures"], confused) if confused else "<p>Nobody.</p>",
        _confusion(judged),
        "<h3>Does it know what it does not know?</h3>",
        _calibration(judged),
    ]
    return "\n".join(parts)


def mistakes(learner: Learner, judged: Judgements, data: PictureData | None = None) -> str:
    """The pictures (of `data`, else the learner's own) of the largest losses, each beside the
    evidence for what the network said and for what is true.

    Raises: DataError if a picture cannot be read any more
    """
    of_truth = judged.probabilities[np.arange(len(judged.labels)), judged.labels]
    worst = [i for i in judged.top_losses(SHOWN) if not judged.right[i] or of_truth[i] < 0.5]
    if not worst:
        return "<p>It was right about every picture, and more than half sure.</p>"
    preprocess = learner.adjusted_preprocess()
    data = data or learner.data
    images = np.stack([prepare(data.source("valid", int(i)), preprocess) for i in worst])
    said, true = judged.predicted[worst], judged.labels[worst]
    for_said, for_true = grad_cams(learner, images, said), grad_cams(learner, images, true)
    figures = [
        _mistake(judged, int(index), image, overlay(image, a), overlay(image, b))
        for index, image, a, b in zip(worst, images, for_said, for_true, strict=True)
    ]
    words = (
        "<p>The pictures that it was most wrong or least sure about. Each is shown as the network "
        "sees it, then with the evidence for what it said and for what is true (Grad-CAM: bright "
        "places speak for the class). Look at the labels first: a large loss is often a wrong "
        "label.</p>"
    )
    return words + "\n".join(figures)


def _mistake(
    judged: Judgements, index: int, image: np.ndarray, for_said: np.ndarray, for_true: np.ndarray
) -> str:
    """One picture, three times, and what was said of it."""
    true, said = int(judged.labels[index]), int(judged.predicted[index])
    shares = judged.probabilities[index]
    truth, answer = judged.classes[true], judged.classes[said]
    name = PurePath(judged.files[index]).name
    verdict = "right, but unsure" if true == said else f"taken for {answer}"
    caption = (
        f"<b>{escape(truth)}</b>, {escape(verdict)}: {escape(answer)} {100 * shares[said]:.0f} %, "
        f"{escape(truth)} {100 * shares[true]:.0f} %; loss {judged.losses[index]:.2f} "
        f'<span class="soft">({escape(name)})</span>'
    )
    shown = [(image, truth), (for_said, f"evidence for {answer}")]
    if true != said:
        shown.append((for_true, f"evidence for {truth}"))
    pictures = " ".join(
        picture(pixels, alt, width=PICTURE_WIDTH, lossless=False) for pixels, alt in shown
    )
    return f"<figure>{pictures}<figcaption>{caption}</figcaption></figure>"


def _confusion(judged: Judgements) -> str:
    """The matrix, its cells shaded by the share of their row; of many classes, as a picture."""
    matrix = judged.confusion()
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    words = "<p>Confusion matrix: a row is what was shown, a column what was said.</p>"
    if len(matrix) > MOST_CELLS:
        grey = np.repeat((255 * (1 - shares)).round().astype(np.uint8)[..., None], 3, axis=2)
        return words + picture(grey, "confusion matrix, dark is often", width=440)
    head = "".join(f'<th class="number">{i}</th>' for i in range(1, len(matrix) + 1))
    rows = []
    for i, name in enumerate(judged.classes):
        cells = []
        for j, (count, share) in enumerate(zip(matrix[i].tolist(), shares[i], strict=True)):
            # transparent green and red are readable on a light and on a dark ground
            colour = "23 113 74" if i == j else "200 60 40"
            style = f' style="background:rgb({colour} / {0.6 * share:.2f})"' if count else ""
            cells.append(f'<td class="number"{style}>{count or ""}</td>')
        rows.append(f"<tr><th>{i + 1} {escape(name)}</th>{''.join(cells)}</tr>")
    return (
        f'{words}<div class="wide"><table class="matrix"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _calibration(judged: Judgements) -> str:
    """The reliability diagram, and what it says in a sentence."""
    bins = judged.calibration()
    confidence = float(judged.probabilities.max(axis=1).mean())
    gap = confidence - judged.accuracy
    verdict = "too sure" if gap > 0 else "not sure enough"
    words = (
        f"<p>It says {100 * confidence:.1f} % on average and is right in "
        f"{100 * judged.accuracy:.1f} %: {verdict} by {100 * abs(gap):.1f} points. The expected "
        f"calibration error (Guo and others, 2017) is {bins.error:.3f}; with "
        f"{len(judged.labels)} pictures a part of it is chance. Discs below the diagonal are "
        "answers given with too much confidence.</p>"
    )
    chart = reliability_chart("Reliability", bins.confidence, bins.accuracy, bins.counts)
    return words + chart
