"""Random changes to a training picture: fastai's `aug_transforms`, its RandomResizedCrop, or the
shift that small pictures are trained with.

A draw and its use are apart. `draw(rng)` makes an `AugmentDraw`, a handful of values that can be
printed; `apply(picture, draw, size)` is a pure function of them. Flip, rotation, zoom,
perspective warp and the crop to a square become *one* matrix, so that the picture is sampled once
and loses sharpness once (tinyft/data/resample.py); brightness and contrast then act on the logit
of each pixel.

Coordinates: x to the right, y down, -1 and 1 at the centres of the corner pixels. The matrices
map an *output* point to the *input* point that it shows.

# differs from fastai: its Resize cuts the square out of the original picture and resizes that;
# here the whole picture is resized (once, and remembered), and the square is cut out of the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tinyft.data.picture import cut_square, resize_to
from tinyft.data.resample import mirror, resample

# The defaults of fastai 2.8.12, vision/augment.py, aug_transforms.
MAX_ROTATE = 10.0  # degrees
MAX_ZOOM = 1.1
MAX_LIGHTING = 0.2
MAX_WARP = 0.2
FLIP_PROBABILITY = 0.5
AFFINE_PROBABILITY = 0.75
LIGHTING_PROBABILITY = 0.75

# RandomResizedCrop
# differs from fastai, whose own min_scale is 0.08; its book fine-tunes with 0.35
MIN_SCALE = 0.35
RATIO = (3 / 4, 4 / 3)  # width / height
ATTEMPTS = 10

MAX_SHIFT = 0.1  # of the side; for 32 pixels 3, where He et al. (2016) shift by up to 4


@dataclass(frozen=True)
class AugmentDraw:
    """Says what happens to one picture. The defaults change nothing but cut out the middle square.

    Units:  position 0..1 along the longer side; angle in degrees, clockwise; zoom a factor;
            centre 0..1 in x and y, the point that stays in place; warp in x and y, a fraction of
            half a side; brightness 0..1 with 0.5 neutral; contrast a factor
    """

    position: float = 0.5
    flip: bool = False
    angle: float = 0.0
    zoom: float = 1.0
    centre: tuple[float, float] = (0.5, 0.5)
    warp: tuple[float, float] = (0.0, 0.0)
    brightness: float = 0.5
    contrast: float = 1.0


def draw(rng: np.random.Generator) -> AugmentDraw:
    """Draw the random values of fastai's `aug_transforms()` for one picture.

    Each value is drawn, and then kept with its probability, else neutral. As many are taken from
    `rng` whatever comes out.

    Source:  fastai 2.8.12, vision/augment.py: Resize, Flip, Rotate, Zoom, Warp, Brightness,
             Contrast
    """

    def sometimes(probability: float, value: float, neutral: float) -> float:
        return value if rng.random() < probability else neutral

    half_light = 0.5 * MAX_LIGHTING
    log_contrast = -math.log(1 - MAX_LIGHTING)
    return AugmentDraw(
        position=rng.random(),
        flip=rng.random() < FLIP_PROBABILITY,
        angle=sometimes(AFFINE_PROBABILITY, rng.uniform(-MAX_ROTATE, MAX_ROTATE), 0.0),
        zoom=sometimes(AFFINE_PROBABILITY, rng.uniform(1.0, MAX_ZOOM), 1.0),
        centre=(rng.random(), rng.random()),
        warp=(
            sometimes(AFFINE_PROBABILITY, rng.uniform(-MAX_WARP, MAX_WARP), 0.0),
            sometimes(AFFINE_PROBABILITY, rng.uniform(-MAX_WARP, MAX_WARP), 0.0),
        ),
        brightness=sometimes(
            LIGHTING_PROBABILITY, rng.uniform(0.5 - half_light, 0.5 + half_light), 0.5
        ),
        contrast=sometimes(
            LIGHTING_PROBABILITY, math.exp(rng.uniform(-log_contrast, log_contrast)), 1.0
        ),
    )


def apply(picture: np.ndarray, drawn: AugmentDraw, size: int) -> np.ndarray:
    """Change the picture as `drawn` says, cut to a square and resampled once to `size` pixels.

    Shapes:  picture (H, W, 3) uint8, contiguous; out (size, size, 3) uint8
    """
    square = cut_square(picture, drawn.position)
    return resample(square, transform(drawn), size, drawn.brightness, drawn.contrast)


def draw_crop(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """Draw a part with MIN_SCALE to all of the area, and sides in a ratio of 3:4 to 4:3.

    Units:   out (left, top, width, height) in pixels
    Source:  fastai 2.8.12, RandomResizedCrop
    """
    for _ in range(ATTEMPTS):
        area = rng.uniform(MIN_SCALE, 1.0) * width * height
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(0, width - crop_width, endpoint=True))
            top = int(rng.integers(0, height - crop_height, endpoint=True))
            return left, top, crop_width, crop_height
    crop_width = min(width, max(1, int(height * RATIO[1])))  # no luck: the largest in the middle
    crop_height = min(height, max(1, int(width / RATIO[0])))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, crop_width, crop_height


def random_resized_crop(picture: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Resize one `draw_crop` to a square, by Pillow: the augmentation called "crop".

    Shapes:  picture (H, W, 3) uint8; out (size, size, 3) uint8
    """
    left, top, width, height = draw_crop(rng, *picture.shape[:2])
    return resize_to(picture[top : top + height, left : left + width], (size, size))


def random_shift(picture: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Cut a random square out of the picture with a mirrored border around it, flipped half of the
    time: the augmentation called "shift".

    Shapes:  picture (H, W, 3) uint8, no side below `size`; out (size, size, 3) uint8
    Source:  He et al., Deep residual learning for image recognition (2016), section 4.2, whose
             border is black
    """
    border = min(round(MAX_SHIFT * size), size - 1)
    rows, columns = (
        mirror(np.arange(size) + rng.integers(-border, side - size + border + 1), side - 1)
        for side in picture.shape[:2]
    )
    if rng.random() < FLIP_PROBABILITY:
        columns = columns[::-1]
    return picture[rows[:, None], columns]


def aug_transforms(picture: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Apply one `draw`: the augmentation called "default".

    Shapes:  picture (H, W, 3) uint8; out (size, size, 3) uint8
    """
    return apply(picture, draw(rng), size)


def transform(drawn: AugmentDraw) -> np.ndarray:
    """Return the projective map of a draw on a square: warp after (flip, rotation, zoom).

    Shapes:  out (3, 3) float64, on homogeneous points (x, y, 1)
    """
    flip = np.diag([-1.0 if drawn.flip else 1.0, 1.0, 1.0])
    angle = math.radians(drawn.angle)
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    scale = 1 / drawn.zoom  # about the point `centre`, which is (0.5, 0.5) in the middle
    shift_x, shift_y = ((1 - scale) * (2 * c - 1) for c in drawn.centre)
    zoom = np.array([[scale, 0.0, shift_x], [0.0, scale, shift_y], [0.0, 0.0, 1.0]])
    affine = flip @ rotation @ zoom
    return affine if drawn.warp == (0.0, 0.0) else warp_matrix(drawn.warp) @ affine


def warp_matrix(warp: tuple[float, float]) -> np.ndarray:
    """Return the homography from four moved corners to the corners: a look from aside or below.

    For each corner, with (u, v) the moved and (X, Y) the true one,
        X = (a u + b v + c) / (g u + h v + 1)   and   Y = (d u + e v + f) / (g u + h v + 1);
    multiplied by the denominator, these are eight linear equations for a ... h.

    Source:  fastai 2.8.12, vision/augment.py, find_coeffs and _WarpCoord
    """
    x, y = warp
    moved = [(-1 - y, -1 - x), (-1 + y, 1 + x), (1 + y, -1 + x), (1 - y, 1 - x)]
    corners = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    rows, values = [], []
    for (u, v), (corner_x, corner_y) in zip(moved, corners, strict=True):
        rows.append([u, v, 1, 0, 0, 0, -u * corner_x, -v * corner_x])
        rows.append([0, 0, 0, u, v, 1, -u * corner_y, -v * corner_y])
        values += [corner_x, corner_y]
    return np.append(np.linalg.solve(rows, values), 1.0).reshape(3, 3)
