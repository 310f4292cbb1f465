"""Weight gradient of a 3x3 convolution with stride 2 and padding 1 by Winograd's transforms.

Defined by `Backend.conv2d_weight_grad` of tinyft/backends/reference.py.

x becomes 81 numbers per tile, of which 25, 20, 20 and 16 belong to four groups of taps (see
forward.py), and dout 25. A group of taps meets the same 25 numbers of dout:

    taps        (0, 0) (0, 2) (2, 0) (2, 2)    (0, 1) (2, 1)    (1, 0) (1, 2)    (1, 1)
    products    5 x 5                          5 x 4            4 x 5            4 x 4

As in the second schedule of weight_grad.py, all tiles are transformed for everyone, in
rounds of what the shared cache holds. An item is a group of taps and a block of 64 x 64 channel
pairs, whose sums (at most 410 KB) stay in L2.

Few tiles do not pay: with 2 pictures of 14x14x256 the direct kernel takes 0.6 instead of 0.8 ms.
"""

from __future__ import annotations

from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.cache import kernel
from tinyft.backends.cpu.codegen.generators import make_two_sided_transform
from tinyft.backends.cpu.codegen.simd import LANES
from tinyft.backends.cpu.conv.gemm import multiply
from tinyft.backends.cpu.conv.winograd.strided.forward import (
    A_SHORT,
    A_TRANSPOSED,
    G_SPLIT,
    PRODUCTS,
    SIDE,
    SPLIT,
    VALUES,
    room_for_windows,
    sorted_tiles,
    transform_round,
)
from tinyft.backends.cpu.conv.winograd.tiles import TILE, tiles_with
from tinyft.backends.cpu.conv.winograd.transforms import CHANNELS, kinds, odd_lines
from tinyft.backends.cpu.conv.winograd.weight_grad import (
    BLOCK_PITCH,
    BLOCK_PLANE,
    TILES_AT_A_TIME,
    add_up,
    clear_block,
    make_transform_output_tile,
    make_transform_output_tiles,
    room_for,
)
from tinyft.backends.cpu.runtime import threads
from tinyft.backends.cpu.runtime.work_stealing import next_item

ROUND_FLOATS = 3 << 20  # transformed numbers of a round (12 MiB)
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
def multiply_groups(
    share, work, windows, plane_in, pitch, C, grads, plane_grad, rows, F, bounds, first_tile,
    count, out, part,
):  # fmt: skip
    """out[part] (9, C, F) = the gradient from `count` tiles. An item is a group of taps and a block
    of CHANNELS x CHANNELS.
    """
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
    rounds = -(-total // max(8, ROUND_FLOATS // (PRODUCTS * C + VALUES * F)))
    tiles = -(-total // rounds)  # each round has so many, or one less
    plane_grad = odd_lines(tiles * F)
    grads = threads.scratch("output grads", VALUES * plane_grad)
    windows = room_for_windows(C, False, tiles)
    sums = room_for(rounds, dweight)
    for i in range(rounds):
        first = total * i // rounds
        count = total * (i + 1) // rounds - first
        plane_in, pitch = transform_round(x, False, places, first, count, windows)
        threads.run_with_scratch(
            TILE * TILE * F, transform_all_split_output_tiles, dout, places, first, count, grads,
            plane_grad, tiles,
        )  # fmt: skip
        threads.run_with_scratch(
            VALUES * BLOCK_PLANE, multiply_groups, windows, plane_in, pitch, C, grads, plane_grad,
            tiles, F, bounds, first, count, sums, i,
        )  # fmt: skip
    add_up(sums, rounds, dweight)
