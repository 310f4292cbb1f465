"""Tiles of 4 and 3 cover each map, sorted so that a value's tiles are neighbours."""

import numpy as np
import pytest

from tinyft.backends.cpu.codegen.cache import kernel
from tinyft.backends.cpu.conv.winograd.transforms import (
    VALUES,
    WINDOW,
    size_of,
    tiles_with,
    tiling,
)

MAPS = [
    (16, 14, 14), (5, 14, 14), (16, 7, 7), (4, 7, 28), (9, 3, 6), (4, 5, 7), (3, 7, 7), (1, 14, 14),
    (2, 56, 56), (4, 27, 30), (4, 1, 2), (6, 13, 10), (40, 9, 11),
]  # fmt: skip


@kernel
def size(kind):
    return size_of(kind)


@kernel
def neighbours(value, bounds, units):
    return tiles_with(value // WINDOW, value % WINDOW, bounds, units)


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"whole": True}, {"whole": True, "all_long": True}], ids=str
)
def test_each_result_is_in_one_tile(shape, options):
    N, P, Q = shape
    times = np.zeros((N, P + 4, Q + 4), int)
    for picture, row, column, kind in tiling(*shape, **options).places:
        rows, columns = size(kind)
        times[picture, row : row + rows, column : column + columns] += 1
    assert (times[:, :P, :Q] == 1).all()


@pytest.mark.parametrize("shape", [m for m in MAPS if not {1, 2, 5} & set(m[1:])], ids=str)
def test_sorted_tiles_compute_nothing_else(shape):
    """Sides of 1, 2 and 5 have no exact parts of 4 and 3."""
    tiles = tiling(*shape, whole=True)
    results = sum(np.prod(size(kind)) for kind in tiles.places[:, 3])
    assert results == np.prod(shape)


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("options", [{}, {"whole": True}], ids=str)
def test_a_value_is_computed_for_the_tiles_that_have_it(shape, options):
    tiles = tiling(*shape, **options)
    for first in range(0, len(tiles.places), tiles.tiles):
        item = tiles.places[first : first + tiles.tiles]
        assert len(item) % tiles.unit == 0
        for value in range(VALUES):
            has_it = np.array(
                [
                    (size(kind)[0] == 4 or value // WINDOW > 0)
                    and (size(kind)[1] == 4 or value % WINDOW > 0)
                    for kind in item[:, 3]
                ]
            )
            begin, end = neighbours(value, tiles.bounds, len(item) // tiles.unit)
            np.testing.assert_array_equal(np.flatnonzero(has_it), np.arange(begin, end))


def test_14_and_7_pixels_save_a_sixth():
    for side in (14, 7):
        tiles = tiling(16, side, side, whole=True)
        units = len(tiles.places) // tiles.unit
        ranges = [neighbours(value, tiles.bounds, units) for value in range(VALUES)]
        products = sum(end - begin for begin, end in ranges)
        assert products / (VALUES * len(tiles.places)) == pytest.approx(121 / 144)


def test_items_come_in_fours():
    for pictures in (4, 16, 17, 64):
        items = -(-len(tiling(pictures, 14, 14).places) // tiling(pictures, 14, 14).tiles)
        assert items >= 4
