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
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from tinyft.data.loader import PictureData
from tinyft.data.picture import Source, prepare
from tinyft.display import aligned, counted
from tinyft.errors import DataError
from tinyft.finetune.answering import softmax
from tinyft.finetune.records import Evaluation
from tinyft.inspection.html import Markup, cut, escape, picture, table
from tinyft.inspection.report.charts import matrix_chart, reliability_chart
from tinyft.inspection.report.images import grad_cams, overlay

if TYPE_CHECKING:
    from tinyft.finetune import Learner

Z_95 = 1.959963984540054  # the normal distribution's quantile at 0.975, for 95 % intervals
MOST_PAIRS = 8  # of classes taken for each other
FIRST, FOLDED = 6, 6  # mistakes that are shown, and more that are folded away
PICTURE = 224  # pixels of a mistake's side


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
    evaluation: Evaluation  # its accuracy, and its loss as in training

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


def confusions(judged: Judgements) -> str:
    """Show which class was taken for which: the matrix, and beside it the commonest mistakes."""
    matrix = matrix_chart("Confusion matrix", judged.confusion(), judged.classes)
    pairs = judged.most_confused(len(judged.labels))
    rows = [[cut(shown), cut(said), n] for shown, said, n in pairs[:MOST_PAIRS]]
    beside = str(table(["shown", "taken for", "pictures"], rows)) if rows else "<p>Nobody.</p>"
    beside += more(len(pairs) - len(rows), "pair")
    return (
        f'<div class="row tight"><div>{matrix}</div>'
        f"<div><b>Who is taken for whom</b>{beside}</div></div>"
    )


def more(number: int, noun: str, where: str = "") -> str:
    """Say how many are not shown; "" if all are."""
    return f'<p class="soft">… and {counted(number, noun)} more{where}</p>' if number > 0 else ""


def scores(judged: Judgements) -> str:
    """Show precision and recall of each class, and calibration."""
    rows = [[score.name, score.shown, *score.cells()] for score in judged.lowest_recall_first()]
    return (
        "<p>Recall: of the pictures of a class, the share that was found. Precision: of those that "
        "were given its name, the share that is one. In brackets what so few pictures allow to "
        "claim (Wilson's interval, 95 %).</p>"
        f"{table(['class', 'pictures', 'recall', 'precision'], rows)}"
        f"<h3>Does it know what it does not know?</h3>{_calibration(judged)}"
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
    return words + reliability_chart("Reliability", bins.confidence, bins.accuracy, bins.counts)


def mistakes(learner: Learner, judged: Judgements, data: PictureData | None = None) -> str:
    """The pictures (of `data`, else the learner's own) of the largest losses, each beside the
    evidence for what the network said and for what is true; the first few, the others folded.

    Raises: DataError if a picture cannot be read any more
    """
    of_truth = judged.probabilities[np.arange(len(judged.labels)), judged.labels]
    missed = ~judged.right | (of_truth < 0.5)
    if not missed.any():
        return "<p>It was right about every picture, and more than half sure.</p>"
    worst = [i for i in judged.top_losses(len(missed)) if missed[i]][: FIRST + FOLDED]
    preprocess, data = learner.adjusted_preprocess(), data or learner.own_data()
    sources = [data.source("valid", int(i)) for i in worst]
    images = np.stack([prepare(source, preprocess) for source in sources])
    heat = [
        grad_cams(learner, images, classes[worst]) for classes in (judged.predicted, judged.labels)
    ]
    sharp = preprocess.scaled(PICTURE)  # the same square, as people like to see it
    cards = [
        mistake_of(judged, int(index), source, prepare(source, sharp), *maps)
        for index, source, *maps in zip(worst, sources, *heat, strict=True)
    ]
    words = (
        "Bright: what spoke for its answer; below, for the truth (Grad-CAM). Is the label right?"
    )
    html = f'<p>{words}</p><div class="cards">{"".join(cards[:FIRST])}</div>'
    if rest := "".join(cards[FIRST:]):
        number, where = int(missed.sum()), "; <code>tinyft evaluate RUN --csv FILE</code> lists all"
        html += f"<details><summary>… and {number - FIRST} more</summary>"
        html += f'<div class="cards">{rest}</div>{more(number - len(cards), "picture", where)}'
        html += "</details>"
    return html


def mistake_of(
    judged: Judgements,
    index: int,
    source: Source,
    photo: np.ndarray,
    for_said: np.ndarray,
    for_true: np.ndarray,
) -> str:
    """One picture, its evidence, what was said of it, and where it lies."""
    true, said = int(judged.labels[index]), int(judged.predicted[index])
    shares, file = judged.probabilities[index], cut(judged.files[index])
    truth, answer = judged.classes[true], judged.classes[said]
    views = [(photo, truth), (overlay(photo, for_said), f"evidence for {answer}")]
    if true != said:
        views.append((overlay(photo, for_true), f"evidence for {truth}"))
    pictures = "".join(picture(pixels, alt, lossless=False) for pixels, alt in views)
    verdict = "right, but unsure"
    if true != said:
        verdict = f"taken for <b>{escape(answer)}</b> {100 * shares[said]:.0f} %"
    if isinstance(source, str | PurePath):
        file = Markup(f'<a href="{escape(Path(source).absolute().as_uri())}">{file}</a>')
    return (
        f'<figure><div class="views">{pictures}</div><figcaption><b>{escape(truth)}</b> '
        f"{100 * shares[true]:.0f} %, {verdict}<br>{file} loss {judged.losses[index]:.2f}"
        "</figcaption></figure>"
    )
