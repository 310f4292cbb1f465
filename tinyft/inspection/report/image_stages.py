"""How one picture becomes the network's input, stage by stage, as pictures with numbers.

Preprocessing is where networks fail silently: a picture on its side, another resampling filter, a
crop that loses the subject. Each stage here is made by the functions that validation and prediction
use, so that what is shown is what the network gets.

Letters: S, the side of the network's input; H and W, a picture's rows and columns.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from tinyft import backends
from tinyft.data.picture import (
    TURNS,
    Source,
    centre_offset,
    decode,
    orientation,
    printable,
    resize_box,
    shown,
    working_picture,
)
from tinyft.inspection.html import Markup, escape, page, picture
from tinyft.inspection.report.grad_cam import grad_cams, overlay

if TYPE_CHECKING:
    from tinyft.finetune import Learner
    from tinyft.weights.preprocess import Preprocess

LARGEST_SHOWN = 448  # pixels; a photograph of 12 million would make a page of 20 MB
FRAME = (255, 60, 60)  # red


@dataclass(frozen=True)
class Stage:
    """One stage: what was done, in words; the array that came out; and a picture of it.

    Shapes: array (H, W, 3) uint8, float where it is normalised; shown (h, w, 3) uint8
    """

    name: str
    words: str
    array: np.ndarray
    shown: np.ndarray

    @property
    def numbers(self) -> str:
        """Shape, dtype, range and mean of each channel."""
        red, green, blue = self.array.mean(axis=(0, 1), dtype=np.float64)
        return (
            f"{self.array.shape} {self.array.dtype}, {self.array.min():.4g} to "
            f"{self.array.max():.4g}, mean of R {red:.4g}, G {green:.4g}, B {blue:.4g}"
        )


@dataclass(frozen=True)
class ImageExplanation:
    """The stages of one picture and, where a learner was given, what it says of it."""

    file: str
    stages: list[Stage]
    verdict: str = ""

    def __str__(self) -> str:
        lines = [self.file]
        for i, stage in enumerate(self.stages, 1):
            lines += ["", f"{i}. {stage.name}: {stage.words}", f"   {stage.numbers}"]
        return "\n".join([*lines, "", self.verdict]).rstrip()

    def _repr_html_(self) -> str:
        parts = [
            f"<figure>{picture(stage.shown, stage.name, lossless=False)}<figcaption>"
            f"<b>{i}. {escape(stage.name)}</b>: {escape(stage.words)}<br>"
            f"<code>{escape(stage.numbers)}</code></figcaption></figure>"
            for i, stage in enumerate(self.stages, 1)
        ]
        return Markup("\n".join([*parts, f"<p>{escape(self.verdict)}</p>"]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a self-contained HTML page; an old file of that name is replaced."""
        title = f"How tinyft sees {PurePath(self.file).name}"
        body = f"<h1>{escape(title)}</h1>\n{self._repr_html_()}"
        Path(path).write_text(page(title, body), encoding="utf-8")


def explain_image(source: Source, learner: Learner) -> ImageExplanation:
    """Each stage from the file to the network's input, and the learner's answer with its Grad-CAM.

    `source` is a path, the bytes of a picture file, or an array (H, W, 3) uint8. The learner is not
    changed.

    Raises: DataError, naming the file, for a picture that cannot be read; OSError
    """
    name = printable(source) if isinstance(source, str | os.PathLike) else "picture"
    preprocess = learner.adjusted_preprocess()
    resized = working_picture(source, preprocess)  # raises for what is no picture
    cropped = np.ascontiguousarray(shown(resized, preprocess))  # (S, S, 3)
    with backends.use(learner.device):
        normalised = backends.host(learner.input(cropped[None]).data[0])
    prediction = learner.predict(source)
    best = int(prediction.probabilities.argmax())
    heat = grad_cams(learner, cropped[None], np.array([best]))[0]
    evidence = f"Grad-CAM for {prediction.label}: {heat.shape[0]} x {heat.shape[1]} places"
    stages = [
        *_decoded(source, preprocess),
        _resized(resized, preprocess),
        _cropped(cropped, resized, preprocess),
        _normalised(normalised, preprocess),
        Stage("where the evidence is", evidence, cropped, overlay(cropped, heat)),
    ]
    return ImageExplanation(name, stages, _verdict(learner.classes, prediction.probabilities))


def _decoded(source: Source, preprocess: Preprocess) -> list[Stage]:
    """The picture as the file holds it and, where the file says how to turn it, upright."""
    if isinstance(source, np.ndarray):
        return [_stage("given", "an array of pixels", source)]
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    as_stored = decode(data, exif_transpose=False)
    kind, mode, turn = _header(data)
    words = f"{kind}, {len(data):,} bytes, {_size(as_stored)}, mode {mode}"
    stages = [_stage("decoded", words + ("" if mode == "RGB" else ", as RGB"), as_stored)]
    if turn in TURNS:
        turned = decode(data, exif_transpose=preprocess.exif_transpose)
        done = "turned as it says" if preprocess.exif_transpose else "ignored, as was asked"
        stages.append(_stage("upright", f"EXIF orientation {turn}, {done}", turned))
    return stages


def _header(data: bytes) -> tuple[str, str, object]:
    """Format, mode and EXIF orientation of a file that was decoded."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        return str(opened.format), opened.mode, orientation(opened)


def _resized(resized: np.ndarray, preprocess: Preprocess) -> Stage:
    """The whole picture at working size, with the crop that follows drawn into it."""
    words = (
        f"to {_size(resized)}, the short side at {preprocess.resize}, by Pillow's "
        f"{preprocess.interpolation} filter, which averages where it shrinks; the frame is the crop"
    )
    framed, side = resized.copy(), _side(preprocess)
    top, left = (centre_offset(n - side) for n in resized.shape[:2])
    last_row, last_column = top + side - 1, left + side - 1
    framed[[top, last_row], left : last_column + 1] = FRAME
    framed[top : last_row + 1, [left, last_column]] = FRAME
    return Stage("resized", words, resized, _at_most(framed, LARGEST_SHOWN))


def _cropped(cropped: np.ndarray, resized: np.ndarray, preprocess: Preprocess) -> Stage:
    side = _side(preprocess)
    lost = 1 - side * side / (resized.shape[0] * resized.shape[1])
    words = f"the middle {side} x {side} px; {100 * lost:.0f} % of the picture lies outside"
    if side > preprocess.crop:
        words += f"; sampled to {_size(cropped)} as augmentation does"
    return _stage("cropped", words, cropped)


def _side(preprocess: Preprocess) -> int:
    """Of the square that is cut out of the resized picture."""
    return preprocess.resize if preprocess.whole_square else preprocess.crop


def _normalised(normalised: np.ndarray, preprocess: Preprocess) -> Stage:
    """The numbers that the first convolution reads; shown with their smallest black, their largest
    white.
    """
    mean, std = (", ".join(f"{v:g}" for v in x) for x in (preprocess.mean, preprocess.std))
    where = "assumed for the architecture" if preprocess.assumed else "from the weights file"
    words = f"divided by 255, minus ({mean}), divided by ({std}): {where}"
    low, high = float(normalised.min()), float(normalised.max())
    scaled = (normalised - low) / (high - low) if high > low else np.zeros_like(normalised)
    shown = (255 * scaled).round().astype(np.uint8)
    return Stage("normalised", words, normalised, _at_most(shown, LARGEST_SHOWN))


def _stage(name: str, words: str, array: np.ndarray) -> Stage:
    return Stage(name, words, array, _at_most(array, LARGEST_SHOWN))


def _at_most(pixels: np.ndarray, side: int) -> np.ndarray:
    """The picture, shrunk for showing if a side is longer than `side`."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return pixels
    target = max(1, round(width * scale)), max(1, round(height * scale))
    return resize_box(pixels, (0, 0, width, height), target)


def _size(pixels: np.ndarray) -> str:
    """Width x height, as programs for pictures say it."""
    return f"{pixels.shape[1]} x {pixels.shape[0]} px"


def _verdict(classes: list[str], probabilities: np.ndarray) -> str:
    order = np.argsort(-probabilities, kind="stable")[:3]
    shares = ", ".join(f"{classes[i]} {100 * probabilities[i]:.1f} %" for i in order)
    return f"The network says: {shares}"
