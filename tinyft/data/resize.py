"""Resizing and cropping as torchvision's presets do it, to the last bit.

The filter is part of a pretrained model: Pillow's bilinear filter averages when it shrinks,
OpenCV's and a tensor's do not, and the difference costs up to one point of ImageNet accuracy. So
do sizes and offsets that are rounded another way. Hence Pillow alone resizes here, in its
fixed-point arithmetic on bytes.
"""

from __future__ import annotations

import numpy as np

from tinyft.data.decode import check_size
from tinyft.errors import DataError


def resize_short_side(
    picture: np.ndarray, size: int, interpolation: str = "bilinear"
) -> np.ndarray:
    """The whole picture with its short side at `size` pixels, its shape kept.

    Shapes:  picture (H, W, 3) uint8; out (P, Q, 3) uint8 with min(P, Q) == size
    Raises:  DataError if the result would be larger than `decode.MAX_PIXELS`
    Source:  torchvision 0.29.1, transforms.Resize on a PIL image
    """
    height, width = picture.shape[:2]
    short, long = sorted((height, width))
    if short == size:
        return picture
    long = int(size * long / short)  # rounded down, as torchvision: 500x333 to 256 gives 384
    target = (long, size) if width > height else (size, long)
    check_size(*target)  # a narrow picture becomes large: 1x19 to 4096 has 319 Mpixel
    return resize_box(picture, (0, 0, width, height), target, interpolation)


def resize_box(
    picture: np.ndarray,
    box: tuple[int, int, int, int],
    target: tuple[int, int],
    interpolation: str = "bilinear",
) -> np.ndarray:
    """A part of the picture, resized to `target`, as if it had been cut out first.

    Shapes:  picture (H, W, 3) uint8; out (target[1], target[0], 3) uint8
    Units:   pixels; `box` is (left, top, right, bottom), `target` (width, height), as in Pillow
    """
    from PIL import Image

    left, top, right, bottom = box
    part = Image.fromarray(np.ascontiguousarray(picture[top:bottom, left:right]))
    return np.array(part.resize(target, Image.Resampling[interpolation.upper()]))


def centre_crop(picture: np.ndarray, size: int) -> np.ndarray:
    """The square of `size` pixels in the middle of the picture, as a view.

    Shapes:  picture (H, W, C); out (size, size, C)
    Raises:  DataError if a side is shorter than `size`
    Source:  torchvision 0.29.1, transforms.CenterCrop
    """
    height, width = picture.shape[:2]
    if min(height, width) < size:
        raise DataError(
            f"a crop of {size} pixels does not fit into a picture of {width}x{height}; "
            f"resize must be at least the crop"
        )
    top, left = centre_offset(height - size), centre_offset(width - size)
    return picture[top : top + size, left : left + size]


def centre_offset(margin: int) -> int:
    """Half the margin, halves rounded to even: margins 31, 33, 35 give 16, 16, 18."""
    return round(margin / 2)
