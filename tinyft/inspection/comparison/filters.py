"""The first layer's filters as pictures.

Only the first layer looks at colours, so only its filters can be shown as what they look for: each
is a small picture (R, S, 3), grey where it does not care. Before and after share one scale, so that
a filter that did not change looks the same; the difference has its own, or nothing would be seen.

Letters: F filters, R S kernel rows and columns.
"""

from __future__ import annotations

import math

import numpy as np

from tinyft.errors import ShapeError

GREY = 128
FAINTEST = 0.1  # of the strongest filter: what is weaker still is dead, and shown as grey
_GROUND = 255  # of the gaps between filters


def filter_grid(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """All filters side by side in a nearly square grid with white gaps of one pixel.

    Zero is grey, +scale the brightest and -scale the darkest; `scale` has one number a filter.

    Shapes: weight (F, 3, R, S), scale (F,) -> (rows (R + 1) + 1, columns (S + 1) + 1, 3) uint8
    Raises: ShapeError if the weight is not of a first layer
    """
    if weight.ndim != 4 or weight.shape[1] != 3:
        raise ShapeError(
            f"filter_grid: expected the first layer's weight (F, 3, R, S), got {weight.shape}"
        )
    F, _, R, S = weight.shape
    relative = weight / np.where(scale > 0, scale, 1).reshape(-1, 1, 1, 1)
    tiles = np.rint(GREY + 127 * np.clip(relative, -1, 1)).astype(np.uint8)
    tiles = tiles.transpose(0, 2, 3, 1)  # (F, R, S, 3)
    columns = math.ceil(math.sqrt(F))
    rows = math.ceil(F / columns)
    grid = np.full((rows * (R + 1) + 1, columns * (S + 1) + 1, 3), _GROUND, np.uint8)
    for f, tile in enumerate(tiles):
        top, left = f // columns * (R + 1) + 1, f % columns * (S + 1) + 1
        grid[top : top + R, left : left + S] = tile
    return grid


def before_and_after(
    before: np.ndarray, after: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Grids of the filters before and after on one scale, of the differences, and how many times
    the differences were enlarged (infinity where nothing changed: then all is grey).

    Shapes: before and after (F, 3, R, S) -> three uint8 pictures
    """
    change = after.astype(np.float64) - before
    axes = (1, 2, 3)
    scale = np.maximum(np.abs(before).max(axis=axes), np.abs(after).max(axis=axes))
    most = float(np.abs(change).max())
    scale = np.maximum(scale, FAINTEST * scale.max())
    # One scale for all filters, so that the one that moved most stands out.
    enlarged = float(scale.max()) / most if most else math.inf
    change_scale = np.full(len(before), most)
    return (
        filter_grid(before, scale),
        filter_grid(after, scale),
        filter_grid(change, change_scale),
        enlarged,
    )
