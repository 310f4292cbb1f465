"""One resampling through a projective map, then brightness and contrast: the plain definition.

`resample` is what augmentation calls. It does what `resample_plain` says, through the compiled
loop of tinyft/data/fast_resample.py where Numba is installed; a test holds the two together.
The functions below `resample_plain` are its steps in order, on floating-point pictures of any
channel count.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from tinyft import backends

# fastai 2.8.12 clamps pixels to this distance from 0 and 1 before it takes their logit.
LOGIT_MARGIN = 1e-7


def resample(
    picture: np.ndarray, matrix: np.ndarray, size: int, brightness: float, contrast: float
) -> np.ndarray:
    """Return the picture seen through `matrix`, then lit, at `size` x `size` pixels.

    `matrix` maps a homogeneous output point to an input point, in coordinates that are -1 and 1 at
    the centres of the corner pixels. Outside, the picture is mirrored about its border pixels.

    Shapes:  picture (H, W, 3) uint8; matrix (3, 3) float64; out (size, size, 3) uint8
    Source:  fastai 2.8.12, vision/augment.py: AffineCoordTfm, then LightingTfm
    """
    # The usual 256 to 224 is far from being reduced, and needs no grid to tell.
    may_reduce = min(picture.shape[:2]) > 2 * size
    reduces = may_reduce and reduction_for(picture.shape, grid(matrix, size, size)) > 1
    if backends.why_no_numba() or reduces:
        return resample_plain(picture, matrix, size, brightness, contrast)
    from tinyft.data.fast_resample import resample_fast

    lit = partial(light, brightness=brightness, contrast=contrast)
    return resample_fast(picture, matrix, size, lit)


def resample_plain(
    picture: np.ndarray, matrix: np.ndarray, size: int, brightness: float, contrast: float
) -> np.ndarray:
    """Define `resample`, slow and plain; the fast one's bytes are within 1 of its."""
    pixels = sample(picture / 255.0, grid(matrix, size, size))
    return to_bytes(light(pixels, brightness, contrast))


def grid(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the input point that each output pixel shows.

    Shapes:  out (height, width, 2), (x, y) in -1..1 from corner to corner
    """
    y, x = np.meshgrid(axis(height), axis(width), indexing="ij")
    points = np.stack([x, y, np.ones_like(x)], axis=-1) @ matrix.T
    return points[..., :2] / points[..., 2:]


def axis(count: int) -> np.ndarray:
    """Return `count` points from -1 to 1; a single one lies in the middle."""
    return np.linspace(-1.0, 1.0, count) if count > 1 else np.zeros(1)


def sample(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Interpolate the picture bilinearly at each point; reduce it first if it shrinks too much.

    Bilinear sampling reads four pixels, so that a strong reduction would skip most of the picture.

    Shapes:  picture (H, W, C) float; points (P, Q, 2) float; out (P, Q, C)
    """
    factor = reduction_for(picture.shape, points)
    if factor > 1:
        picture = average_area(picture, factor)
    height, width = picture.shape[:2]
    x = mirror((points[..., 0] + 1) / 2 * (width - 1), width - 1)
    y = mirror((points[..., 1] + 1) / 2 * (height - 1), height - 1)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    share_x, share_y = (x - left)[..., None], (y - top)[..., None]
    upper = (1 - share_x) * picture[top, left] + share_x * picture[top, right]
    lower = (1 - share_x) * picture[bottom, left] + share_x * picture[bottom, right]
    return (1 - share_y) * upper + share_y * lower


def mirror(position: np.ndarray, last: int) -> np.ndarray:
    """Reflect positions outside 0..last about the centres of the border pixels."""
    if last == 0:
        return np.zeros_like(position)
    position = np.abs(position) % (2 * last)
    return np.minimum(position, 2 * last - position)


def average_area(picture: np.ndarray, factor: float) -> np.ndarray:
    """Reduce the picture by `factor`: each output pixel is the mean of the pixels that it touches.

    Shapes:  picture (H, W, C); out (floor(H / factor), floor(W / factor), C)
    Source:  PyTorch 2.14.1, interpolate(mode="area"), which is adaptive_avg_pool2d
    """
    for dimension in (0, 1):
        count = picture.shape[dimension]
        small = max(1, int(count * (1 / factor)))
        start = np.arange(small) * count // small
        stop = -(-np.arange(1, small + 1) * count // small)  # rounded up
        means = [
            np.take(picture, range(a, b), dimension).mean(dimension)
            for a, b in zip(start, stop, strict=True)
        ]
        picture = np.stack(means, axis=dimension)
    return picture


def light(pixels: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Add brightness to the logit of each pixel and multiplies it by contrast, as fastai does;
    0 and 1 stay in reach.

    Shapes:  pixels any shape, 0..1; out the same
    """
    inside = np.clip(pixels, LOGIT_MARGIN, 1 - LOGIT_MARGIN)
    lit = (np.log(inside / (1 - inside)) + np.log(brightness / (1 - brightness))) * contrast
    return 1 / (1 + np.exp(-lit))


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Round 0..1 to 0..255, halves up."""
    # differs from fastai, whose pixels stay floating point
    return np.floor(pixels * 255 + 0.5).astype(np.uint8)


def reduction_for(shape: tuple[int, ...], points: np.ndarray) -> float:
    """Return by how much fastai reduces a picture before it samples it; 1 where it does not."""
    factor = min(shape[0] / points.shape[0], shape[1] / points.shape[1]) / 2
    zoom = 2 / (points.max() - points.min()) if points.max() > points.min() else np.inf
    return factor if factor > 1 and factor > zoom else 1.0
