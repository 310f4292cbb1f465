"""Weight gradient of a 3x3 convolution with stride 1 by Winograd's transforms.

Defined by `Backend.conv2d_weight_grad` of tinyft/backends/reference.py.

    dweight = G' [ sum over tiles of (A dout A') * (B' x B) ] G

The sum over tiles is the product: 36 times (C x tiles) @ (tiles x F). Where the 36 sums lie while
they grow decides the schedule:

- up to 64 x 64 weights they fit L2 (590 KB): an item is a *part* of the tiles, which are
  transformed and multiplied 16 or 32 at a time, without a detour through memory;
- above, all tiles are transformed once for everyone, in rounds of what the shared cache holds, and
  an item is a block of 64 x 64 channel pairs, for all tiles of the round.

Either way an item transforms its sums back itself, 36 numbers to 9, and the gradients of the parts
are added in order. The parts depend on the shape only, so the bits do not depend on the number of
threads.

Versions, CPU time on one core of an AMD Zen 5 (AVX-512), in ms (direct: implicit GEMM):

                                      direct    second schedule    first
    batch 16, 56x56, 64 -> 64           15.9                7.2      5.3
    batch 16, 28x28, 128 -> 128         15.9                5.1
    batch 16, 14x14, 256 -> 256         15.8                4.9
    batch 16, 7x7, 512 -> 512           16.4                4.8
    batch 128, 32x32, 16 -> 16           5.7                3.2      1.8
"""

from __future__ import annotations

import functools

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.cache import helper, kernel
from tinyft.backends.cpu.codegen.simd import LANES
from tinyft.backends.cpu.codegen.vectors import offset_between, vset1, vstore
from tinyft.backends.cpu.conv.gemm import multiply, panel_offset, sum_parts
from tinyft.backends.cpu.conv.winograd.transforms import (
    CHANNELS,
    TILE,
    TILES_PER_ITEM,
    VALUES,
    WINDOW,
    Tiling,
    copy_square,
    odd_lines,
    place_of,
    prefetch_tile,
    prefetch_window,
    row_pitch,
    size_of,
    tile_count,
    tiles_with,
    tiling,
    transform_all_windows,
    transform_output_grad,
    transform_weight_grad,
    transform_window,
)
from tinyft.backends.cpu.runtime import threads, workspace
from tinyft.backends.cpu.runtime.work_stealing import next_item, next_start

FEW_WEIGHTS = 64 * 64  # up to here the sums of all 36 values (590 KB) stay in L2
TILES_IN_L2 = 16  # transformed at a time beside them
TILES_AT_A_TIME = 128  # multiplied at a time: 16 KiB of a panel, which all rows find in L1
MOST_PARTS = 8  # at most so many gradients are added at the end
ROUND_FLOATS = 5_000_000  # 20 MB of transformed numbers per round
BLOCK_PITCH = CHANNELS + 16
BLOCK_PLANE = CHANNELS * BLOCK_PITCH + 16  # an odd number of cache lines


def make_transform_output_tile(transform, side: int):
    """Make the helper that turns 4x4 pixels of dout into side * side values."""

    @helper
    def transform_output_tile(dout, shape, place, edge, edge_at, out, at, plane, row, rows):
        """out[at + value * plane + ...] = the values of a tile of dout, as row number `row` of
        packed panels with `rows` rows. dout is flat, shape its P, Q, F.
        """
        P, Q, F = shape
        picture, top, left, kind = place
        height, width = size_of(kind)
        source, source_row = ((picture * P + top) * Q + left) * F, Q * F
        if top + height > P or left + width > Q:
            copy_square(dout, shape, picture, top, left, TILE, edge, edge_at)
            source, source_row = offset_between(dout, 0, edge, edge_at), TILE * F
        for f in range(0, F, LANES):
            to = at + panel_offset(row, f, rows, F)
            transform(kind, dout, source + f, source_row, F, out, to, side * plane, plane)

    return transform_output_tile


def make_transform_output_tiles(transform_output_tile):
    """Make the helper that does so with many tiles, TILES_PER_ITEM at a time."""

    @helper
    def transform_output_tiles(share, work, dout, places, first_tile, count, out, plane, rows):
        _, P, Q, F = dout.shape
        flat = dout.reshape(dout.size)
        item = next_start(share, TILES_PER_ITEM, count)
        while item < count:
            for tile in range(item, min(count, item + TILES_PER_ITEM)):
                place = place_of(places, first_tile + tile)
                transform_output_tile(flat, (P, Q, F), place, work, 0, out, 0, plane, tile, rows)
            item = next_start(share, TILES_PER_ITEM, count)

    return transform_output_tiles


transform_output_tile = make_transform_output_tile(transform_output_grad, WINDOW)
transform_output_tiles = make_transform_output_tiles(transform_output_tile)


@kernel
def gradient_of_parts(share, work, x, dout, padding, places, parts, tiles, planes, out):
    """out[part] (9, C, F) = the gradient from a part of the tiles, `tiles` at a time. An item is a
    part. planes: floats per plane of windows, of dout's values and of sums.
    """
    plane_in, plane_grad, plane_sum = planes
    _, H, W, C = x.shape
    _, P, Q, F = dout.shape
    x_flat, dout_flat = x.reshape(x.size), dout.reshape(dout.size)
    total = places.shape[0]
    pitch = C + 16
    grads = VALUES * plane_in  # places in `work`
    sums = grads + VALUES * plane_grad
    edge = sums + VALUES * plane_sum
    part = next_item(share, parts)
    while part < parts:
        start, stop = part * total // parts, (part + 1) * total // parts
        for first in range(start, stop, tiles):
            count = min(tiles, stop - first)
            for i in range(count):
                place = place_of(places, first + i)
                transform_window(
                    x_flat, (H, W, C), padding, place, work, edge, work, i * pitch, plane_in,
                    CHANNELS,
                )  # fmt: skip
                transform_output_tile(
                    dout_flat, (P, Q, F), place, work, edge, work, grads, plane_grad, i, tiles
                )
            for value in range(VALUES):
                for i in range(value * tiles // VALUES, (value + 1) * tiles // VALUES):
                    place = place_of(places, first + tiles + i)
                    prefetch_tile(dout_flat, (P, Q, F), place)
                    prefetch_window(x_flat, (H, W, C), padding, place)
                multiply(
                    work, value * plane_in, 1, pitch, work, grads + value * plane_grad, tiles, 0,
                    work, sums + value * plane_sum, F, C, F, count, first - start, 0, 0,
                )  # fmt: skip
        for c in range(C):
            for f in range(0, F, LANES):
                transform_weight_grad(
                    0, work, sums + c * F + f, WINDOW * plane_sum, plane_sum,
                    out, part * 9 * C * F + c * F + f, 3 * C * F, C * F,
                )  # fmt: skip
        part = next_item(share, parts)


@helper
def clear_block(work, at, rows, columns):
    """A block of sums = 0."""
    zero = vset1(np.float32(0))
    for i in range(rows):
        for j in range(0, columns, LANES):
            vstore(work, at + i * BLOCK_PITCH + j, zero)


@kernel
def transform_all_output_tiles(share, work, dout, places, first_tile, count, out, plane, rows):
    """out[value] = the values of `count` tiles of dout, as packed panels with `rows` rows. An item
    is TILES_PER_ITEM tiles.
    """
    transform_output_tiles(share, work, dout, places, first_tile, count, out, plane, rows)


@kernel
def multiply_blocks(share, work, inputs, output_grads, count, unit, bounds, parts, out, first_part):
    """out[first_part + part] (9, C, F) = the gradient from a part of `count` tiles. An item is a
    part and a block of CHANNELS x CHANNELS.

    inputs: windows, floats per plane and row of them, C. output_grads: dout's values as packed
    panels, floats per plane, rows of a panel, F.
    """
    windows, plane_in, pitch, C = inputs
    grads, plane_grad, rows, F = output_grads
    blocks_c, blocks_f = (C + CHANNELS - 1) // CHANNELS, (F + CHANNELS - 1) // CHANNELS
    items = parts * blocks_c * blocks_f
    item = next_item(share, items)
    while item < items:
        part, block = divmod(item, blocks_c * blocks_f)
        block_c, block_f = divmod(block, blocks_f)
        c, f = block_c * CHANNELS, block_f * CHANNELS
        size_c, size_f = min(CHANNELS, C - c), min(CHANNELS, F - f)
        start, stop = part * count // parts, (part + 1) * count // parts
        for value in range(VALUES):
            begin, end = tiles_with(value // WINDOW, value % WINDOW, bounds, count // unit)
            begin, end = max(begin, start), min(end, stop)
            if begin >= end:  # no tile of this part has this value
                clear_block(work, value * BLOCK_PLANE, size_c, size_f)
            for tile in range(begin, end, TILES_AT_A_TIME):
                multiply(
                    windows, (block_c * VALUES + value) * plane_in + tile * pitch, 1, pitch,
                    grads, value * plane_grad + f * rows, rows, tile, work, value * BLOCK_PLANE,
                    BLOCK_PITCH, size_c, size_f, min(TILES_AT_A_TIME, end - tile), tile - begin,
                    plane_in, plane_grad,
                )  # fmt: skip
        to = ((first_part + part) * 9 * C + c) * F + f
        for i in range(size_c):
            for j in range(0, size_f, LANES):
                transform_weight_grad(
                    0, work, i * BLOCK_PITCH + j, WINDOW * BLOCK_PLANE, BLOCK_PLANE,
                    out, to + i * F + j, 3 * C * F, C * F,
                )  # fmt: skip
        item = next_item(share, items)


def weight_grad(dout: Array, x: Array, dweight: Array, stride: int, padding: int) -> None:
    """dweight (3, 3, C, F) from dout (N, P, Q, F), x (N, H, W, C); C and F multiples of LANES."""
    C, F = dweight.shape[2:]
    compute = _by_parts if C * F <= FEW_WEIGHTS else _by_blocks
    compute(dout, x, padding, dweight)


def _by_parts(dout, x, padding, dweight):
    size, items = _parts(x.shape[3], dout.shape)
    parts = items[1]
    sums = buffer_for(parts, dweight)
    threads.run_with_scratch(size, gradient_of_parts, x, dout, padding, *items, sums)
    add_up(sums, parts, dweight)


@functools.lru_cache(maxsize=256)
def _parts(C: int, dout_shape: tuple[int, ...]) -> tuple[int, tuple]:
    """The scratch memory that `gradient_of_parts` needs, and its arguments `places` to `planes`."""
    N, P, Q, F = dout_shape
    places, total, _, _ = tiling(N, P, Q, whole=True, all_long=True)
    parts = max(1, min(MOST_PARTS, total // 16))
    tiles = TILES_IN_L2 if C * F > 32 * 32 else 2 * TILES_IN_L2
    plane_in, plane_grad = odd_lines(tiles * row_pitch(C)), odd_lines(tiles * F)
    plane_sum = odd_lines(C * F)
    size = VALUES * (plane_in + plane_grad + plane_sum) + VALUES * max(C, F)
    return size, (places, parts, tiles, (plane_in, plane_grad, plane_sum))


def _by_blocks(dout, x, padding, dweight):
    C, F = dweight.shape[2:]
    rounds, tiles, parts, (places, _, unit, bounds) = rounds_for(C, dout.shape)
    pitch, total = row_pitch(CHANNELS), len(places)
    plane_in, plane_grad = odd_lines(tiles * pitch), odd_lines(tiles * F)
    windows = workspace.scratch("windows", -(-C // CHANNELS) * VALUES * plane_in)
    grads = workspace.scratch("output grads", VALUES * plane_grad)
    sums = buffer_for(rounds * parts, dweight)
    for i in range(rounds):
        first = total * i // rounds
        count = total * (i + 1) // rounds - first
        threads.run_with_scratch(
            VALUES * C, transform_all_windows, x, padding, places, first, count, windows, plane_in,
            pitch,
        )  # fmt: skip
        threads.run_with_scratch(
            VALUES * F, transform_all_output_tiles, dout, places, first, count, grads, plane_grad,
            tiles,
        )  # fmt: skip
        threads.run_with_scratch(
            VALUES * BLOCK_PLANE, multiply_blocks, (windows, plane_in, pitch, C),
            (grads, plane_grad, tiles, F), count, unit, bounds, parts, sums, i * parts,
        )  # fmt: skip
    add_up(sums, rounds * parts, dweight)


@functools.lru_cache(maxsize=256)
def rounds_for(C: int, dout_shape: tuple[int, ...]) -> tuple[int, int, int, Tiling]:
    """Count rounds, tiles of each (or one less) and parts: enough items for 4 threads, but not
    fewer than 64 tiles in one. And give the tiling.
    """
    N, P, Q, F = dout_shape
    total = tile_count(dout_shape)
    rounds = -(-total // max(8, ROUND_FLOATS // (VALUES * (C + F))))
    tiles = -(-total // rounds)
    blocks = -(-C // CHANNELS) * -(-F // CHANNELS)
    parts = max(1, min(4 // blocks, tiles // 64))
    return rounds, tiles, parts, tiling(N, P, Q, whole=True, all_long=rounds > 1)


def buffer_for(parts: int, dweight: Array) -> Array:
    """Give memory for the parts' gradients: a single one is the result."""
    if parts == 1:
        return dweight.reshape(-1)
    return workspace.scratch("parts", parts * dweight.size)


def add_up(sums: Array, parts: int, dweight: Array) -> None:
    """dweight = the sum of its parts, in order."""
    if parts > 1:
        F = dweight.shape[3]
        rows = dweight.size // F
        threads.run(sum_parts, sums, parts, dweight.size, F, rows, F, dweight.reshape(-1))
