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
convolution with the filter flipped (turned by half a turn) and C and F exchanged, and

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

**Tiles** are 4 x 4 results. A side of 14 would take four of them and 2 results too many, which cost
as much as those that are wanted. So a side that is no multiple of 4 gets tiles of 3 too, 14 = 4 + 4
+ 3 + 3 and 7 = 4 + 3. A row of 3 results needs 5 values instead of 6: it does without the point 0
(roundings are amplified by 4.0). A filter's value at a point is the same, since the factor that G
has for each point, which depends on all others, is made good in B'.

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

Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.cache import helper, kernel
from tinyft.backends.cpu.codegen.generators import make_two_sided_transform
from tinyft.backends.cpu.codegen.simd import LANES, LINE, REST_ROWS
from tinyft.backends.cpu.codegen.vectors import (
    offset_between,
    prefetch,
    vload,
    vmax,
    vput,
    vset1,
    vstore,
    vtranspose,
)
from tinyft.backends.cpu.conv.gemm import panel_offset
from tinyft.backends.cpu.conv.layer import round_up
from tinyft.backends.cpu.runtime.work_stealing import next_start

TILES_PER_ITEM = 8  # where tiles are transformed for everyone: one would cost too much bookkeeping
CHANNELS = 64  # channels that lie together in transformed inputs, which are then read as one stream
TILE = 4  # results of a tile in each direction
WINDOW = 6  # inputs of a tile in each direction
VALUES = WINDOW * WINDOW
SHORT_ROWS, LONG, SHORT_COLUMNS, SHORT = range(4)  # kinds
# Of an item of `convolve_tiles`. Narrow panels of filters are more of them, and for each the item's
# windows are read again, which then had better stay in L1.
MOST_TILES = 48 if LANES == 16 else 32


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
def tiling(N: int, P: int, Q: int, *, whole: bool = False, all_long: bool = False) -> Tiling:
    """The tiles of N maps of P x Q results; `whole`: for one item, else for items of MOST_TILES at
    most, in fours for equal shares. `all_long`: no tiles of 3; one picture after the other.
    """
    (rows, short_rows), (columns, short_columns) = tiles_along(P), tiles_along(Q)
    per_picture = len(rows) * len(columns)
    enough = whole or (N >= 4 and per_picture <= MOST_TILES)
    mixed = enough and not all_long and (short_rows.any() or short_columns.any())
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
    """Give where the tiles along a side begin, and which of them, at the end, have 3 results."""
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


# ------------------------------------------------------------------------------------- matrices


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
    """The two sides of a transform for each kind of tile: rows, columns."""
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
    """Ask for the pixels of a tile: they arrive while the core computes. x is flat, shape its H,
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
    """Ask for the middle of its window; the rest belongs to its neighbours."""
    H, W, C = shape
    picture, top, left, _ = place
    for row in range(top - padding, top - padding + WINDOW):
        at = ((picture * H + row) * W + left - padding + 1) * C
        for line in range(0, TILE * C, LINE):
            prefetch(x, at + line)


def make_transform_window(transform, size: int, stride: int):
    """Make the helper that turns a tile's window, size x size pixels, into size x size values, if
    the windows of neighbouring results are `stride` pixels apart.
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
            source, row = offset_between(x, 0, edge, edge_at), size * C
        for c in range(0, C, LANES):
            to = at + c // CHANNELS * group + c % CHANNELS
            transform(kind, x, source + c, row, C, out, to, size * plane, plane)

    return transform_window


@helper
def flip_filters(weight, first_c, count_c, first_f, count_f, out, at):
    """out[at :] (3, 3, count_f, count_c) = filters flipped, C and F exchanged."""
    _, _, C, F = weight.shape
    for tap in range(9):
        to = at + (8 - tap) * count_f * count_c
        for c in range(0, count_c, LANES):
            for f in range(0, count_f, LANES):
                source = (tap * C + first_c + c) * F + first_f + f
                vtranspose(weight, source, F, out, to + f * count_c + c, count_c)


@helper
def block_of_filters(weight, first_c, count_c, first_f, count_f, flipped, squares, square_at):
    """Find a block of filters: an index of weight, and how far apart its 9 taps and its rows are.
    Flipped ones are made in squares[square_at :] first.
    """
    _, _, C, F = weight.shape
    if flipped:
        flip_filters(weight, first_c, count_c, first_f, count_f, squares, square_at)
        return offset_between(weight, 0, squares, square_at), count_f * count_c, count_c
    return first_c * F + first_f, C * F, F


def make_transform_filters(transform, side: int):
    """Make the helper that turns filters into packed panels of side * side values."""

    @helper
    def transform_filters(
        which, weight, block, rows, columns, out, at, plane, first_row, all_rows, all_columns
    ):
        """out[at + value * plane + ...] = values of rows x columns filters, as rows `first_row` and
        further of packed panels of all_rows x all_columns. which: the number of the transform;
        block: see `block_of_filters`.
        """
        source, tap, pitch = block
        for row in range(rows):
            for column in range(0, columns, LANES):
                to = at + panel_offset(first_row + row, column, all_rows, all_columns)
                transform(
                    which, weight, source + row * pitch + column, 3 * tap, tap, out, to,
                    side * plane, plane,
                )  # fmt: skip

    return transform_filters


def make_finish_tile(transform, side: int, stride: int):
    """Make the helper that turns side * side sums of a tile into TILE * stride results a side."""
    tile = TILE * stride

    @helper
    def finish_tile(sums, at, plane, edge, place, y, shape, first, count, epilogue, large):
        """Transform the sums of a tile back and write filters first : first + count of its
        pixels, as max(y + bias + residual, floor).

        shape: P, Q, F. large: y is written past the caches. sums[edge :]: room for tile * tile *
        count floats, where a tile waits that goes past them or reaches beyond y; behind them LANES
        zeros, which stand for a residual where there is none.
        """
        P, Q, F = shape
        bias, residual, has_residual, floor = epilogue
        picture, row, column, kind = place
        rows, columns = size_of(kind)
        row, column, rows, columns = row * stride, column * stride, rows * stride, columns * stride
        to = ((picture * P + row) * Q + column) * F + first
        at_once = row + rows <= P and column + columns <= Q and not large
        out, out_row, out_column, limit = to, Q * F, F, floor
        added, added_row, added_column, step = to, Q * F, F, 1
        if not (has_residual and at_once):
            zeros = edge + tile * tile * count
            added, added_row, added_column, step = offset_between(residual, 0, sums, zeros), 0, 0, 0
        if not at_once:
            out, out_row, out_column = offset_between(y, 0, sums, edge), tile * count, count
            limit = -np.inf
        for f in range(0, count, LANES):
            transform(
                kind, sums, at + f, side * plane, plane, y, out + f, out_row, out_column, bias,
                first + f, residual, added + f * step, added_row, added_column, np.float32(limit),
            )  # fmt: skip
        if at_once:
            return
        lowest = vset1(floor)
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
def transform_all_filters(share, work, weight, flipped, out, plane):
    """out[value * plane :] = all filters as packed panels; or, flipped for the input gradient,
    their transposes. An item is LANES rows of the panels.
    """
    C, F = weight.shape[2:]
    rows, columns = (F, C) if flipped else (C, F)
    first = next_start(share, LANES, rows)
    while first < rows:
        part = (0, C, first, LANES) if flipped else (first, LANES, 0, F)
        block = block_of_filters(weight, *part, flipped, work, 0)
        transform_filters(0, weight, block, LANES, columns, out, 0, plane, first, rows, columns)
        first = next_start(share, LANES, rows)
