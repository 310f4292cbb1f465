"""The stem, 7x7 with stride 2 on RGB pictures, by Winograd in one direction: forward and weight
gradient.

Defined by `Backend.conv2d` and `conv2d_weight_grad` of tinyft/backends/reference.py.

**Why one direction.** 3 channels are too few to pay for transforming every pixel, and each result
back, in two. Along a line everything stays as in few_channels.py: a row of a window is one run of
numbers in memory, and is multiplied where it lies. Down the picture Winograd saves products. Count
the lines from the first that a window sees: of a filter's 7 rows 4 meet even lines and 3 odd ones,
and either is a convolution with stride 1 (strided.py):

    4 rows of results by 4 taps    depend on 7 even lines    7 products of lines, not 16
    4 rows of results by 3 taps    depend on 6 odd lines     6, not 12

Both use the same points, so 13 products are added up to 7 values and transformed back at once. Any
stride t will do with 3 t < R <= 4 t rows: lines then fall into t *phases* of 4 taps or 3.

**Schedule.** An item is 4 rows of results. Its 14 lines are transformed into the core's cache and
multiplied there. A register holds neighbouring numbers of a line, whatever pixels and channels they
are; zeros stand left and right of the line. For the weight gradient 4 rows of dout become 7, and
are multiplied by the lines; the sums over many items are transformed once.

**The points** are +-2/7, +-5/6, +-7/4 and infinity. Roundings reach the result amplified by 3.02
(see transforms.py), as by the best six points; +-1/2, +-1, +-2 have 3.85. The forward
pass is wrong by three quarters of PyTorch's error on photos, by 1.5 times as much on normal
numbers; the weight gradient by a tenth.

Versions for (16, 224, 224, 3) -> 64, two threads of an AMD Zen 5 (AVX-512), in ms:

                                       forward    weight gradient
    few_channels.py                        9.1               10.6
    columns transformed, not rows          6.4                7.2
    rows                                   5.2                6.2
    the next rows of dout fetched                             5.4

Tiles in two directions would halve the products once more, but need three times as many numbers on
the way to a result. Larger tiles amplify roundings: 5 rows by 4.4, 7 by 10.

Numbers that overflow: infinity spreads over the 4 rows of a tile, in the columns that see it, and
over the gradients of a filter's rows of one phase.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.cache import helper, kernel
from tinyft.backends.cpu.codegen.generators import make_two_sided_transform
from tinyft.backends.cpu.codegen.simd import LANES, REST_ROWS
from tinyft.backends.cpu.codegen.vectors import (
    finish_streams,
    offset_between,
    vload,
    vmax,
    vput,
    vset1,
    vstore,
)
from tinyft.backends.cpu.conv import few_channels
from tinyft.backends.cpu.conv.gemm import multiply, panel_offset, sum_parts
from tinyft.backends.cpu.conv.layer import Epilogue, Layer, round_up
from tinyft.backends.cpu.conv.winograd.transforms import TILE, odd_lines, winograd_matrices
from tinyft.backends.cpu.memory_bound.arrays import large
from tinyft.backends.cpu.runtime import packed_weights, threads, workspace
from tinyft.backends.cpu.runtime.work_stealing import next_item

TAPS = 4  # rows of a filter that meet lines of one phase, at most; TAPS - 1 at least
VALUES = TILE + TAPS - 1
PARTS = 16  # of the weight gradient's sum
POINTS = 2 / 7, -2 / 7, 5 / 6, -5 / 6, 7 / 4, -7 / 4
A_TRANSPOSED, G, B_TRANSPOSED = winograd_matrices(POINTS, TAPS)
ONE = np.ones((1, 1))  # the other direction stays as it is
transform_lines = make_two_sided_transform((B_TRANSPOSED, ONE))  # 7 lines -> 7
transform_taps = make_two_sided_transform((G, ONE), (G[:, :-1], ONE))  # 4 taps, or 3 -> 7
transform_back = make_two_sided_transform((A_TRANSPOSED, ONE))  # 7 -> 4 rows of results
transform_rows = make_two_sided_transform((A_TRANSPOSED.T, ONE))  # 4 rows of dout -> 7
transform_taps_back = make_two_sided_transform((G.T, ONE), (G[:, :-1].T, ONE))  # 7 -> 4 taps, or 3


@helper
def clear_floats(a, at, count):
    """a[at : at + count] = 0, and up to a register more."""
    for i in range(at, at + count, LANES):
        vstore(a, i, vset1(np.float32(0)))


@helper
def copy_lines(x, picture, top, count, to, at):
    """to[at :] = lines top : top + count of a picture, zeros above and below it."""
    _, H, W, C = x.shape
    size = W * C
    clear_floats(to, at, count * size)
    for line in range(max(top, 0), min(top + count, H)):
        source, target = (picture * H + line) * size, at + (line - top) * size
        for first in range(0, size, LANES):
            place = min(first, size - LANES)
            vstore(to, target + place, vload(x, source + place))


@helper
def transform_tile(x, picture, top, stride, padding, work, pitch, edge):
    """work[(value * stride + phase) * pitch :] = the values of the lines from `top` on, behind
    `padding` pixels that are not written. work[edge :]: memory for these lines.
    """
    _, H, W, C = x.shape
    size, count = W * C, VALUES * stride
    source = (picture * H + top) * size
    if top < 0 or top + count > H:
        copy_lines(x, picture, top, count, work, edge)
        source = offset_between(x, 0, work, edge)
    for phase in range(stride):
        for first in range(0, size, LANES):
            place = min(first, size - LANES)
            transform_lines(
                0, x, source + phase * size + place, stride * size, 0,
                work, phase * pitch + padding * C + place, stride * pitch, 0,
            )  # fmt: skip


@helper
def taps_missing(R, stride, phase):
    """1 if only TAPS - 1 meet this phase, else 0. The value at infinity, which is the last tap's
    coefficient, then is 0 and has no product.
    """
    return 1 if phase + (TAPS - 1) * stride >= R else 0


@kernel
def transform_stem_filters(share, weight, stride, out, plane):
    """out[(value * stride + phase) * plane :] = the filters' rows as a packed panel of S * C x F.
    An item is a phase.
    """
    R, S, C, F = weight.shape
    phase = next_item(share, stride)
    while phase < stride:
        for k in range(S * C):
            for f in range(0, F, LANES):
                transform_taps(
                    taps_missing(R, stride, phase),
                    weight, (phase * S * C + k) * F + f, stride * S * C * F, 0,
                    out, phase * plane + panel_offset(k, f, S * C, F), stride * plane, 0,
                )  # fmt: skip
        phase = next_item(share, stride)


@kernel
def convolve_lines(share, work, x, window, transformed, y, epilogue, layout):
    """y = max(conv(x) + bias + residual, floor) by transformed filters. An item is TILE rows of y.

    window: S, stride, padding, products. transformed: filters, floats per plane. layout: columns of
    y, rounded up to what the micro-kernel computes; floats per transformed line and plane of sums;
    whether y is written past the caches.
    """
    S, stride, padding, products = window
    filters, plane_filter = transformed
    bias, residual, has_residual, floor = epilogue
    columns, pitch, plane, large = layout
    C = x.shape[3]
    N, P, Q, F = y.shape
    sums = VALUES * stride * pitch  # places in `work`
    results = sums + VALUES * plane
    clear_floats(work, 0, sums)  # the borders
    lowest = vset1(floor)
    tiles = (P + TILE - 1) // TILE
    item = next_item(share, N * tiles)
    while item < N * tiles:
        picture, row = item // tiles, item % tiles * TILE
        transform_tile(x, picture, row * stride - padding, stride, padding, work, pitch, results)
        for number in range(products):
            value, phase = divmod(number, stride)
            multiply(
                work, number * pitch, stride * C, 1, filters, number * plane_filter, S * C, 0,
                work, sums + value * plane, F, columns, F, S * C, phase, 0, 0,
            )  # fmt: skip
        rows = min(TILE, P - row)
        for q in range(Q):
            for f in range(0, F, LANES):
                transform_back(0, work, sums + q * F + f, plane, 0, work, results + f, F, 0)
            for i in range(rows):
                to = ((picture * P + row + i) * Q + q) * F
                for f in range(0, F, LANES):
                    result = vload(work, results + i * F + f) + vload(bias, f)
                    if has_residual:
                        result = result + vload(residual, to + f)
                    vput(y, to + f, vmax(result, lowest), large)
        item = next_item(share, N * tiles)
    finish_streams()


@kernel
def multiply_lines_transposed(share, work, x, R, window, dout, parts, out, layout):
    """out[part] (R, S * C, F) = the weight gradient over a part of all tiles. An item is a part.

    window: S, stride, padding, products. layout: floats per transformed line and plane of dout's;
    S * C, rounded up to what the micro-kernel computes.
    """
    S, stride, padding, products = window
    pitch, plane, depth = layout
    C = x.shape[3]
    N, P, Q, F = dout.shape
    grads = VALUES * stride * pitch  # places in `work`
    totals = grads + VALUES * plane
    edge = totals + VALUES * stride * depth * F
    clear_floats(work, 0, grads)  # the borders
    tiles = (P + TILE - 1) // TILE
    part = next_item(share, parts)
    while part < parts:
        start, stop = part * N * tiles // parts, (part + 1) * N * tiles // parts
        for tile in range(start, stop):
            picture, row = tile // tiles, tile % tiles * TILE
            transform_tile(x, picture, row * stride - padding, stride, padding, work, pitch, edge)
            source = (picture * P + row) * Q * F
            if row + TILE > P:
                copy_lines(dout, picture, row, TILE, work, edge)
                source = offset_between(dout, 0, work, edge)
            for q in range(Q):
                for f in range(0, F, LANES):
                    transform_rows(
                        0, dout, source + q * F + f, Q * F, 0,
                        work, grads + panel_offset(q, f, Q, F), plane, 0,
                    )  # fmt: skip
            for number in range(products):
                planes, ahead = grads + number // stride * plane, 0
                if number < TILE:  # fetch a row of the next tile's dout
                    next_row = (picture * P + row + TILE + number) * Q * F
                    ahead = offset_between(work, planes, dout, next_row)
                multiply(
                    work, number * pitch, 1, stride * C, work, planes, Q, 0,
                    work, totals + number * depth * F, F, depth, F, Q, tile - start, 0, ahead,
                )  # fmt: skip
        for phase in range(stride):
            for at in range(0, S * C * F, LANES):
                transform_taps_back(
                    taps_missing(R, stride, phase),
                    work, totals + phase * depth * F + at, stride * depth * F, 0,
                    out, (part * R + phase) * S * C * F + at, stride * S * C * F, 0,
                )  # fmt: skip
        part = next_item(share, parts)


def count_products(R: int, stride: int) -> int:
    """Count products of lines for a tile: a phase with a tap less has none for infinity."""
    return (VALUES - 1) * stride + (R - 1) % stride + 1


def suits(what: str, layer: Layer) -> bool:
    """Tell whether channels are few, the tiles are made for this kernel, a line fills a register
    (its last one overlaps the one before), and tiles, which reach beyond a low map, save products.
    """
    (_, C, R, _), stride = layer.weight, layer.stride
    W, P = layer.x[2], layer.out[1]
    if not few_channels.suits(what, layer):
        return False
    if -(-R // stride) != TAPS or W * C < LANES:
        return False
    return -(-P // TILE) * count_products(R, stride) < P * R


def forward(
    x: Array, weight: Array, y: Array, epilogue: Epilogue, stride: int, padding: int
) -> None:
    """y (N, P, Q, F) from x (N, H, W, C), weight (R, S, C, F); F a multiple of LANES."""
    R, S, C, F = weight.shape
    plane_filter = odd_lines(S * C * F)

    def make() -> Array:
        filters = packed_weights.buffer(weight, "transformed rows", VALUES * stride * plane_filter)
        threads.run(transform_stem_filters, weight, stride, filters, plane_filter)
        return filters

    filters = packed_weights.keep(weight, f"transformed rows, stride {stride}", make)
    columns = round_up(y.shape[2], REST_ROWS)
    pitch, lines, outer_lines = _sizes(x, stride, padding)
    plane = odd_lines(columns * F)
    window = S, stride, padding, count_products(R, stride)
    threads.run_with_scratch(
        lines + VALUES * plane + max(outer_lines, TILE * F), convolve_lines, x, window,
        (filters, plane_filter), y, epilogue.arguments(y), (columns, pitch, plane, large(y)),
    )  # fmt: skip


def weight_grad(dout: Array, x: Array, dweight: Array, stride: int, padding: int) -> None:
    """dweight (R, S, C, F) from dout (N, P, Q, F), x (N, H, W, C); F a multiple of LANES."""
    R, S, C, F = dweight.shape
    N, P, Q, _ = dout.shape
    pitch, lines, outer_lines = _sizes(x, stride, padding)
    depth, plane = round_up(S * C, REST_ROWS), odd_lines(Q * F)
    size = lines + VALUES * (plane + stride * depth * F) + max(outer_lines, TILE * Q * F)
    parts = min(PARTS, N * -(-P // TILE))
    sums = workspace.scratch("parts", parts * dweight.size)
    window = S, stride, padding, count_products(R, stride)
    threads.run_with_scratch(
        size, multiply_lines_transposed, x, R, window, dout, parts, sums, (pitch, plane, depth)
    )
    run = S * C * F
    threads.run(sum_parts, sums, parts, dweight.size, run, R, run, dweight.reshape(-1))


def _sizes(x: Array, stride: int, padding: int) -> tuple[int, int, int]:
    """Floats from one transformed line to the next, of all of a tile, and of those before they are
    transformed, where the picture ends within the tile.

    The last windows, rounded up, reach beyond their line. What they find there, of the following
    lines or sums, comes to results that nobody reads.
    """
    _, _, W, C = x.shape
    pitch = odd_lines((W + 2 * padding) * C)
    return pitch, VALUES * stride * pitch, VALUES * stride * W * C + LANES
