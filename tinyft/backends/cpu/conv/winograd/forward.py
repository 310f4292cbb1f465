"""Convolution 3x3 with stride 1 by Winograd's F(4x4, 3x3): forward and input gradient.

Defined by `Backend.conv2d` and `conv2d_input_grad` of tinyft/backends/reference.py. The transforms
and why they work: transforms.py.

A tile has 36 / 16 times as many transformed numbers as outputs, and a transformed filter 4 times as
many as weights. What is gained in arithmetic is lost if they travel through memory, so there are
two schedules, chosen by the shape:

- `convolve_tiles`: an item is some 24 to 48 tiles and all filters. Windows are transformed,
  multiplied by the 36 matrices of filters and transformed back within the core's L2 cache; x and y
  are touched once.
- `convolve_filters`, for few tiles and many weights (7x7x512 at the end of a ResNet): all windows
  are transformed once, then an item is 32 filters. They are transformed 64 input channels at a
  time and used at once, so that the transformed filters (37.7 MB for 512 x 512) never go to memory.
  Those of a folded network, which are kept, come from there: 3 % of ResNet-18's inference.

Versions, CPU time on one core of an AMD Zen 5 (AVX-512), in ms (direct: implicit GEMM):

                                      direct    filters    tiles
    batch 16, 56x56, 64 -> 64           16.1       11.1      5.2
    batch 16, 28x28, 128 -> 128         14.7        5.4      4.3
    batch 16, 14x14, 256 -> 256         14.6        4.6      4.6
    batch 16, 7x7, 512 -> 512           14.9        4.8      7.9
    batch 128, 32x32, 16 -> 16           6.1        4.9      1.7

Planes of filters lie an odd number of cache lines apart, as all planes do. At a power of 2 the 36
stores of a filter would fall into one set of the cache: 256 x 256 filters took 0.66 instead of
0.11 ms, a fifth of their layer (AMD Zen 5, two threads).

Numbers that overflow: an infinite pixel makes not only the outputs that see it infinite or NaN, but
all of its tile, since the transforms subtract.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.cache import helper, kernel
from tinyft.backends.cpu.codegen.simd import LANES, LINE, REST_ROWS
from tinyft.backends.cpu.codegen.vectors import finish_streams, offset_between, vset1, vstore
from tinyft.backends.cpu.conv.gemm import ITEM_COLUMNS, multiply, next_panel
from tinyft.backends.cpu.conv.layer import (
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    Epilogue,
    Layer,
    round_up,
)
from tinyft.backends.cpu.conv.winograd.transforms import (
    CHANNELS,
    TILE,
    VALUES,
    WINDOW,
    block_of_filters,
    finish_tile,
    odd_lines,
    place_of,
    prefetch_tile,
    prefetch_window,
    row_pitch,
    tile_count,
    tiles_with,
    tiling,
    transform_all_filters,
    transform_all_windows,
    transform_filters,
    transform_window,
)
from tinyft.backends.cpu.memory_bound.arrays import large
from tinyft.backends.cpu.runtime import packed_weights, threads, workspace
from tinyft.backends.cpu.runtime.work_stealing import next_start

LEAST_TILES = 5  # of the whole batch, in the forward pass
FEW_TILES, MANY_WEIGHTS = 128, 128 * 256  # where `convolve_filters` is faster


@helper
def round_rows(begin, end):
    """The first of the rows begin : end and how many, with those before and behind that the
    micro-kernel computes too; they are there, and nobody reads what comes of them.
    """
    begin = begin // REST_ROWS * REST_ROWS
    return begin, (end - begin + REST_ROWS - 1) // REST_ROWS * REST_ROWS


@kernel
def convolve_tiles(share, work, x, padding, transformed, y, epilogue, tiling, layout):
    """y = max(conv(x) + bias + residual, floor) by transformed filters. An item is `tiles` tiles.

    A value's windows are read once, so the sums of the next value take their place: value v has its
    windows in plane v + 1 and its sums in plane v. tiling: see `Tiling`; layout: floats per row and
    plane of values, whether y is written past the caches.
    """
    filters, plane_filter = transformed
    residual, has_residual = epilogue[1], epilogue[2]
    places, tiles, unit, bounds = tiling
    pitch, plane, large = layout
    _, H, W, C = x.shape
    _, P, Q, F = y.shape
    x_flat, y_flat, total = x.reshape(x.size), y.reshape(y.size), places.shape[0]
    edge = (VALUES + 1) * plane  # places in `work`
    vstore(work, edge + TILE * TILE * F, vset1(np.float32(0)))  # see finish_tile
    window_edge = edge + TILE * TILE * F + LANES
    ahead = next_panel(C, VALUES * F)  # also from the last of a value to the first of the next
    first = next_start(share, tiles, total)
    while first < total:
        count = min(tiles, total - first)
        for i in range(count):
            transform_window(
                x_flat, (H, W, C), padding, place_of(places, first + i), work, window_edge, work,
                plane + i * pitch, plane, CHANNELS,
            )  # fmt: skip
        now, first = first, next_start(share, tiles, total)
        for value in range(VALUES):
            for i in range(value * tiles // VALUES, (value + 1) * tiles // VALUES):
                if has_residual:
                    prefetch_tile(residual, (P, Q, F), place_of(places, now + i))
                if not large:
                    prefetch_tile(y_flat, (P, Q, F), place_of(places, now + i))
                prefetch_window(x_flat, (H, W, C), padding, place_of(places, first + i))
            begin, end = tiles_with(value // WINDOW, value % WINDOW, bounds, count // unit)
            begin, rows = round_rows(begin, end)
            multiply(
                work, (value + 1) * plane + begin * pitch, pitch, 1,
                filters, value * plane_filter, C, 0,
                work, value * plane + begin * pitch, pitch, rows, F, C, 0, 0, ahead,
            )  # fmt: skip
        for i in range(count):
            finish_tile(
                work, i * pitch, plane, edge, place_of(places, now + i), y_flat, (P, Q, F), 0, F,
                epilogue, large,
            )  # fmt: skip
    finish_streams()


@kernel
def convolve_filters(
    share, work, transformed, weight, flipped, y, epilogue, tiling, planes, filters
):
    """Do as `convolve_tiles` from transformed windows. An item is ITEM_COLUMNS filters, all tiles.

    transformed: windows, floats per plane and row of them, C. planes: floats per plane of filters
    and of sums. filters: those that are kept and floats per plane of them; if that is 0, they are
    transformed here.
    """
    windows, plane_in, pitch_in, C = transformed
    places, _, unit, bounds = tiling
    plane_filter, plane_out = planes
    kept, kept_plane = filters
    _, P, Q, F = y.shape
    y_flat, total = y.reshape(y.size), places.shape[0]
    pitch_out = ITEM_COLUMNS + LINE
    sums = VALUES * plane_filter  # places in `work`
    edge = sums + VALUES * plane_out
    squares = edge + TILE * TILE * ITEM_COLUMNS + LANES
    first = next_start(share, ITEM_COLUMNS, F)
    while first < F:
        count = min(ITEM_COLUMNS, F - first)
        for c in range(0, C, CHANNELS):
            depth = min(CHANNELS, C - c)
            at, plane, rows_of_panels, row = 0, plane_filter, depth, 0
            if kept_plane:
                at, plane = offset_between(work, 0, kept, first * C), kept_plane
                rows_of_panels, row = C, c
            else:  # flipped: y's filters are the weight's channels
                part = (first, count, c, depth) if flipped else (c, depth, first, count)
                block = block_of_filters(weight, *part, flipped, work, squares)
                transform_filters(0, weight, block, depth, count, work, 0, plane, 0, depth, count)
            for value in range(VALUES):
                begin, end = tiles_with(value // WINDOW, value % WINDOW, bounds, total // unit)
                begin, rows = round_rows(begin, end)
                multiply(
                    windows, (c // CHANNELS * VALUES + value) * plane_in + begin * pitch_in,
                    pitch_in, 1, work, at + value * plane, rows_of_panels, row,
                    work, sums + value * plane_out + begin * pitch_out, pitch_out,
                    rows, count, depth, c, plane_in, kept_plane,
                )  # fmt: skip
        vstore(work, edge + TILE * TILE * count, vset1(np.float32(0)))  # see finish_tile
        for tile in range(total):
            finish_tile(
                work, sums + tile * pitch_out, plane_out, edge, place_of(places, tile), y_flat,
                (P, Q, F), first, count, epilogue, False,
            )  # fmt: skip
        first = next_start(share, ITEM_COLUMNS, F)


def suits(what: str, layer: Layer) -> bool:
    """Tell whether the tiles are made for this kernel, and save products: they reach beyond a small
    map. On 2 x 2 results implicit GEMM is 1.1 to 1.5 times as fast, five times as exact.

    Forward, so many tiles have to be worth the transformed filters, which are four times as many
    numbers as the weights: with 4 of 7x7 pixels ResNet-18 takes 14 % longer for a picture, and 66 %
    for one of 96 pixels. A weight gradient on a map smaller than a tile adds up so few products
    that a plain sum is five times as exact.
    """
    if not (layer.weight[2:] == (3, 3) and layer.stride == 1 and layer.padding <= 2):
        return False
    rows, columns = (layer.x if what == INPUT_GRAD else layer.out)[1:3]
    tiles = -(-rows // TILE) * -(-columns // TILE)
    if 9 * rows * columns <= VALUES * tiles:  # multiplications per pair of channels
        return False
    if what == FORWARD and tile_count(layer.out) < LEAST_TILES:
        return False
    return what != WEIGHT_GRAD or min(rows, columns) >= TILE


def forward(
    x: Array, weight: Array, y: Array, epilogue: Epilogue, stride: int, padding: int
) -> None:
    """y (N, P, Q, F) from x (N, H, W, C), weight (3, 3, C, F); C and F multiples of LANES."""
    _convolve(x, weight, y, epilogue, False, padding)


def input_grad(dout: Array, weight: Array, dx: Array, stride: int, padding: int) -> None:
    """dx (N, H, W, C) from dout (N, P, Q, F), weight (3, 3, C, F); C and F multiples of LANES."""
    _convolve(dout, weight, dx, Epilogue(), True, 2 - padding)


def _convolve(x, weight, y, epilogue, flipped, padding):
    """forward, with its names; flipped: the input gradient, weight (3, 3, F, C)."""
    by_filters = x.shape[3] * y.shape[3] >= MANY_WEIGHTS and tile_count(y.shape) <= FEW_TILES
    compute = _convolve_filters if by_filters else _convolve_tiles
    compute(x, weight, flipped, padding, y, epilogue.arguments(y))


def _convolve_tiles(x, weight, flipped, padding, y, epilogue):
    size, tiles, layout = _layout_of_tiles(x.shape[3], y.shape)
    filters = transformed_filters(weight, flipped)
    threads.run_with_scratch(
        size, convolve_tiles, x, padding, filters, y, epilogue, tiles, (*layout, large(y))
    )


@functools.lru_cache(maxsize=256)
def _layout_of_tiles(C: int, y_shape: tuple[int, ...]) -> tuple[int, tuple, tuple]:
    """Of `convolve_tiles`: its scratch memory, its tiling, floats per row and plane of values."""
    N, P, Q, F = y_shape
    tiles = tiling(N, P, Q)
    pitch = row_pitch(max(C, F))
    plane = odd_lines(round_up(tiles.tiles, REST_ROWS) * pitch)
    size = (VALUES + 1) * plane + TILE * TILE * F + LANES + WINDOW * WINDOW * C
    return size, tuple(tiles), (pitch, plane)


def transformed_filters(weight: Array, flipped: bool) -> tuple[Array, int]:
    """[value] = all filters of weight (3, 3, C, F) as packed panels, and floats from one value's to
    the next.
    """
    name = "flipped filters" if flipped else "transformed filters"
    _, _, C, F = weight.shape
    plane = odd_lines(C * F)

    def make() -> Array:
        filters = packed_weights.buffer(weight, name, VALUES * plane)
        threads.run_with_scratch(
            9 * LANES * C, transform_all_filters, weight, flipped, filters, plane
        )
        return filters

    return packed_weights.keep(weight, name, make), plane


def _convolve_filters(x, weight, flipped, padding, y, epilogue):
    C = x.shape[3]
    size, size_in, (plane_in, pitch), tiles, planes = _layout_of_filters(C, y.shape)
    windows, places = workspace.scratch("windows", size_in), tiles[0]
    threads.run_with_scratch(
        WINDOW * WINDOW * C, transform_all_windows, x, padding, places, 0, len(places), windows,
        plane_in, pitch,
    )  # fmt: skip
    kept = np.empty(1, np.float32), 0
    if packed_weights.is_constant(weight):
        kept = transformed_filters(weight, flipped)
    threads.run_with_scratch(
        size, convolve_filters, (windows, plane_in, pitch, C), weight, flipped, y, epilogue, tiles,
        planes, kept,
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _layout_of_filters(C: int, y_shape: tuple[int, ...]) -> tuple[int, int, tuple, tuple, tuple]:
    """Of `convolve_filters`: its scratch memory, that for the windows, floats per plane and row of
    them, its tiling, floats per plane of filters and of sums.
    """
    N, P, Q, _ = y_shape
    tiles = tiling(N, P, Q, whole=True)
    rows, pitch = round_up(tiles.tiles, REST_ROWS), row_pitch(min(C, CHANNELS))
    plane_in = odd_lines(rows * pitch)
    plane_filter = odd_lines(CHANNELS * ITEM_COLUMNS)
    plane_out = odd_lines(rows * row_pitch(ITEM_COLUMNS))
    edges = TILE * TILE * ITEM_COLUMNS + LANES + 9 * CHANNELS * ITEM_COLUMNS
    size, size_in = VALUES * (plane_filter + plane_out) + edges, VALUES * plane_in
    planes = plane_filter, plane_out
    return size, -(-C // CHANNELS) * size_in, (plane_in, pitch), tuple(tiles), planes
