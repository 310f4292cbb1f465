"""From a picture in any form to the square of pixels that a network was trained to see.

Two stages. `working_picture` decodes and resizes to working size, the part that is worth
remembering; `shown` makes it the square. Prediction calls `prepare`, which does both; validation
does the same with remembered working pictures (tinyft/data/loader.py), and training augments them
(tinyft/data/augment.py). Subtracting the mean and dividing by the deviation is the backend's
`images` kernel, on the whole batch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinyft.data.augment import AugmentDraw, apply
from tinyft.data.decode import check_size, decode
from tinyft.data.resize import centre_crop, resize_short_side
from tinyft.errors import DataError

if TYPE_CHECKING:
    from tinyft.weights.preprocess import Preprocess

Source = bytes | str | os.PathLike | np.ndarray


def prepare(source: Source, preprocess: Preprocess) -> np.ndarray:
    """The network's input for one picture, before normalisation.

    `source` is a path, the bytes of a picture file, or an array of RGB pixels.

    Shapes:  array source (H, W, 3) uint8; out (S, S, 3) uint8, S = preprocess.crop
    Raises:  DataError, naming the file where there is one; OSError if the file cannot be read
    """
    return np.ascontiguousarray(shown(working_picture(source, preprocess), preprocess))


def working_picture(source: Source, preprocess: Preprocess) -> np.ndarray:
    """The whole picture, decoded, its short side at `preprocess.resize` pixels.

    Shapes:  out (H, W, 3) uint8, min(H, W) == preprocess.resize
    Raises:  as `prepare`
    """
    pixels = _pixels(source, preprocess.exif_transpose)
    if not preprocess.antialias and min(pixels.shape[:2]) > preprocess.resize:
        raise DataError(
            "the weights ask for shrinking without antialiasing, which Pillow does not do; bring "
            f"pictures whose short side is {preprocess.resize} pixels"
        )
    return resize_short_side(pixels, preprocess.resize, preprocess.interpolation)


def shown(picture: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """What the network is shown of a working picture: its middle, cut out, or its whole middle
    square in the augmentation's own resampling, with a draw that changes nothing.

    Shapes:  picture (H, W, 3) uint8; out (S, S, 3) uint8, S = preprocess.crop
    """
    if preprocess.whole_square and preprocess.resize > preprocess.crop:
        return apply(picture, AugmentDraw(), preprocess.crop)
    # differs from fastai: its validation has no such crop, that of published weights
    return centre_crop(picture, preprocess.crop)


def _pixels(source: Source, exif_transpose: bool) -> np.ndarray:
    if isinstance(source, np.ndarray):
        return _checked_array(source)
    if isinstance(source, bytes):
        return decode(source, exif_transpose=exif_transpose)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"a picture is a path, bytes or a uint8 array; got {type(source).__name__}")
    try:
        return decode(Path(source).read_bytes(), exif_transpose=exif_transpose)
    except DataError as error:
        raise DataError(f"{printable(source)}: {error}") from error


def printable(path: str | os.PathLike) -> str:
    """A path as text that any terminal and file can hold: undecodable bytes spelt out."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def _checked_array(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DataError(
            f"a picture as an array must be uint8 (height, width, 3); "
            f"got {pixels.dtype} {pixels.shape}"
        )
    check_size(pixels.shape[1], pixels.shape[0])
    return pixels
