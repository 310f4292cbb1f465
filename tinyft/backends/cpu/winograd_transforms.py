"""Winograd's transforms: why a 3x3 convolution needs a quarter of its multiplications.

**The idea.** Take one dimension: 4 outputs of a filter with 3 taps depend on 6 inputs. That is a
product of polynomials (degree 3 times degree 2, transposed), and a polynomial of degree 5 is known
by its values at 6 points. Evaluate both factors at 6 points, multiply value by value, interpolate:
6 multiplications instead of 12. In two dimensions 36 instead of 144, for a tile of 4 x 4 outputs:

    y = A' [ (G w G') * (B' x B) ] A          x 6x6, w 3x3, y 4x4, * value by value

The sum over channels is taken before the last transform, so that each of the 36 values is a plain
matrix product (tiles x C) @ (C x F). Evaluating is only additions and multiplications by constants,
per pixel and channel, and pays if there are enough filters.

**Gradients.** y is linear in x and in w, so the transposed transforms give both: dx is the same
convolution with the filter turned and C and F exchanged, and

    dw = G' [ (A dout A') * (B' x B) summed over tiles ] G

**The points** are 0, +-2/3, +-3/2 and infinity (the coefficient of the highest power). Any six
would do exactly; in float32 they decide the error, since large powers are added and cancel. If each
of the 36 products is rounded by itself, the roundings reach the result amplified (root mean
square, normal numbers; y and dw alike):

    +-a, +-b        1, 2    1/2, 2    sqrt(1/2), sqrt(2)    5/8, 3/2    2/3, 3/2
    amplified by    10.8       6.9                   5.0         4.8         4.8

(1, 2) is the choice of the textbooks. Reciprocal points keep the powers near 1 on both ends. No
five points do better than +-0.651, +-1.535 and 0: 4.74. All choices cost the same number of
instructions.

**Tiles of 3** (winograd_tiles.py) need five points, and take those without 0: amplified by 4.0. A
filter's value at a point is the same for them, since the factor that G has for each point, which
depends on all others, is made good in B'.

Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.

Next: tinyft/backends/cpu/winograd_tiles.py
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.compile_cache import helper, kernel
from tinyft.backends.cpu.gemm import LINE, panel_offset, round_up
from tinyft.backends.cpu.generators import make_two_sided_transform
from tinyft.backends.cpu.simd import LANES
from tinyft.backends.cpu.vectors import (
    atomic_next,
    prefetch,
    seen_from,
    vload,
    vmax,
    vset1,
    vstore,
    vtranspose,
)
from tinyft.backends.cpu.winograd_tiles import TILE, VALUES, WINDOW, place_of, size_of

TILES_PER_ITEM = 8  # where tiles are transformed for everyone: one would cost too much bookkeeping
CHANNELS = 64  # channels that lie together in transformed inputs, which are then read as one stream


def winograd_matrices(a: float, b: float) -> tuple[Array, Array, Array]:
    """A' (4, 6), G (6, 3), B' (6, 6) for the points 0, a, -a, b, -b, infinity.

    A' evaluates a polynomial of degree 3 (transposed), G one of degree 2. Row j of B' holds the
    coefficients of the polynomial that is 0 at all other points; G is divided by its value at point
    j.
    """
    points = [0.0, a, -a, b, -b]
    evaluate_4, evaluate_3, interpolate = np.zeros((4, 6)), np.zeros((6, 3)), np.zeros((6, 6))
    for j, point in enumerate(points):
        others = [other for other in points if other != point]
        evaluate_4[:, j] = [point**i for i in range(4)]
        evaluate_3[j] = [point**i for i in range(3)] / np.prod([point - other for other in others])
        interpolate[j, :5] = np.poly(others)[::-1]
    evaluate_4[3, 5] = evaluate_3[5, 2] = 1  # infinity: the highest coefficient
    interpolate[5] = np.poly(points)[::-1]
    interpolate[np.abs(interpolate) < 1e-12] = 0  # what np.poly leaves of sums that cancel
    return evaluate_4, evaluate_3, interpolate


def short_matrices(a: float, b: float) -> tuple[Array, Array]:
    """A' (3, 6) and B' (6, 6) of a tile of 3 outputs and 5 inputs: nothing at the point 0, nothing
    of a sixth input.
    """
    points = [a, -a, b, -b]
    evaluate_3, interpolate = np.zeros((3, 6)), np.zeros((6, 6))
    for j, point in enumerate(points, start=1):
        others = [other for other in points if other != point]
        evaluate_3[:, j] = [point**i for i in range(3)]
        interpolate[j, :4] = np.poly(others)[::-1] * point  # G was divided by point - 0
    evaluate_3[2, 5] = 1
    interpolate[5, :5] = np.poly(points)[::-1]
    interpolate[np.abs(interpolate) < 1e-12] = 0
    return evaluate_3, interpolate


POINTS = 2 / 3, 3 / 2
A_TRANSPOSED, G, B_TRANSPOSED = winograd_matrices(*POINTS)
A_SHORT, B_SHORT = short_matrices(*POINTS)
transform_input = make_two_sided_transform(B_TRANSPOSED, B_SHORT)  # 6x6 pixels -> 6x6
transform_filter = make_two_sided_transform(G)  # 3x3 weights -> 6x6
transform_output = make_two_sided_transform(A_TRANSPOSED, A_SHORT, epilogue=True)  # -> 4x4 pixels
transform_output_grad = make_two_sided_transform(A_TRANSPOSED.T, A_SHORT.T)  # 4x4 -> 6x6
transform_weight_grad = make_two_sided_transform(G.T)  # 6x6 -> 3x3 weights' gradients


def row_pitch(channels: int) -> int:
    """Floats from one tile to the next: no power of 2, so that rows use different sets of the
    cache.
    """
    return round_up(channels, 16) + 16


def odd_lines(size: int) -> int:
    """At least `size` floats, an odd number of cache lines: 36 planes then use different sets."""
    return (round_up(size, 16) // 16 | 1) * 16


@helper
def copy_square(x, shape, picture, top, left, size, to, at):
    """size x size pixels from (top, left) into to[at :], zeros outside the picture. x is flat,
    shape its H, W, C.
    """
    H, W, C = shape
    zero = vset1(np.float32(0))
    for i in range(size):
        for j in range(size):
            row, column = top + i, left + j
            pixel = at + (i * size + j) * C
            if 0 <= row < H and 0 <= column < W:
                source = ((picture * H + row) * W + column) * C
                for c in range(0, C, LANES):
                    vstore(to, pixel + c, vload(x, source + c))
            else:
                for c in range(0, C, LANES):
                    vstore(to, pixel + c, zero)


@helper
def prefetch_tile(x, shape, place):
    """Asks for the pixels of a tile: they arrive while the core computes. x is flat, shape its H,
    W, C.
    """
    H, W, C = shape
    picture, top, left, _ = place
    for row in range(top, top + TILE):
        at = ((picture * H + row) * W + left) * C
        for line in range(0, TILE * C, LINE):
            prefetch(x, at + line)


@helper
def prefetch_window(x, shape, padding, place):
    """The same for the middle of its window; the rest belongs to its neighbours."""
    H, W, C = shape
    picture, top, left, _ = place
    for row in range(top - padding, top - padding + WINDOW):
        at = ((picture * H + row) * W + left - padding + 1) * C
        for line in range(0, TILE * C, LINE):
            prefetch(x, at + line)


@helper
def transform_window(x, shape, padding, place, edge, edge_at, out, at, plane, group):
    """out[at + value * plane + ...] = the values of a tile's 6x6 window, all channels.

    x is flat, shape its H, W, C; place: the tile's picture, row, column and kind. CHANNELS of them
    lie together, `group` floats from one such group to the next. A window that reaches beyond the
    picture is first copied to edge[edge_at :], 36 C floats.
    """
    H, W, C = shape
    picture, top, left, kind = place
    top, left = top - padding, left - padding
    source, row = ((picture * H + top) * W + left) * C, W * C
    if top < 0 or left < 0 or top + WINDOW > H or left + WINDOW > W:
        copy_square(x, shape, picture, top, left, WINDOW, edge, edge_at)
        source, row = seen_from(x, 0, edge, edge_at), WINDOW * C
    for c in range(0, C, LANES):
        to = at + c // CHANNELS * group + c % CHANNELS
        transform_input(kind, x, source + c, row, C, out, to, WINDOW * plane, plane)


@helper
def transform_filters(
    weight, first_c, count_c, first_f, count_f, whole, turned, squares, square_at, out, at, plane
):
    """out[at + value * plane + ...] = the 36 values of count_c x count_f filters, as packed panels
    with rows c and columns f; or, turned for the input gradient, with rows f and columns c.

    whole: the panels are of all C x F filters, else of these only. squares[square_at :]: room for 9
    * LANES * LANES floats.
    """
    _, _, C, F = weight.shape
    size = LANES * LANES
    origin_c, origin_f, size_c, size_f = first_c, first_f, count_c, count_f
    if whole:
        origin_c, origin_f, size_c, size_f = 0, 0, C, F
    for f in range(first_f, first_f + count_f, LANES):
        for c in range(first_c, first_c + count_c, LANES):
            if turned:
                for tap in range(9):
                    source = (tap * C + c) * F + f
                    vtranspose(weight, source, F, squares, square_at + tap * size, LANES)
                for i in range(LANES):
                    last_tap = square_at + 8 * size + i * LANES  # and backwards: half a turn
                    to = at + panel_offset(f + i - origin_f, c - origin_c, size_f, size_c)
                    transform_filter(
                        squares, last_tap, -3 * size, -size, out, to, WINDOW * plane, plane
                    )
            else:
                for i in range(LANES):
                    source = (c + i) * F + f
                    to = at + panel_offset(c + i - origin_c, f - origin_f, size_c, size_f)
                    transform_filter(
                        weight, source, 3 * C * F, C * F, out, to, WINDOW * plane, plane
                    )


@helper
def finish_tile(
    sums, at, plane, edge, place, y, shape, first, count, bias, residual, has_residual, low
):
    """Transforms the sums of a tile back and writes filters first : first + count of its pixels, as
    max(y + bias + residual, low).

    shape: P, Q, F. sums[edge :]: room for 16 * count floats, for a tile that reaches beyond y;
    behind them LANES zeros, which stand for a residual where there is none.
    """
    P, Q, F = shape
    picture, row, column, kind = place
    rows, columns = size_of(kind)
    to = ((picture * P + row) * Q + column) * F + first
    inside = row + rows <= P and column + columns <= Q
    out, out_row, out_column, limit = to, Q * F, F, low
    added, added_row, added_column, step = to, Q * F, F, 1
    if not (has_residual and inside):
        zeros = edge + TILE * TILE * count
        added, added_row, added_column, step = seen_from(residual, 0, sums, zeros), 0, 0, 0
    if not inside:
        out, out_row, out_column, limit = seen_from(y, 0, sums, edge), TILE * count, count, -np.inf
    for f in range(0, count, LANES):
        transform_output(
            kind, sums, at + f, WINDOW * plane, plane, y, out + f, out_row, out_column,
            bias, first + f, residual, added + f * step, added_row, added_column, np.float32(limit),
        )  # fmt: skip
    if inside:
        return
    lowest = vset1(low)
    for i in range(min(TILE, P - row)):
        for j in range(min(TILE, Q - column)):
            for f in range(0, count, LANES):
                pixel = to + (i * Q + j) * F + f
                value = vload(sums, edge + (TILE * i + j) * count + f)
                if has_residual:
                    value = value + vload(residual, pixel)
                vstore(y, pixel, vmax(value, lowest))


@kernel
def transform_all_windows(counter, work, x, padding, places, first_tile, count, out, plane, pitch):
    """out[channel group][value][tile] = the windows of `count` tiles, from `first_tile` on. An item
    is TILES_PER_ITEM tiles.
    """
    _, H, W, C = x.shape
    x_flat = x.reshape(x.size)
    item = atomic_next(counter, 0) * TILES_PER_ITEM
    while item < count:
        for tile in range(item, min(count, item + TILES_PER_ITEM)):
            transform_window(
                x_flat, (H, W, C), padding, place_of(places, first_tile + tile), work, 0, out,
                tile * pitch, plane, VALUES * plane,
            )  # fmt: skip
        item = atomic_next(counter, 0) * TILES_PER_ITEM


@kernel
def transform_all_filters(counter, work, weight, turned, out, plane):
    """out[value * plane :] = all filters as packed panels, see `transform_filters`. An item is
    LANES channels.
    """
    C, F = weight.shape[2:]
    c = atomic_next(counter, 0) * LANES
    while c < C:
        transform_filters(weight, c, LANES, 0, F, True, turned, work, 0, out, 0, plane)
        c = atomic_next(counter, 0) * LANES
