"""Weight gradient of a 3x3 convolution with stride 1 by Winograd's transforms.

Defined by `Backend.conv2d_weight_grad` of tinyft/backends/reference.py.

    dweight = G' [ sum over tiles of (A dout A') * (B' x B) ] G

The sum over tiles is the product: 36 times (C x tiles) @ (tiles x F). In rounds of as many tiles as the
shared cache holds:

1. all windows of x and all tiles of dout are transformed, once, for everyone;
2. an item is a part of the tiles and a block of 64 x 64 channel pairs. Its 36 products stay in L2 and are
   transformed back at once to 9 numbers per pair;
3. where there are several parts, their sums are added in order.

The parts depend on the shape only, so the bits do not depend on the number of threads. An earlier version
had three more kernels (sums of all 36 values in L2 for few channels; one matrix product per value for
many): 7.1 to 8.6 ms against 8.0 to 8.3 for 56x56x64, AMD Zen 4, so they went.

Next: tinyft/backends/cpu/conv2d.py
"""

from __future__ import annotations

from numpy import ndarray as Array

from tinyft.backends.cpu import threads
from tinyft.backends.cpu.gemm import multiply, panel_offset, round_up, sum_parts
from tinyft.backends.cpu.simd import LANES, atomic_next, kernel
from tinyft.backends.cpu.winograd_transforms import (
    CHANNELS,
    TILE,
    VALUES,
    WINDOW,
    copy_square,
    odd_lines,
    row_pitch,
    tile_count,
    tile_place,
    transform_all_windows,
    transform_output_grad,
    transform_weight_grad,
)

ROUND_FLOATS = 5_000_000  # 20 MB of transformed numbers per round
BLOCK_PITCH = CHANNELS + 16
BLOCK_PLANE = CHANNELS * BLOCK_PITCH + 16  # an odd number of cache lines


@kernel
def transform_all_output_grads(counter, work, dout, first_tile, count, out, plane, rows):
    """out[value] = the values of `count` tiles of dout, as packed panels with `rows` rows. An item is a
    tile.
    """
    _, P, Q, F = dout.shape
    flat = dout.reshape(dout.size)
    tile = atomic_next(counter, 0)
    while tile < count:
        picture, row, column = tile_place(first_tile + tile, P, Q)
        source, at, to_row, to_column = flat, ((picture * P + row) * Q + column) * F, Q * F, F
        if row + TILE > P or column + TILE > Q:
            copy_square(dout, picture, row, column, TILE, work, 0)
            source, at, to_row, to_column = work, 0, TILE * F, F
        for f in range(0, F, LANES):
            to = panel_offset(tile, f, rows, F)
            transform_output_grad(source, at + f, to_row, to_column, out, to, WINDOW * plane, plane)
        tile = atomic_next(counter, 0)


@kernel
def multiply_blocks(
    counter,
    work,
    windows,
    plane_in,
    pitch,
    C,
    grads,
    plane_grad,
    rows,
    F,
    count,
    parts,
    out,
    first_part,
):
    """out[first_part + part] (9, C, F) = the gradient from a part of `count` tiles. An item is a part
    and a block of CHANNELS x CHANNELS.
    """
    blocks_c, blocks_f = (C + CHANNELS - 1) // CHANNELS, (F + CHANNELS - 1) // CHANNELS
    item = atomic_next(counter, 0)
    while item < parts * blocks_c * blocks_f:
        part, block = divmod(item, blocks_c * blocks_f)
        block_c, block_f = divmod(block, blocks_f)
        c, f = block_c * CHANNELS, block_f * CHANNELS
        size_c, size_f = min(CHANNELS, C - c), min(CHANNELS, F - f)
        start, stop = part * count // parts, (part + 1) * count // parts
        for value in range(VALUES):
            multiply(
                windows, (block_c * VALUES + value) * plane_in + start * pitch, 1, pitch,
                grads, value * plane_grad + f * rows, rows, start,
                work, value * BLOCK_PLANE, BLOCK_PITCH, size_c, size_f, stop - start, 0,
            )  # fmt: skip
        to = ((first_part + part) * 9 * C + c) * F + f
        for i in range(size_c):
            for j in range(0, size_f, LANES):
                transform_weight_grad(
                    work, i * BLOCK_PITCH + j, WINDOW * BLOCK_PLANE, BLOCK_PLANE,
                    out, to + i * F + j, 3 * C * F, C * F,
                )  # fmt: skip
        item = atomic_next(counter, 0)


def weight_grad(dout: Array, x: Array, padding: int, dweight: Array) -> None:
    """dweight (3, 3, C, F) from dout (N, P, Q, F), x (N, H, W, C); C and F multiples of LANES."""
    C, F = dweight.shape[2:]
    _, P, Q, _ = dout.shape
    total = tile_count(dout)
    tiles = max(8, min(total, ROUND_FLOATS // (VALUES * (C + F))))
    rounds = -(-total // tiles)
    tiles = -(-total // rounds)  # the rounds below have so many, or one less
    parts = parts_per_round(tiles, C, F)
    pitch = row_pitch(min(C, CHANNELS))
    plane_in, plane_grad = odd_lines(tiles * pitch), odd_lines(tiles * F)
    windows = threads.scratch("windows", -(-C // CHANNELS) * VALUES * plane_in)
    grads = threads.scratch("output grads", VALUES * plane_grad)
    out = dweight.reshape(-1)
    sums = out if rounds * parts == 1 else threads.scratch("parts", rounds * parts * out.size)
    for i in range(rounds):
        first = total * i // rounds
        count = total * (i + 1) // rounds - first
        threads.run_with_scratch(
            VALUES * C,
            transform_all_windows,
            x,
            padding,
            P,
            Q,
            first,
            count,
            windows,
            plane_in,
            pitch,
        )
        threads.run_with_scratch(
            TILE * TILE * F,
            transform_all_output_grads,
            dout,
            first,
            count,
            grads,
            plane_grad,
            tiles,
        )
        threads.run_with_scratch(
            VALUES * BLOCK_PLANE, multiply_blocks, windows, plane_in, pitch, C, grads, plane_grad,
            tiles, F, count, parts, sums, i * parts,
        )  # fmt: skip
    if rounds * parts > 1:
        threads.run(sum_parts, sums, rounds * parts, out.size, out)


def parts_per_round(tiles: int, C: int, F: int) -> int:
    """Enough items for 8 threads, but not fewer than 64 tiles in one."""
    blocks = -(-C // CHANNELS) * -(-F // CHANNELS)
    return max(1, min(8 // blocks, tiles // 64))
