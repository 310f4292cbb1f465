"""The compiled loop behind `resample`: sampling and lighting in one pass over the output.

Defined by `resample_plain` in tinyft/data/resample.py. The trick is in the lighting: a logit and
a sigmoid for each of 150,000 values would cost more than the sampling, so the curve is tabulated
once per picture and interpolated linearly. Interpolated pixels are not whole numbers, and below
one grey level the curve is steep, hence 16 knots per level: the error stays below 0.1 level
there, below 0.001 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinyft.backends.cpu.codegen.cache import helper, kernel

KNOTS_PER_LEVEL = 16
_KNOTS = np.arange(255 * KNOTS_PER_LEVEL + 1) / (255 * KNOTS_PER_LEVEL)


def resample_fast(
    picture: np.ndarray, matrix: np.ndarray, size: int, light: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return `resample.resample_plain`, without its reduction of pictures that shrink by more
    than 2; `light` maps pixels in 0..1 to lit ones.

    Shapes:  picture (H, W, 3) uint8; matrix (3, 3) float64; out (size, size, 3) uint8
    """
    curve = (light(_KNOTS) * 255 + 0.5).astype(np.float32)
    curve = np.append(curve, curve[-1])  # so that the last knot has a right neighbour
    picture = np.ascontiguousarray(picture).view()
    picture.flags.writeable = False  # whatever came: the loop is compiled for one kind of array
    out = np.empty((size, size, 3), np.uint8)
    to_pixels = (
        _from_corners(*picture.shape[:2]) @ matrix @ np.linalg.inv(_from_corners(size, size))
    )
    _sample_and_light(picture, to_pixels, curve, out)
    return out


def _from_corners(height: int, width: int) -> np.ndarray:
    """Map coordinates that are -1 and 1 at the corner pixels to row and column numbers."""
    half_x, half_y = max(width - 1, 1) / 2, max(height - 1, 1) / 2
    shift_x, shift_y = (width - 1) / 2, (height - 1) / 2
    return np.array([[half_x, 0.0, shift_x], [0.0, half_y, shift_y], [0.0, 0.0, 1.0]])


def _mirror(position, last):
    """Reflect about the centres of the border pixels; the first test is nearly always enough."""
    if 0.0 <= position <= last:
        return position
    if last == 0.0:
        return 0.0
    position = abs(position) % (2.0 * last)
    position = min(position, 2.0 * last - position)
    # NaN, from a degenerate map, may not address outside the picture.
    return position if 0.0 <= position <= last else 0.0


def _sample_and_light_source(picture, matrix, curve, out):
    """Fill out (P, Q, 3) uint8 from picture (H, W, 3) uint8; matrix maps (column, row, 1)."""
    bottom, right = picture.shape[0] - 1, picture.shape[1] - 1
    for p in range(out.shape[0]):
        for q in range(out.shape[1]):
            depth = matrix[2, 0] * q + matrix[2, 1] * p + matrix[2, 2]
            x = (matrix[0, 0] * q + matrix[0, 1] * p + matrix[0, 2]) / depth
            y = (matrix[1, 0] * q + matrix[1, 1] * p + matrix[1, 2]) / depth
            x, y = _mirror(x, float(right)), _mirror(y, float(bottom))
            left, top = int(x), int(y)
            next_left, next_top = min(left + 1, right), min(top + 1, bottom)
            share_x, share_y = np.float32(x - left), np.float32(y - top)
            for c in range(3):
                a, b = np.float32(picture[top, left, c]), np.float32(picture[top, next_left, c])
                upper = a + share_x * (b - a)
                a = np.float32(picture[next_top, left, c])
                b = np.float32(picture[next_top, next_left, c])
                lower = a + share_x * (b - a)
                value = np.float32(KNOTS_PER_LEVEL) * (upper + share_y * (lower - upper))
                knot = min(max(int(value), 0), curve.size - 2)
                share = value - np.float32(knot)
                out[p, q, c] = np.uint8(curve[knot] + share * (curve[knot + 1] - curve[knot]))


_mirror = helper(_mirror)
_sample_and_light = kernel(_sample_and_light_source)
