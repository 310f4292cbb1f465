"""Convolution 3x3 with stride 2 and padding 1 by Winograd's transforms.

Defined by `Backend.conv2d` and its gradients in tinyft/backends/reference.py. The method of
forward.py needs stride 1; this is how it gets it.

**Two convolutions in one.** In one dimension result p is made of the pixels 2p - 1, 2p, 2p + 1.
Taps 0 and 2 meet odd pixels, tap 1 even ones. Taken by themselves, odd pixels are a line of their
own, which a filter of 2 taps passes with stride 1; even ones are another, with 1 tap:

    4 results of 2 taps    depend on 5 odd pixels     5 points    5 multiplications, not 8
    4 results of 1 tap     depend on 4 even pixels    4 of them   4 multiplications

Both use the same points, so that products of both can be added before the one transform back. Four
points are the first four of five: the fifth is infinity, where a polynomial's value is its highest
coefficient, that of a second tap, which the filter of one tap has not. That makes 9 products, added
up to 5 values; in two dimensions 81 products instead of 144 for 16 results, added up to 25 values.

**Input gradient.** An odd pixel gets 2 taps of dout, an even one 1 tap. So 5 x 5 numbers of dout,
evaluated at 25 points, are multiplied by the 81 values of a flipped filter (taps 0 and 2 change
places, 1 stays) and become 8 x 8 pixels of dx.

**Weight gradient.** Of the 81 numbers of a tile of x, 25, 20, 20 and 16 belong to four groups of
taps. Each group meets the same 25 numbers of dout:

    taps        (0, 0) (0, 2) (2, 0) (2, 2)    (0, 1) (2, 1)    (1, 0) (1, 2)    (1, 1)
    products    5 x 5                          5 x 4            4 x 5            4 x 4

**The points** are +-2/5, +-5/4 and infinity; a tile of 3 results does without -2/5. Roundings reach
the result amplified (see transforms.py; stride 1 has 4.8 and 4.0):

    +-a, +-b              1, 2    1/2, 2    1/2, 3/2    1/2, 4/3    2/5, 7/5    2/5, 5/4
    tiles of 4 results    11.3       4.4         2.9        2.85        2.76        2.81
    tiles of 3            12.3       5.6         3.1        2.74        2.47        2.27

**Schedule.** As `convolve_filters` of forward.py: windows are transformed for everyone, in rounds
that the shared cache holds; an item is 32 filters for a part of the tiles, and transforms its
filters itself. For the weight gradient dout is transformed for everyone, too; an item is a group of
taps and a block of 64 x 64 channel pairs, whose sums (at most 410 KB) stay in L2. Milliseconds, two
threads of an idle AMD Zen 5 (AVX-512), batch 16:

                                       forward         input gradient    weight gradient
                                    direct   this      direct   this      direct   this
    56x56, 64 -> 128 filters          3.80   2.85        4.25   2.98        3.89   2.99
    28x28, 128 -> 256                 3.72   2.49        3.82   2.70        3.95   2.59
    14x14, 256 -> 512                 3.79   2.53        3.94   2.82        4.11   2.46

Direct is implicit GEMM. Fewer channels or filters do not pay for the transforms of x (`suits`);
those of dout do, but for a picture or two.

Numbers that overflow: infinity spreads over a tile, 4 x 4 results or 8 x 8 pixels of dx, and over
all 9 gradients of a filter's weights.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.cache import kernel
from tinyft.backends.cpu.codegen.generators import make_two_sided_transform
from tinyft.backends.cpu.codegen.simd import LANES, LINE, REST_ROWS
from tinyft.backends.cpu.codegen.vectors import finish_streams, vset1, vstore
from tinyft.backends.cpu.conv.gemm import ITEM_COLUMNS, multiply
from tinyft.backends.cpu.conv.layer import INPUT_GRAD, Epilogue, Layer, round_up
from tinyft.backends.cpu.conv.winograd.forward import round_rows
from tinyft.backends.cpu.conv.winograd.transforms import (
    CHANNELS,
    TILE,
    TILES_PER_ITEM,
    block_of_filters,
    kinds,
    make_finish_tile,
    make_transform_filters,
    make_transform_window,
    odd_lines,
    place_of,
    row_pitch,
    short_matrices,
    tile_count,
    tiles_along,
    tiles_with,
    tiling,
    winograd_matrices,
)
from tinyft.backends.cpu.conv.winograd.weight_grad import (
    BLOCK_PITCH,
    BLOCK_PLANE,
    TILES_AT_A_TIME,
    add_up,
    buffer_for,
    clear_block,
    make_transform_output_tile,
    make_transform_output_tiles,
)
from tinyft.backends.cpu.memory_bound.arrays import large
from tinyft.backends.cpu.runtime import threads, workspace
from tinyft.backends.cpu.runtime.work_stealing import next_item, next_start

SIDE = 5  # values of a tile of results in each direction
SPLIT = 9  # products in each direction: SIDE of odd pixels, and SIDE - 1 of even ones
VALUES, PRODUCTS = SIDE * SIDE, SPLIT * SPLIT
EDGE = (2 * TILE) ** 2 * ITEM_COLUMNS  # floats of a tile of dx that reaches beyond it
ROUND_FLOATS = 1 << 20  # transformed numbers of a round (4 MiB), unless LEAST_ITEMS have more
WEIGHT_GRAD_ROUND_FLOATS = 3 << 20  # the same for the weight gradient (12 MiB)
LEAST_ITEMS = 8  # of a round
ITEM_TILES, ITEM_GRAD_TILES = 96, 64  # at most: 25 sums of a tile and filter, or 81
SUMS_PITCH = ITEM_COLUMNS + LINE  # floats from one tile's sums to the next
LEAST_TILES = 16  # of the whole batch
MUST_SAVE = 1.4  # times as many multiplications: 1.15 (10x10 pixels) are 5 to 11 % slower, 1.65 pay


def suits(what: str, layer: Layer) -> bool:
    """Tell whether the tiles are made for this kernel, and do not reach too far beyond the results,
    as on 2 x 2 or 5 x 5.

    But for the input gradient, enough products with each number of x have to be worth its
    transform: 32 or 256 channels and 64 filters are 3 to 26 % slower. And enough tiles those of the
    filters: 4 tiles of 14x14 pixels are up to twice as slow.
    """
    F, C, R, S = layer.weight
    if not (R == S == 3 and layer.stride == 2 and layer.padding == 1):
        return False
    products = 1
    for size in layer.out[1:3]:
        _, is_short = tiles_along(size)  # a tile of 3 results has 7 products
        products *= SPLIT * len(is_short) - 2 * is_short.sum()
    if 9 * layer.out[1] * layer.out[2] <= MUST_SAVE * products:
        return False
    many = round_up(C, LANES) >= 64 and round_up(F, LANES) >= 128
    return what == INPUT_GRAD or (many and tile_count(layer.out) >= LEAST_TILES)


def split_inputs(matrix: Array) -> Array:
    """B' (5, 5) -> (9, 9): five values of pixels 0, 2, ... 8 of a window, which are odd in x, and
    four of pixels 1, 3, 5, 7.
    """
    split = np.zeros((SPLIT, SPLIT))
    split[:SIDE, 0::2] = matrix
    split[SIDE:, 1::2] = matrix[:-1, :-1]  # a value at one of four points: of a fifth pixel nothing
    return split


def split_filter(matrix: Array) -> Array:
    """G (5, 2) -> (9, 3): five values of taps 0 and 2, four of tap 1."""
    split = np.zeros((SPLIT, 3))
    split[:SIDE, 0::2] = matrix
    split[SIDE:, 1] = matrix[:-1, 0]
    return split


def split_results(matrix: Array) -> Array:
    """A' (4, 5) -> (8, 9): from five values odd pixels of dx, from four even ones."""
    split = np.zeros((2 * len(matrix), SPLIT))
    split[1::2, :SIDE] = matrix
    split[0::2, SIDE:] = matrix[:, :-1]
    return split


POINTS = -2 / 5, 2 / 5, 5 / 4, -5 / 4
A_TRANSPOSED, G, B_TRANSPOSED = winograd_matrices(POINTS, 2)
A_SHORT, B_SHORT = short_matrices(POINTS, 2)
G_SPLIT = split_filter(G)
transform_window = make_transform_window(  # 9x9 pixels -> 9x9
    make_two_sided_transform(*kinds(split_inputs(B_TRANSPOSED), split_inputs(B_SHORT)), loops=True),
    SPLIT,
    stride=2,
)
transform_grad_window = make_transform_window(  # 5x5 pixels of dout -> 5x5
    make_two_sided_transform(*kinds(B_TRANSPOSED, B_SHORT)), SIDE, stride=1
)
transform_filters = make_transform_filters(  # 3x3 weights -> one of 9 rows of 9
    make_two_sided_transform(*((row[None], G_SPLIT) for row in G_SPLIT)), SPLIT
)
finish_tile = make_finish_tile(  # 5x5 -> 4x4 results
    make_two_sided_transform(*kinds(A_TRANSPOSED, A_SHORT), epilogue=True), SIDE, stride=1
)
finish_grad_tile = make_finish_tile(  # 9x9 -> 8x8 pixels of dx
    make_two_sided_transform(
        *kinds(split_results(A_TRANSPOSED), split_results(A_SHORT)), epilogue=True, loops=True
    ),
    SPLIT,
    stride=2,
)


@kernel
def transform_split_windows(share, work, x, flipped, places, first_tile, count, out, plane, pitch):
    """out[channel group][product][tile] = the windows of `count` tiles, from `first_tile` on; if
    flipped, x is dout: out[channel group][value][tile]. An item is TILES_PER_ITEM tiles.
    """
    _, H, W, C = x.shape
    x_flat = x.reshape(x.size)
    item = next_start(share, TILES_PER_ITEM, count)
    while item < count:
        for tile in range(item, min(count, item + TILES_PER_ITEM)):
            place, at = place_of(places, first_tile + tile), tile * pitch
            if flipped:
                transform_grad_window(
                    x_flat, (H, W, C), 0, place, work, 0, out, at, plane, VALUES * plane
                )
            else:
                transform_window(
                    x_flat, (H, W, C), 1, place, work, 0, out, at, plane, PRODUCTS * plane
                )
        item = next_start(share, TILES_PER_ITEM, count)


@kernel
def convolve_windows(
    share, work, inputs, weight, flipped, y, epilogue, places, bounds, part, layout
):
    """y = max(conv(x) + bias + residual, floor) from transformed windows; flipped: the input
    gradient, y is dx. An item is ITEM_COLUMNS filters and `tiles` of the `count` tiles.

    Forward, the 81 products of a tile are added up to 25 values; flipped, 25 values of dout become
    81 products. inputs: windows, floats per plane and row of them, C. part: of all tiles the first,
    how many, how many an item has. layout: floats per plane of filters and of sums, whether y is
    written past the caches.
    """
    windows, plane_in, pitch_in, C = inputs
    first_tile, count, tiles = part
    plane_filter, plane_out, large = layout
    _, P, Q, F = y.shape
    y_flat = y.reshape(y.size)
    planes_in, planes_out = (VALUES, PRODUCTS) if flipped else (PRODUCTS, VALUES)
    sums = SPLIT * plane_filter  # places in `work`, behind a row of the filters' products
    edge = sums + planes_out * plane_out
    squares = edge + EDGE + LANES
    panels = (F + ITEM_COLUMNS - 1) // ITEM_COLUMNS
    items = (count + tiles - 1) // tiles * panels
    item = next_item(share, items)
    while item < items:
        group, panel = divmod(item, panels)
        first, start = panel * ITEM_COLUMNS, group * tiles
        filters, stop = min(ITEM_COLUMNS, F - first), min(count, start + tiles)
        for c in range(0, C, CHANNELS):
            depth = min(CHANNELS, C - c)
            # flipped: y's filters are the weight's channels
            place = (first, filters, c, depth) if flipped else (c, depth, first, filters)
            block = block_of_filters(weight, *place, flipped, work, squares)
            for product in range(PRODUCTS):
                i, j = divmod(product, SPLIT)
                value = i % SIDE * SIDE + j % SIDE
                if j == 0:
                    transform_filters(
                        i, weight, block, depth, filters, work, 0, plane_filter, 0, depth, filters
                    )
                begin, end = tiles_with(i % SIDE, j % SIDE, bounds, 1)
                begin, end = max(begin - first_tile, start), min(end - first_tile, stop)
                if begin >= end:  # no tile of this item has this value
                    continue
                begin, rows = round_rows(begin, end)
                # of a value's products, which begin and end alike, the first overwrites its sums
                source_plane, sum_plane, added = product, value, c + i // SIDE + j // SIDE
                if flipped:
                    source_plane, sum_plane, added = value, product, c
                multiply(
                    windows,
                    (c // CHANNELS * planes_in + source_plane) * plane_in + begin * pitch_in,
                    pitch_in, 1, work, j * plane_filter, depth, 0,
                    work, sums + sum_plane * plane_out + (begin - start) * SUMS_PITCH, SUMS_PITCH,
                    rows, filters, depth, added, plane_in, 0,
                )  # fmt: skip
        pixels = 4 * TILE * TILE if flipped else TILE * TILE
        vstore(work, edge + pixels * filters, vset1(np.float32(0)))  # see finish_tile
        for tile in range(start, stop):
            at, where = sums + (tile - start) * SUMS_PITCH, place_of(places, first_tile + tile)
            if flipped:
                finish_grad_tile(
                    work, at, plane_out, edge, where, y_flat, (P, Q, F), first, filters, epilogue,
                    large,
                )  # fmt: skip
            else:
                finish_tile(
                    work, at, plane_out, edge, where, y_flat, (P, Q, F), first, filters, epilogue,
                    large,
                )  # fmt: skip
        item = next_item(share, items)
    finish_streams()


def forward(
    x: Array, weight: Array, y: Array, epilogue: Epilogue, stride: int, padding: int
) -> None:
    """y (N, P, Q, F) from x (N, H, W, C), weight (3, 3, C, F); C and F multiples of LANES."""
    _convolve(x, weight, y, epilogue, False)


def input_grad(dout: Array, weight: Array, dx: Array, stride: int, padding: int) -> None:
    """dx (N, H, W, C) from dout (N, P, Q, F), weight (3, 3, C, F); C and F multiples of LANES."""
    _convolve(dout, weight, dx, Epilogue(), True)


def _convolve(x, weight, y, epilogue, flipped):
    """forward, with its names; flipped: the input gradient, weight (3, 3, F, C)."""
    C = x.shape[3]
    size, places, bounds, per_round, tiles, planes = rounds_for(C, y.shape, flipped)
    windows = windows_buffer(C, flipped, min(per_round, len(places)))
    for first in range(0, len(places), per_round):
        count = min(per_round, len(places) - first)
        plane_in, pitch = transform_round(x, flipped, places, first, count, windows)
        threads.run_with_scratch(
            size, convolve_windows, (windows, plane_in, pitch, C), weight, flipped, y,
            epilogue.arguments(y), places, bounds, (first, count, tiles), (*planes, large(y)),
        )  # fmt: skip


@functools.lru_cache(maxsize=256)
def rounds_for(
    C: int, y_shape: tuple[int, ...], flipped: bool
) -> tuple[int, Array, Array, int, int, tuple[int, int]]:
    """The scratch memory that `convolve_windows` needs, all tiles and where each kind begins, tiles
    of a round and of an item, floats per plane of filters and of sums.
    """
    N, P, Q, F = y_shape
    rows, columns = (-(-P // 2), -(-Q // 2)) if flipped else (P, Q)
    places, bounds = sorted_tiles(N, rows, columns)
    total = len(places)
    most, planes_in, planes_out = ITEM_TILES, PRODUCTS, VALUES
    if flipped:
        most, planes_in, planes_out = ITEM_GRAD_TILES, VALUES, PRODUCTS
    tiles = round_up(-(-total // -(-total // most)), REST_ROWS)
    least = -(-LEAST_ITEMS // -(-F // ITEM_COLUMNS))
    per_round = max(least, ROUND_FLOATS // (planes_in * C * tiles)) * tiles
    plane_filter, plane_out = odd_lines(CHANNELS * ITEM_COLUMNS), odd_lines(tiles * SUMS_PITCH)
    edges = EDGE + LANES + 9 * CHANNELS * ITEM_COLUMNS
    size = SPLIT * plane_filter + planes_out * plane_out + edges
    return size, places, bounds, per_round, tiles, (plane_filter, plane_out)


@functools.lru_cache(maxsize=256)
def sorted_tiles(N: int, P: int, Q: int) -> tuple[Array, Array]:
    """Places of all tiles, sorted by kind, and where each kind begins."""
    places, total, unit, bounds = tiling(N, P, Q, whole=True)
    return places, bounds * (total // unit)


def windows_buffer(C: int, flipped: bool, count: int) -> Array:
    """Scratch memory for the transformed windows of up to `count` tiles: asked for once, as it is
    not handed out again while a round still refers to it.
    """
    planes = VALUES if flipped else PRODUCTS
    return workspace.scratch("windows", -(-C // CHANNELS) * planes * _layout(C, count)[0])


def transform_round(
    x: Array, flipped: bool, places: Array, first: int, count: int, windows: Array
) -> tuple[int, int]:
    """Fill windows as `transform_split_windows` leaves them for `count` tiles; floats from one of
    their planes to the next, and from one tile.
    """
    C, planes = x.shape[3], VALUES if flipped else PRODUCTS
    plane, pitch = _layout(C, count)
    threads.run_with_scratch(
        planes * C, transform_split_windows, x, flipped, places, first, count, windows, plane, pitch
    )
    return plane, pitch


def _layout(C: int, count: int) -> tuple[int, int]:
    """Floats from one plane of `count` transformed windows to the next, and from one tile."""
    pitch = row_pitch(min(C, CHANNELS))
    return odd_lines(round_up(count, REST_ROWS) * pitch), pitch


# --------------------------------------------------------------------------------- weight gradient

OUTER, INNER = G_SPLIT[:SIDE].T, G_SPLIT[SIDE:].T  # of taps 0 and 2, of tap 1
transform_output_tiles = make_transform_output_tiles(  # 4x4 pixels of dout -> 5x5
    make_transform_output_tile(make_two_sided_transform(*kinds(A_TRANSPOSED.T, A_SHORT.T)), SIDE)
)
transform_weight_grad = make_two_sided_transform(  # -> the gradients of a group's taps
    (OUTER, OUTER), (OUTER, INNER), (INNER, OUTER), (INNER, INNER)
)


@kernel
def transform_all_split_output_tiles(
    share, work, dout, places, first_tile, count, out, plane, rows
):
    """out[value] = the 5x5 values of `count` tiles of dout, as packed panels with `rows` rows. An
    item is TILES_PER_ITEM tiles.
    """
    transform_output_tiles(share, work, dout, places, first_tile, count, out, plane, rows)


@kernel
def multiply_groups(share, work, inputs, output_grads, bounds, first_tile, count, out, part):
    """out[part] (9, C, F) = the gradient from `count` tiles. An item is a group of taps and a block
    of CHANNELS x CHANNELS. inputs, output_grads: see `multiply_blocks`.
    """
    windows, plane_in, pitch, C = inputs
    grads, plane_grad, rows, F = output_grads
    blocks_c, blocks_f = (C + CHANNELS - 1) // CHANNELS, (F + CHANNELS - 1) // CHANNELS
    items = 4 * blocks_c * blocks_f
    item = next_item(share, items)
    while item < items:
        group, block = divmod(item, blocks_c * blocks_f)
        block_c, block_f = divmod(block, blocks_f)
        c, f = block_c * CHANNELS, block_f * CHANNELS
        size_c, size_f = min(CHANNELS, C - c), min(CHANNELS, F - f)
        inner_row, inner_column = group // 2, group % 2
        for i in range(SIDE - inner_row):
            for j in range(SIDE - inner_column):
                sums = (i * SIDE + j) * BLOCK_PLANE
                product = (inner_row * SIDE + i) * SPLIT + inner_column * SIDE + j
                begin, end = tiles_with(i, j, bounds, 1)
                begin, end = max(begin - first_tile, 0), min(end - first_tile, count)
                if begin >= end:  # no tile of this round has this value
                    clear_block(work, sums, size_c, size_f)
                for tile in range(begin, end, TILES_AT_A_TIME):
                    multiply(
                        windows, (block_c * PRODUCTS + product) * plane_in + tile * pitch, 1, pitch,
                        grads, (i * SIDE + j) * plane_grad + f * rows, rows, tile, work, sums,
                        BLOCK_PITCH, size_c, size_f, min(TILES_AT_A_TIME, end - tile), tile - begin,
                        plane_in, plane_grad,
                    )  # fmt: skip
        to = (part * 9 * C + c) * F + f
        for a in range(size_c):
            for b in range(0, size_f, LANES):
                transform_weight_grad(
                    group, work, a * BLOCK_PITCH + b, SIDE * BLOCK_PLANE, BLOCK_PLANE,
                    out, to + a * F + b, 3 * C * F, C * F,
                )  # fmt: skip
        item = next_item(share, items)


def weight_grad(dout: Array, x: Array, dweight: Array, stride: int, padding: int) -> None:
    """dweight (3, 3, C, F) from dout (N, P, Q, F), x (N, H, W, C); C and F multiples of LANES."""
    C, F = dweight.shape[2:]
    places, bounds = sorted_tiles(*dout.shape[:3])
    total = len(places)
    rounds = -(-total // max(8, WEIGHT_GRAD_ROUND_FLOATS // (PRODUCTS * C + VALUES * F)))
    tiles = -(-total // rounds)  # each round has so many, or one less
    plane_grad = odd_lines(tiles * F)
    grads = workspace.scratch("output grads", VALUES * plane_grad)
    windows = windows_buffer(C, False, tiles)
    sums = buffer_for(rounds, dweight)
    for i in range(rounds):
        first = total * i // rounds
        count = total * (i + 1) // rounds - first
        plane_in, pitch = transform_round(x, False, places, first, count, windows)
        threads.run_with_scratch(
            TILE * TILE * F, transform_all_split_output_tiles, dout, places, first, count, grads,
            plane_grad, tiles,
        )  # fmt: skip
        threads.run_with_scratch(
            VALUES * BLOCK_PLANE, multiply_groups, (windows, plane_in, pitch, C),
            (grads, plane_grad, tiles, F), bounds, first, count, sums, i,
        )  # fmt: skip
    add_up(sums, rounds, dweight)
