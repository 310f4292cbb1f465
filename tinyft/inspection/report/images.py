"""A picture on its way to the network, stage by stage, and where in it the evidence stands.

**Stages.** Preprocessing is where networks fail silently: a picture on its side, another resampling
filter, a crop that loses the subject. Each stage here is made by the functions that validation and
prediction use, so that what is shown is what the network gets.

**Grad-CAM.** The body turns a picture into a small map of features, 7 x 7 for 224 pixels; the head
turns the map into logits. The gradient of one class's logit with respect to the map says how much
the logit would rise if a feature at a place were stronger. Its mean over all places is the weight
of each feature, and the weighted sum of the features, where it is positive, is the heat map:

    weight[c]  = mean over h, w of  d logit / d features[h, w, c]
    map[h, w]  = max(0, sum over c of  weight[c] * features[h, w, c])

The tape does the work: the features are made a leaf that requires a gradient, and `backward` starts
at the logit. The learner is not touched for it, frozen or not: all of this happens in the folded
copy that evaluation runs, none of whose parameters requires a gradient.

Letters: N pictures, S the side of the network's input, H W a picture's rows and columns, h w those
of the features, C features.

Source: Selvaraju et al., Grad-CAM: visual explanations from deep networks via gradient-based
localization (2017), equations 1 and 2.
"""

from __future__ import annotations

import contextlib
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
    pixels_of,
    printable,
    resize_to,
    shown,
    working_picture,
)
from tinyft.display import counted
from tinyft.engine.tensor import Tensor
from tinyft.errors import ShapeError
from tinyft.inspection.html import Markup, escape, page, picture
from tinyft.inspection.report.charts import heat_colours
from tinyft.nn.layer_table import halves
from tinyft.weights.files import write_page

if TYPE_CHECKING:
    from tinyft.data.loader import PictureData
    from tinyft.finetune import Learner
    from tinyft.nn import Module
    from tinyft.weights.preprocess import Preprocess

MOST_OF_A_BATCH = 24  # pictures
LARGEST_SHOWN = 448  # pixels; a photograph of 12 million would make a page of 20 MB
FRAME = (255, 60, 60)  # red
HEAT_SHARE = 0.55  # of a colour, in a picture with its heat map over it


@dataclass(frozen=True)
class Stage:
    """One stage: what was done, in words; the array that came out; and, where that is not what is
    to be seen, a drawing.

    Shapes: array (H, W, 3) uint8, float where it is normalised; drawing (H, W, 3) uint8
    """

    name: str
    words: str
    array: np.ndarray
    drawing: np.ndarray | None = None

    @property
    def shown(self) -> np.ndarray:
        """The picture, shrunk if a side is longer than LARGEST_SHOWN: (h, w, 3) uint8"""
        pixels = self.array if self.drawing is None else self.drawing
        height, width = pixels.shape[:2]
        scale = LARGEST_SHOWN / max(height, width)
        if scale >= 1:
            return pixels
        target = max(1, round(width * scale)), max(1, round(height * scale))
        return resize_to(pixels, target)

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
        write_page(path, page(title, body))


def explain_image(source: Source, learner: Learner) -> ImageExplanation:
    """Each stage from the file to the network's input, and the learner's answer with its Grad-CAM.

    `source` is a path, the bytes of a picture file, a picture of Pillow, or an array (H, W, 3)
    uint8. The learner is not changed.

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
    order = np.argsort(-prediction.probabilities, kind="stable")[:3]
    shares = [f"{learner.classes[i]} {100 * prediction.probabilities[i]:.1f} %" for i in order]
    return ImageExplanation(name, stages, f"The network says: {', '.join(shares)}")


def _decoded(source: Source, preprocess: Preprocess) -> list[Stage]:
    """The picture as the file holds it and, where the file says how to turn it, upright."""
    if isinstance(source, np.ndarray):
        return [Stage("given", "an array of pixels", source)]
    if not isinstance(source, bytes | str | os.PathLike):
        pixels = pixels_of(source, exif_transpose=preprocess.exif_transpose)
        words = f"a picture of Pillow's, {_size(pixels)}, mode {source.mode}"
        return [Stage("given", words, pixels)]
    from PIL import Image

    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    as_stored = decode(data, exif_transpose=False)
    with Image.open(io.BytesIO(data)) as opened:
        kind, mode, turn = opened.format, opened.mode, orientation(opened)
    words = f"{kind}, {len(data):,} bytes, {_size(as_stored)}, mode {mode}"
    stages = [Stage("decoded", words + ("" if mode == "RGB" else ", as RGB"), as_stored)]
    if turn in TURNS:
        upright = decode(data, exif_transpose=preprocess.exif_transpose)
        done = "turned as it says" if preprocess.exif_transpose else "ignored, as was asked"
        stages.append(Stage("upright", f"EXIF orientation {turn}, {done}", upright))
    return stages


def _resized(resized: np.ndarray, preprocess: Preprocess) -> Stage:
    """The whole picture at working size, with the crop that follows drawn into it."""
    words = (
        f"to {_size(resized)}, the short side at {preprocess.resize}, by Pillow's "
        f"{preprocess.interpolation} filter, which averages where it shrinks; the frame is the crop"
    )
    framed, side = resized.copy(), _side(preprocess)
    margins = [n - side for n in resized.shape[:2]]
    # as `shown` rounds half a pixel: down for a square that is resampled, to even for a crop
    top, left = (n // 2 if side > preprocess.crop else centre_offset(n) for n in margins)
    last_row, last_column = top + side - 1, left + side - 1
    framed[[top, last_row], left : last_column + 1] = FRAME
    framed[top : last_row + 1, [left, last_column]] = FRAME
    return Stage("resized", words, resized, framed)


def _cropped(cropped: np.ndarray, resized: np.ndarray, preprocess: Preprocess) -> Stage:
    side = _side(preprocess)
    lost = 1 - side * side / (resized.shape[0] * resized.shape[1])
    words = f"the middle {side} x {side} px; {100 * lost:.0f} % of the picture lies outside"
    if side > preprocess.crop:
        words += f"; sampled to {_size(cropped)} as augmentation does"
    return Stage("cropped", words, cropped)


def _side(preprocess: Preprocess) -> int:
    """The side of the square that is cut out of the resized picture."""
    return preprocess.resize if preprocess.whole_square else preprocess.crop


def _normalised(normalised: np.ndarray, preprocess: Preprocess) -> Stage:
    """The first convolution's input, drawn with its smallest value black, its largest white."""
    mean, std = (", ".join(f"{v:g}" for v in x) for x in (preprocess.mean, preprocess.std))
    where = "assumed for the architecture" if preprocess.assumed else "from the weights file"
    words = f"divided by 255, minus ({mean}), divided by ({std}): {where}"
    low, high = float(normalised.min()), float(normalised.max())
    scaled = (normalised - low) / (high - low) if high > low else np.zeros_like(normalised)
    return Stage("normalised", words, normalised, (255 * scaled).round().astype(np.uint8))


def _size(pixels: np.ndarray) -> str:
    """Width x height, as programs for pictures say it."""
    return f"{pixels.shape[1]} x {pixels.shape[0]} px"


def first_batch(data: PictureData, preprocess: Preprocess, epoch: int = 0) -> Markup:
    """Draw the pictures with which an epoch of training begins, as the network gets them, and their
    labels; of a large batch the first MOST_OF_A_BATCH.

    Raises: DataError if a picture cannot be read any more
    """
    with contextlib.closing(data.train_batches(epoch, preprocess)) as batches:
        batch = next(batches)
    names = [data.classes[label] for label in batch.labels[:MOST_OF_A_BATCH]]
    figures = [
        f'<figure style="margin:0;width:88px">{picture(image, name, width=88, lossless=False)}'
        f'<figcaption class="cut" title="{escape(name)}">{escape(name)}</figcaption></figure>'
        for image, name in zip(batch.images, names, strict=False)
    ]
    left = len(batch.ids) - len(figures)
    return Markup(
        "<h3>The first batch, as the network gets it</h3>"
        f"<p>Augmentation: {data.augment or 'none'}, drawn anew in each epoch.</p>"
        f'<div style="display:flex;flex-wrap:wrap;gap:0.6rem">{"".join(figures)}</div>'
        + (f"<p>… and {counted(left, 'picture')} more</p>" if left else "")
    )


# ---------------------------------------------------------------------------------------- Grad-CAM


def grad_cams(learner: Learner, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The heat map of each picture for the class given with it.

    Compare the places of one map, not maps with each other: their scale is that of the gradients.

    Shapes: images (N, S, S, 3) uint8 as from `prepare`; classes (N,) int; out (N, h, w) float32
    Raises: ShapeError, ValueError for a class that the learner does not have
    """
    classes = np.asarray(classes)
    if images.ndim != 4 or classes.shape != images.shape[:1]:
        raise ShapeError(
            f"grad_cams: expected pictures (N, S, S, 3) and a class for each, got {images.shape} "
            f"and {classes.shape}"
        )
    n = len(learner.classes)
    if classes.size and not 0 <= classes.min() <= classes.max() < n:
        raise ValueError(f"grad_cams: classes are 0 to {n - 1}; got {classes.tolist()}")
    _, _, maps = learner.answers.ask(learner, images, maps=True)  # (N, h, w, C)
    with backends.use(learner.device):
        network = learner.answers.network(learner).network
        return heat_maps(network, backends.place(maps, learner.device), classes)


def heat_maps(network: Module, features: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Grad-CAM from the features on, through the head of a folded network alone. That is not
    changed: none of its parameters requires a gradient, so threads may share it.

    Shapes: features (N, h, w, C), on the backend in use; classes (N,) int; out (N, h, w) float32
    """
    if features.ndim != 4:
        raise ShapeError(f"Grad-CAM needs features at places, (N, h, w, C); got {features.shape}")
    leaf = Tensor.wrap(features)
    leaf.requires_grad = True
    logits = halves(network)[1](leaf)  # (N, classes); evaluation: no picture sees another
    chosen = np.zeros(logits.shape, logits.dtype)
    chosen[np.arange(len(classes)), classes] = 1
    logits.backward(backends.place_like(chosen, logits.data))
    assert leaf.grad is not None  # backward came from what was made of it
    weight = backends.host(leaf.grad).mean(axis=(1, 2))  # (N, C)
    heat = np.einsum("nhwc,nc->nhw", backends.host(features), weight)
    return np.maximum(0, heat).astype(np.float32)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The picture with its heat map over it, brightest where the map is largest.

    A map of zeros gives its darkest colour: no place speaks for the class.

    Shapes: image (S, S, 3) uint8; heat (h, w) float, not negative; out (S, S, 3) uint8
    """
    from PIL import Image

    largest = float(heat.max())
    scaled = heat / largest if largest > 0 else heat
    small = Image.fromarray(scaled.astype(np.float32))
    large = np.asarray(small.resize(image.shape[1::-1], Image.Resampling.BILINEAR))  # (S, S)
    mixed = HEAT_SHARE * heat_colours(large) + (1 - HEAT_SHARE) * image
    return mixed.round().astype(np.uint8)
