"""Which tiles cover a map, and in which order an item computes them.

A tile is 4 x 4 results. A side of 14 would take four of them and 2 results too many, which cost as
much as those that are wanted: 14 x 14 results would pay for 16 x 16. So a side that is no multiple
of 4 gets tiles of 3 too, 14 = 4 + 4 + 3 + 3 and 7 = 4 + 3. A row of 3 results needs 5 values
instead of 6: it does without the point 0 (transforms.py), and filters have the same values
as before.

So there are four kinds of tiles, and a product is computed for the tiles that have it. An item has
its tiles sorted by kind, in an order in which these are always neighbours:

    kind                       0     1     2     3
    results, rows x columns  3 x 4 4 x 4 4 x 3 3 x 3

    values at 0 by rows              1     2
    values at 0 by columns     0     1
    at 0 by both                     1
    all other                  0     1     2     3

On 14 x 14 and on 7 x 7 maps these are 84 % of the multiplications, and a layer is 1.12 to 1.15
times as fast. (Sides of 1, 2 and 5 get tiles of 3 that reach beyond them.) Where sides are
multiples of 4 all tiles are of kind 1. So they are where a picture has more tiles than an item
should, and where there are too few pictures for items of whole ones.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.cache import helper
from tinyft.backends.cpu.codegen.simd import BLOCK_ROWS, REST_ROWS
from tinyft.backends.cpu.conv.layer import round_up

TILE = 4  # results of a tile in each direction
WINDOW = 6  # inputs of a tile in each direction
VALUES = WINDOW * WINDOW
SHORT_ROWS, LONG, SHORT_COLUMNS, SHORT = range(4)  # kinds
MOST_TILES = 4 * BLOCK_ROWS  # of an item of `convolve_tiles`


class Tiling(NamedTuple):
    """places (tiles of all pictures, 4): picture, first row, first column and kind of each tile.

    `tiles` of them are an item (the last may have less), made of units of `unit` tiles each;
    bounds[kind] : bounds[kind + 1] are the tiles of a kind in one unit.
    """

    places: Array
    tiles: int
    unit: int
    bounds: Array


def tile_count(shape: tuple[int, ...]) -> int:
    """Tiles that cover results (N, P, Q, F)."""
    N, P, Q, _ = shape
    return N * -(-P // TILE) * -(-Q // TILE)


@functools.lru_cache(maxsize=64)
def tiling(N: int, P: int, Q: int, *, whole: bool = False, plain: bool = False) -> Tiling:
    """The tiles of N maps of P x Q results; `whole`: for one item, else for items of MOST_TILES at
    most, in fours for equal shares. `plain`: of kind LONG alone, one picture after the other.
    """
    (rows, short_rows), (columns, short_columns) = tiles_along(P), tiles_along(Q)
    per_picture = len(rows) * len(columns)
    enough = whole or (N >= 4 and per_picture <= MOST_TILES)
    mixed = enough and not plain and (short_rows.any() or short_columns.any())
    if mixed:
        pictures = N if whole else _share(N, max(1, MOST_TILES // per_picture))
        tiles, unit = pictures * per_picture, per_picture
    else:
        rows, short_rows = np.arange(0, P, TILE), np.zeros(len(rows), bool)
        columns, short_columns = np.arange(0, Q, TILE), np.zeros(len(columns), bool)
        pictures, unit = 1, 1
        total = N * per_picture
        tiles = total if whole else round_up(_share(total, MOST_TILES), REST_ROWS)
    kinds = np.array([[LONG, SHORT_COLUMNS], [SHORT_ROWS, SHORT]])
    kind = kinds[short_rows.astype(int)[:, None], short_columns.astype(int)]
    picture, row, column = np.indices((N, len(rows), len(columns))).reshape(3, -1)
    kind = kind[row, column]
    places = np.stack([picture, rows[row], columns[column], kind], axis=1)
    if mixed:
        places = places[np.lexsort((picture, kind, picture // pictures))]
    bounds = np.searchsorted(np.sort(kind[:per_picture]), np.arange(5)) * unit // per_picture
    return Tiling(np.ascontiguousarray(places), tiles, unit, bounds)


def tiles_along(size: int) -> tuple[Array, Array]:
    """Where the tiles along a side begin, and which of them have 3 results, at the end."""
    count = -(-size // TILE)
    too_many = TILE * count - size
    is_short = np.arange(count) >= count - too_many
    return np.cumsum(TILE - is_short) - (TILE - is_short), is_short


def _share(total: int, most: int) -> int:
    """Of an item of at most so many, if items come in fours."""
    return -(-total // round_up(-(-total // most), 4))


@helper
def place_of(places, tile):
    """Picture, first row, first column and kind of a tile; of the last for one behind it."""
    tile = min(tile, places.shape[0] - 1)
    return places[tile, 0], places[tile, 1], places[tile, 2], places[tile, 3]


@helper
def size_of(kind):
    """Rows and columns of results."""
    short_rows, short_columns = kind in (SHORT_ROWS, SHORT), kind in (SHORT_COLUMNS, SHORT)
    return TILE - short_rows, TILE - short_columns


@helper
def tiles_with(row, column, bounds, units):
    """From which to before which tile of an item with `units` units the value at point `row` by
    point `column` is computed.
    """
    first, last = bounds[SHORT_ROWS], bounds[SHORT + 1]
    if row == 0:
        first, last = bounds[LONG], bounds[SHORT]
    if column == 0:
        first, last = max(first, bounds[SHORT_ROWS]), min(last, bounds[SHORT_COLUMNS])
    return first * units, last * units
