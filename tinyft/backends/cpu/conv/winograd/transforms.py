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

**Tiles of 3** (tiles.py) need five points, and take those without 0: amplified by 4.0. A
filter's value at a point is the same for them, since the factor that G has for each point, which
depends on all others, is made good in B'.

Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.cache import helper, kernel
from tinyft.backends.cpu.codegen.generators import make_two_sided_transform
from tinyft.backends.cpu.codegen.simd import LANES
from tinyft.backends.cpu.codegen.vectors import (
    prefetch,
    seen_from,
    vload,
    vmax,
    vput,
    vset1,
    vstore,
    vtranspose,
)
from tinyft.backends.cpu.conv.gemm import LINE, panel_offset
from tinyft.backends.cpu.conv.winograd.tiles import TILE, VALUES, WINDOW, place_of, size_of
from tinyft.backends.cpu.runtime.work_stealing import next_start

TILES_PER_ITEM = 8  # where tiles are transformed for everyone: one would cost too much bookkeeping
CHANNELS = 64  # channels that lie together in transformed inputs, which are then read as one stream


def winograd_matrices(points: tuple[float, ...], taps: int) -> tuple[Array, Array, Array]:
    """A' (outputs, n), G (n, taps), B' (n, n) for these n - 1 points and infinity: as many as
    outputs + taps - 1.

    A' evaluates a polynomial with as many coefficients as outputs (transposed), G one with as many
    as taps. Row j of B' holds the coefficients of the polynomial that is 0 at all other points; G
    is divided by its value at point j.
    """
    n = len(points) + 1
    outputs = n + 1 - taps
    evaluate, evaluate_filter = np.zeros((outputs, n)), np.zeros((n, taps))
    interpolate = np.zeros((n, n))
    for j, point in enumerate(points):
        others = [other for other in points if other != point]
        evaluate[:, j] = [point**i for i in range(outputs)]
        evaluate_filter[j] = [point**i for i in range(taps)]
        evaluate_filter[j] /= np.prod([point - other for other in others])
        interpolate[j, :-1] = np.poly(others)[::-1]
    evaluate[-1, -1] = evaluate_filter[-1, -1] = 1  # infinity: the highest coefficient
    interpolate[-1] = np.poly(points)[::-1]
    interpolate[np.abs(interpolate) < 1e-12] = 0  # what np.poly leaves of sums that cancel
    return evaluate, evaluate_filter, interpolate


def short_matrices(points: tuple[float, ...], taps: int) -> tuple[Array, Array]:
    """A' (outputs - 1, n) and B' (n, n) of a tile with an output and an input less: nothing at the
    first point, nothing of the last input.
    """
    first, *rest = points
    evaluate, _, interpolate = winograd_matrices(tuple(rest), taps)
    for row, point in zip(interpolate, rest, strict=False):
        row *= point - first  # G was divided by it
    short, n = np.zeros((len(evaluate), len(points) + 1)), len(points) + 1
    short[:, 1:] = evaluate
    inputs = np.zeros((n, n))
    inputs[1:, :-1] = interpolate
    return short, inputs


def kinds(long: Array, short: Array) -> tuple:
    """The two sides of a transform for each kind of tile: rows, columns (tiles.py)."""
    return (short, long), (long, long), (long, short), (short, short)


POINTS = 0, 2 / 3, -2 / 3, 3 / 2, -3 / 2
A_TRANSPOSED, G, B_TRANSPOSED = winograd_matrices(POINTS, 3)
A_SHORT, B_SHORT = short_matrices(POINTS, 3)
transform_input = make_two_sided_transform(*kinds(B_TRANSPOSED, B_SHORT))  # 6x6 pixels -> 6x6
transform_filter = make_two_sided_transform((G, G))  # 3x3 weights -> 6x6
transform_output = make_two_sided_transform(*kinds(A_TRANSPOSED, A_SHORT), epilogue=True)  # -> 4x4
transform_output_grad = make_two_sided_transform(*kinds(A_TRANSPOSED.T, A_SHORT.T))  # 4x4 -> 6x6
transform_weight_grad = make_two_sided_transform((G.T, G.T))  # 6x6 -> 3x3 weights' gradients


def row_pitch(channels: int) -> int:
    """Floats from one tile to the next: no power of 2, so that rows use different sets of the
    cache.
    """
    return (-(-channels // LINE) + 1) * LINE


def odd_lines(size: int) -> int:
    """At least `size` floats, an odd number of cache lines: planes then use different sets."""
    return (-(-size // LINE) | 1) * LINE


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


def make_transform_window(transform, size: int, stride: int):
    """How the window of a tile, size x size pixels, becomes size x size values, if the windows of
    neighbouring results are `stride` pixels apart.
    """

    @helper
    def transform_window(x, shape, padding, place, edge, edge_at, out, at, plane, group):
        """out[at + value * plane + ...] = the values of a tile's window, all channels.

        x is flat, shape its H, W, C; place: the tile's picture, row, column and kind. CHANNELS of
        them lie together, `group` floats from one such group to the next. A window that reaches
        beyond the picture is first copied to edge[edge_at :], size * size * C floats.
        """
        H, W, C = shape
        picture, top, left, kind = place
        top, left = top * stride - padding, left * stride - padding
        source, row = ((picture * H + top) * W + left) * C, W * C
        if top < 0 or left < 0 or top + size > H or left + size > W:
            copy_square(x, shape, picture, top, left, size, edge, edge_at)
            source, row = seen_from(x, 0, edge, edge_at), size * C
        for c in range(0, C, LANES):
            to = at + c // CHANNELS * group + c % CHANNELS
            transform(kind, x, source + c, row, C, out, to, size * plane, plane)

    return transform_window


@helper
def turn_filters(weight, first_c, count_c, first_f, count_f, out, at):
    """out[at :] (3, 3, count_f, count_c) = filters turned by half a turn, C and F exchanged."""
    _, _, C, F = weight.shape
    for tap in range(9):
        to = at + (8 - tap) * count_f * count_c
        for c in range(0, count_c, LANES):
            for f in range(0, count_f, LANES):
                source = (tap * C + first_c + c) * F + first_f + f
                vtranspose(weight, source, F, out, to + f * count_c + c, count_c)


@helper
def block_of_filters(weight, first_c, count_c, first_f, count_f, turned, squares, square_at):
    """Where a block of filters lies, seen from weight[0], and how far apart its 9 taps and its rows
    are. Turned ones are made in squares[square_at :] first.
    """
    _, _, C, F = weight.shape
    if turned:
        turn_filters(weight, first_c, count_c, first_f, count_f, squares, square_at)
        return seen_from(weight, 0, squares, square_at), count_f * count_c, count_c
    return first_c * F + first_f, C * F, F


def make_transform_filters(transform, side: int):
    """How filters become packed panels of side * side values."""

    @helper
    def transform_filters(
        which, weight, source, tap, pitch, rows, columns, out, at, plane, first_row, all_rows,
        all_columns,
    ):  # fmt: skip
        """out[at + value * plane + ...] = values of rows x columns filters, as rows `first_row` and
        further of packed panels of all_rows x all_columns.

        which: the number of the transform. The filters' 9 numbers are `tap` floats apart from
        `source` on, rows of filters `pitch` floats.
        """
        for row in range(rows):
            for column in range(0, columns, LANES):
                to = at + panel_offset(first_row + row, column, all_rows, all_columns)
                transform(
                    which, weight, source + row * pitch + column, 3 * tap, tap, out, to,
                    side * plane, plane,
                )  # fmt: skip

    return transform_filters


def make_finish_tile(transform, side: int, stride: int):
    """How sums, side * side values of a tile, become TILE * stride results in each direction."""
    tile = TILE * stride

    @helper
    def finish_tile(
        sums, at, plane, edge, place, y, shape, first, count, bias, residual, has_residual, low,
        large,
    ):  # fmt: skip
        """Transforms the sums of a tile back and writes filters first : first + count of its
        pixels, as max(y + bias + residual, low).

        shape: P, Q, F. large: y is written past the caches. sums[edge :]: room for tile * tile *
        count floats, where a tile waits that goes past them or reaches beyond y; behind them LANES
        zeros, which stand for a residual where there is none.
        """
        P, Q, F = shape
        picture, row, column, kind = place
        rows, columns = size_of(kind)
        row, column, rows, columns = row * stride, column * stride, rows * stride, columns * stride
        to = ((picture * P + row) * Q + column) * F + first
        at_once = row + rows <= P and column + columns <= Q and not large
        out, out_row, out_column, limit = to, Q * F, F, low
        added, added_row, added_column, step = to, Q * F, F, 1
        if not (has_residual and at_once):
            zeros = edge + tile * tile * count
            added, added_row, added_column, step = seen_from(residual, 0, sums, zeros), 0, 0, 0
        if not at_once:
            out, out_row, out_column = seen_from(y, 0, sums, edge), tile * count, count
            limit = -np.inf
        for f in range(0, count, LANES):
            transform(
                kind, sums, at + f, side * plane, plane, y, out + f, out_row, out_column, bias,
                first + f, residual, added + f * step, added_row, added_column, np.float32(limit),
            )  # fmt: skip
        if at_once:
            return
        lowest = vset1(low)
        for i in range(min(rows, P - row)):  # what follows a short tile may be another thread's
            for j in range(min(columns, Q - column)):
                for f in range(0, count, LANES):
                    pixel = to + (i * Q + j) * F + f
                    value = vload(sums, edge + (tile * i + j) * count + f)
                    if has_residual:
                        value = value + vload(residual, pixel)
                    vput(y, pixel, vmax(value, lowest), large)

    return finish_tile


transform_window = make_transform_window(transform_input, WINDOW, stride=1)
transform_filters = make_transform_filters(transform_filter, WINDOW)
finish_tile = make_finish_tile(transform_output, WINDOW, stride=1)


@kernel
def transform_all_windows(share, work, x, padding, places, first_tile, count, out, plane, pitch):
    """out[channel group][value][tile] = the windows of `count` tiles, from `first_tile` on. An item
    is TILES_PER_ITEM tiles.
    """
    _, H, W, C = x.shape
    x_flat = x.reshape(x.size)
    item = next_start(share, TILES_PER_ITEM, count)
    while item < count:
        for tile in range(item, min(count, item + TILES_PER_ITEM)):
            transform_window(
                x_flat, (H, W, C), padding, place_of(places, first_tile + tile), work, 0, out,
                tile * pitch, plane, VALUES * plane,
            )  # fmt: skip
        item = next_start(share, TILES_PER_ITEM, count)


@kernel
def transform_all_filters(share, work, weight, turned, out, plane):
    """out[value * plane :] = all filters as packed panels; or, turned for the input gradient, their
    transposes. An item is LANES rows of the panels.
    """
    C, F = weight.shape[2:]
    rows, columns = (F, C) if turned else (C, F)
    first = next_start(share, LANES, rows)
    while first < rows:
        block = (0, C, first, LANES) if turned else (first, LANES, 0, F)
        source, tap, pitch = block_of_filters(weight, *block, turned, work, 0)
        transform_filters(
            0, weight, source, tap, pitch, LANES, columns, out, 0, plane, first, rows, columns
        )
        first = next_start(share, LANES, rows)
