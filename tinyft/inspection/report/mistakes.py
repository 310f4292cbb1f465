"""The report's last word: what the network is right and wrong about, with the pictures."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from tinyft.data.picture import prepare
from tinyft.inspection.html import Markup, escape, picture, table
from tinyft.inspection.report.charts import reliability_chart
from tinyft.inspection.report.grad_cam import grad_cams, overlay
from tinyft.inspection.report.learned import (
    ClassScore,
    Judgements,
    lowest_recall_first,
    with_interval,
)

if TYPE_CHECKING:
    from tinyft.finetune import Learner

MOST_CELLS = 20  # classes of a confusion matrix that is written out; more are a picture
SHOWN = 9  # pictures with the largest losses
PICTURE_WIDTH = 150  # CSS pixels


def learned(judged: Judgements) -> str:
    """Scores of each class, who is taken for whom, calibration."""
    confused = [[true, said, n] for true, said, n in judged.most_confused(8)]
    parts = [
        "<p>Recall: of the pictures of a class, the share that was found. Precision: of those that "
        "were given its name, the share that is one. In brackets what so few pictures allow to "
        "claim (Wilson's interval, 95 %).</p>",
        _scores(judged.per_class()),
        "<h3>Who is taken for whom</h3>",
        table(["shown", "taken for", "pictures"], confused) if confused else "<p>Nobody.</p>",
        _confusion(judged),
        "<h3>Does it know what it does not know?</h3>",
        _calibration(judged),
    ]
    return "\n".join(parts)


def mistakes(learner: Learner, judged: Judgements) -> str:
    """The pictures of the largest losses, each beside the evidence for what the network said and
    for what is true.

    Raises: DataError if a picture cannot be read any more
    """
    worst = [i for i in judged.top_losses(SHOWN) if _wrong_or_unsure(judged, int(i))]
    if not worst:
        return "<p>It was right about every picture, and more than half sure.</p>"
    preprocess = learner.adjusted_preprocess()
    images = np.stack([prepare(learner.data.source("valid", int(i)), preprocess) for i in worst])
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


def _wrong_or_unsure(judged: Judgements, index: int) -> bool:
    true = judged.labels[index]
    return judged.predicted[index] != true or judged.probabilities[index, true] < 0.5


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


def _scores(scores: list[ClassScore]) -> Markup:
    """One line a class, the lowest recall first."""
    rows = [
        [s.name, s.shown, with_interval(s.recall, s.recall_interval),
         with_interval(s.precision, s.precision_interval)]
        for s in lowest_recall_first(scores)
    ]  # fmt: skip
    return table(["class", "pictures", "recall", "precision"], rows)


def _confusion(judged: Judgements) -> str:
    """The matrix, its cells shaded by the share of their row; of many classes, as a picture."""
    matrix = judged.confusion()
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    words = "<p>Confusion matrix: a row is what was shown, a column what was said.</p>"
    if len(matrix) > MOST_CELLS:
        grey = np.repeat((255 * (1 - shares)).round().astype(np.uint8)[..., None], 3, axis=2)
        return words + picture(grey, "confusion matrix, dark is often", width=440)
    numbers = "".join(f'<th class="number">{i}</th>' for i in range(1, len(matrix) + 1))
    rows = [
        f"<tr><th>{i} {escape(name)}</th>{''.join(map(_cell, *_row(matrix, shares, i - 1)))}</tr>"
        for i, name in enumerate(judged.classes, 1)
    ]
    return (
        f'{words}<div class="wide"><table class="matrix"><thead><tr><th></th>{numbers}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(matrix: np.ndarray, shares: np.ndarray, i: int) -> tuple[list, list, list]:
    """A row's counts, shares, and whether they are right answers."""
    return matrix[i].tolist(), shares[i].tolist(), [i == j for j in range(len(matrix))]


def _cell(count: int, share: float, is_right: bool) -> str:
    """Transparent green and red are readable on a light and on a dark ground."""
    colour = "23 113 74" if is_right else "200 60 40"
    style = f' style="background:rgb({colour} / {0.6 * share:.2f})"' if count else ""
    return f'<td class="number"{style}>{count or ""}</td>'


def _calibration(judged: Judgements) -> str:
    """The reliability diagram, and what it says in a sentence."""
    found = judged.calibration()
    confidence = float(judged.probabilities.max(axis=1).mean())
    gap = confidence - judged.accuracy
    verdict = "too sure" if gap > 0 else "not sure enough"
    words = (
        f"<p>It says {100 * confidence:.1f} % on average and is right in "
        f"{100 * judged.accuracy:.1f} %: {verdict} by {100 * abs(gap):.1f} points. The expected "
        f"calibration error (Guo and others, 2017) is {found.error:.3f}; with "
        f"{len(judged.labels)} pictures a part of it is chance. Discs below the diagonal are "
        "answers given with too much confidence.</p>"
    )
    chart = reliability_chart("Reliability", found.confidence, found.accuracy, found.counts)
    return words + chart
