"""Any convolution as implicit GEMM: one matrix product, whose left matrix is never written.

Defined by `Backend.conv2d` and its gradients in tinyft/backends/reference.py.

**im2col.** A convolution is the product of a matrix with one row per output pixel, its window's
R * S * C numbers, and the weights. Written to memory (im2col) that matrix would be up to 9 times as
large as the picture. Here a thread gathers the windows of some 50 to 100 pixels into a buffer that
stays in its L2 cache and multiplies them at once: a number is moved once for 2 F operations.
Gathering also takes care of borders, strides and channels.

- Forward: place (r, s) of the window of pixel (p, q) is at (p stride + r - padding, ...).
- Input gradient with stride 1: the same with the kernel flipped and its C and F exchanged. With
  stride t, pixels (h, w) fall into t x t *phases* by (h mod t, w mod t). All pixels of a phase meet
  the same places of the kernel, so that each phase is a convolution of dout with stride 1 and fewer
  taps.
- Weight gradient: windows' @ dout, summed over all pixels: (R S C, pixels) @ (pixels, F). 128
  windows at a time are multiplied transposed by exchanging the two strides of the micro-kernel;
  dout is packed into panels beside them.
- A 1x1 convolution with stride 1 needs no gathering: its matrix is x itself. The next rows of it
  are fetched while these are multiplied.

**Cutting the weight gradient.** A sum over threads would depend on their number. So the work is cut
by the shape alone. Small weights are one piece. Of large ones an item has a tap and at most 256
channels and 256 filters: the sums (256 KiB) stay in L2 beside the pixels, and each number that is
gathered or packed is used 256 times. Where that gives four items or fewer, the pixels are cut into
*parts*, with sums of their own that are added in order at the end.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.cache import helper, kernel
from tinyft.backends.cpu.codegen.simd import LANES, PANEL, REST_ROWS
from tinyft.backends.cpu.codegen.vectors import (
    finish_streams,
    offset_between,
    vload,
    vmax,
    vput,
    vset1,
    vstore,
)
from tinyft.backends.cpu.conv.gemm import (
    BOTH_ROWS,
    ITEM_ROWS,
    copy_to_panels,
    multiply,
    multiply_ahead,
    next_panel,
    pack,
    row_apart,
    sum_parts,
)
from tinyft.backends.cpu.conv.layer import Epilogue, Layer, round_up
from tinyft.backends.cpu.memory_bound.arrays import large
from tinyft.backends.cpu.runtime import packed_weights, threads, workspace
from tinyft.backends.cpu.runtime.work_stealing import next_item, next_start

CLEARED = 1 << 15  # numbers of an item of `clear`
STEPS = 512  # rows of the packed weights per pass: 64 KiB of a panel

# Of the weight gradient. Pixels per block: 96 gave an unlucky pitch (Zen 4: 15 ms instead of 10.5);
# 128 to 256 are equal.
PIXELS = 128
FEW_PANELS = 8  # of dout may lie a power of 2 apart; the lines of more do not fit one set of L1
SMALL = 100_000  # weights whose sums stay in L2
MOST_CHANNELS = 256  # channels and filters of an item, at most
ITEMS = 8  # at most, where pixels are cut: equal shares for 2 or 4 threads


class Taps(NamedTuple):
    """Places of a kernel: their numbers r * S + s, and how far they are from the window's start."""

    numbers: Array
    rows: Array
    columns: Array


@functools.lru_cache(maxsize=256)
def window_taps(R: int, S: int, padding: int) -> Taps:
    """All places of a kernel, relative to the pixel that the output is at."""
    rows, columns = np.divmod(np.arange(R * S), S)
    return Taps(np.arange(R * S), rows - padding, columns - padding)


def suits(what: str, layer: Layer) -> bool:
    """Tell that it computes any convolution."""
    return True


@helper
def gather(x, picture, top, left, taps, first_tap, last_tap, first_channel, run, to, at):
    """to[at :] = for each tap, `run` floats of x from (top + row, left + column, first_channel);
    zeros outside the picture. taps: rows, columns.

    Copies whole registers: the next tap overwrites what the last register brought too much, and
    buffers have LANES floats of slack.
    """
    _, H, W, C = x.shape
    tap_rows, tap_columns = taps
    zero = vset1(np.float32(0))
    for tap in range(first_tap, last_tap):
        row, column = top + tap_rows[tap], left + tap_columns[tap]
        if 0 <= row < H and 0 <= column < W:
            pixel = ((picture * H + row) * W + column) * C + first_channel
            for c in range(0, run, LANES):
                vstore(to, at + c, vload(x, pixel + c))
        else:
            for c in range(0, run, LANES):
                vstore(to, at + c, zero)
        at += run


# ---------------------------------------------------------------------- forward and input gradient


@helper
def put_pixels(work, results, y, item, count, grid, epilogue, large):
    """y = max(results + bias + residual, floor) at `count` pixels of a grid in y from `item` on.

    work: a row of F + LANES floats for each of them, from `results` on.
    """
    _, P, Q, F = y.shape
    rows, columns, distance, first_row, first_column = grid
    bias, residual, has_residual, floor = epilogue
    lowest = vset1(floor)
    for i in range(count):
        picture, place = divmod(item + i, rows * columns)
        row, column = divmod(place, columns)
        row, column = row * distance + first_row, column * distance + first_column
        at = ((picture * P + row) * Q + column) * F
        for f in range(0, F, LANES):
            value = vload(work, results + i * (F + LANES) + f) + vload(bias, f)
            if has_residual:
                value = value + vload(residual, at + f)
            vput(y, at + f, vmax(value, lowest), large)


@kernel
def multiply_windows(share, work, x, taps, run, stride, packed, y, grid, epilogue, direct, layout):
    """y = max(windows @ weights + bias + residual, floor) at the pixels of a grid in y.

    taps: rows, columns; run: floats per tap. grid: rows, columns, distance, first row, first
    column. direct: nothing is added, and the grid is all of y. layout: pixels of an item; floats
    per gathered row, not a power of 2, so that rows do not fall into the same set of the cache;
    whether y is written past the caches, unless direct.
    """
    N, C = x.shape[0], x.shape[3]
    F = y.shape[3]
    rows, columns = grid[:2]
    pixels, pitch, large = layout
    total = N * rows * columns
    count_taps = taps[0].size
    steps = count_taps * run
    x_flat, y_flat = x.reshape(x.size), y.reshape(y.size)
    results = pixels * pitch
    item = next_start(share, pixels, total)
    while item < total:
        count = min(pixels, total - item)
        a, a_offset, ahead = work, 0, 0
        if pitch == C and count % REST_ROWS == 0:  # a 1x1 convolution: see `windows`
            a, a_offset, ahead = x_flat, item * C, BOTH_ROWS * C
        else:
            for i in range(count):
                picture, place = divmod(item + i, rows * columns)
                row, column = divmod(place, columns)
                gather(
                    x, picture, row * stride, column * stride, taps, 0, count_taps, 0, run,
                    work, i * pitch,
                )  # fmt: skip
        out, out_offset, out_row = work, results, F + LANES
        if direct and count % REST_ROWS == 0:
            out, out_offset, out_row = y_flat, item * F, F
        full = (count + REST_ROWS - 1) // REST_ROWS * REST_ROWS
        for k in range(0, steps, STEPS):
            multiply(
                a, a_offset + k, pitch, 1, packed, 0, steps, k,
                out, out_offset, out_row, full, F, min(STEPS, steps - k), k,
                ahead, next_panel(steps, F),
            )  # fmt: skip
        if not (direct and count % REST_ROWS == 0):
            put_pixels(work, results, y, item, count, grid, epilogue, large)
        item = next_start(share, pixels, total)
    finish_streams()


@kernel
def clear(share, x):
    """x (size,) = 0. An item is CLEARED numbers."""
    zero = np.float32(0)
    start = next_start(share, CLEARED, x.size)
    while start < x.size:
        piece = x[start : start + CLEARED]
        for i in range(piece.size):
            piece[i] = zero
        start = next_start(share, CLEARED, x.size)


def windows(x: Array, taps: Taps, run: int, stride: int, packed: Array, y: Array, grid: tuple,
            epilogue: Epilogue) -> None:  # fmt: skip
    """Run `multiply_windows` with buffers that fit."""
    F, steps = y.shape[3], taps.numbers.size * run
    total = x.shape[0] * grid[0] * grid[1]
    pointwise = steps == run == x.shape[3] and not taps.rows[0] and not taps.columns[0]
    in_place = pointwise and stride == 1 and x.shape[1:3] == grid[:2]
    pitch = x.shape[3] if in_place else round_up(steps, 16) + 16
    # Windows that fit L2; items in fours, so that 2 or 4 threads get equal shares.
    most = ITEM_ROWS if steps <= 1024 else ITEM_ROWS // 2
    items = round_up(-(-total // most), 4)
    pixels = round_up(-(-total // items), REST_ROWS)
    # 1024 filters, added up where they belong, fill single sets of L1: 4 to 26 % slower
    direct = row_apart(F) == F and epilogue.empty and grid == (y.shape[1], y.shape[2], 1, 0, 0)
    size = pixels * (pitch + F + LANES) + 4 * LANES
    threads.run_with_scratch(
        size, multiply_windows, x, taps[1:], run, stride, packed, y, grid, epilogue.arguments(y),
        direct, (pixels, pitch, large(y)),
    )  # fmt: skip


def packed_weight(weight: Array) -> Array:
    """All places of a kernel (R, S, C, F) as packed panels, for the forward pass."""
    name, places = "packed weight", np.arange(weight.shape[0] * weight.shape[1])
    return packed_weights.keep(weight, name, lambda: pack(weight, places, False, name))


def forward(
    x: Array, weight: Array, y: Array, epilogue: Epilogue, stride: int, padding: int
) -> None:
    """y (N, P, Q, F) from x (N, H, W, C), weight (R, S, C, F); C and F multiples of LANES."""
    R, S, C, _ = weight.shape
    grid = y.shape[1], y.shape[2], 1, 0, 0
    windows(x, window_taps(R, S, padding), C, stride, packed_weight(weight), y, grid, epilogue)


@functools.lru_cache(maxsize=256)
def phases(
    R: int, S: int, stride: int, padding: int, H: int, W: int
) -> list[tuple[int, int, Taps]]:
    """For each phase (a, b) that the input's H x W pixels have: the kernel's places that meet it,
    and where the outputs of these windows are, relative to pixel (h // stride, w // stride).
    """

    def meeting(first: int, size: int) -> list[int]:
        return [tap for tap in range(size) if (first + padding - tap) % stride == 0]

    classes = []
    for a in range(min(stride, H)):
        for b in range(min(stride, W)):
            places = [(r, s) for r in meeting(a, R) for s in meeting(b, S)]
            numbers = np.array([r * S + s for r, s in places], np.int64)
            rows = np.array([(a + padding - r) // stride for r, _ in places], np.int64)
            columns = np.array([(b + padding - s) // stride for _, s in places], np.int64)
            classes.append((a, b, Taps(numbers, rows, columns)))
    return classes


def input_grad(dout: Array, weight: Array, dx: Array, stride: int, padding: int) -> None:
    """dx (N, H, W, C) from dout (N, P, Q, F), weight (R, S, C, F); C and F multiples of LANES.

    forward was, along one side: y[p] = sum over r of x[p stride + r - padding] @ weight[r]; so:
    dx[h] = sum over all p and r with p stride + r - padding = h of dout[p] @ weight[r]'
    """
    R, S, _, F = weight.shape
    _, H, W, _ = dx.shape
    parts = phases(R, S, stride, padding, H, W)
    if any(taps.numbers.size == 0 for _, _, taps in parts):
        threads.run(clear, dx.reshape(-1))  # the stride jumps over some pixels
    for a, b, taps in parts:
        if taps.numbers.size:
            grid = (-(-(H - a) // stride), -(-(W - b) // stride), stride, a, b)
            packed = pack(weight, taps.numbers, True, "packed weight")
            windows(dout, taps, F, 1, packed, dx, grid, Epilogue())


# --------------------------------------------------------------------------------- weight gradient


@kernel
def multiply_windows_transposed(share, work, x, taps, run, stride, dout, sums, cut, layout):
    """sums[part] = windows' @ dout over the part's pixels. An item is one part, and of the taps,
    channels and filters as many as `cut` says: parts, and the item's taps, channels, filters.

    layout: floats of a part of `sums`, of its rows, of gathered rows; rows of a panel.
    """
    parts, taps_per_item, channels, filters = cut
    size, sums_pitch, pitch, panel_rows = layout
    C, (N, P, Q, F) = x.shape[3], dout.shape
    total, count_taps = N * P * Q, taps[0].size
    tap_groups = (count_taps + taps_per_item - 1) // taps_per_item
    channel_groups = (run + channels - 1) // channels
    filter_groups = (F + filters - 1) // filters
    in_order = count_taps == stride == 1  # the pixels of x
    x_apart, dout_apart = C if channels < C else 0, F if filters < F else 0
    packed = PIXELS * pitch  # where in `work` the panels of dout are
    items = parts * tap_groups * channel_groups * filter_groups
    item = next_item(share, items)
    while item < items:
        group, filter_group = divmod(item, filter_groups)
        group, channel_group = divmod(group, channel_groups)
        part, tap_group = divmod(group, tap_groups)
        first_tap, first_channel = tap_group * taps_per_item, channel_group * channels
        first_filter = filter_group * filters
        last_tap = min(count_taps, first_tap + taps_per_item)
        count, filter_count = min(channels, run - first_channel), min(filters, F - first_filter)
        rows = ((last_tap - first_tap) * count + REST_ROWS - 1) // REST_ROWS * REST_ROWS
        to = part * size + (first_tap * run + first_channel) * sums_pitch + first_filter
        start, stop = part * total // parts, (part + 1) * total // parts
        for block in range(start, stop, PIXELS):
            pixels = min(PIXELS, stop - block)
            for i in range(pixels):
                picture, place = divmod(block + i, P * Q)
                row, column = divmod(place, Q)
                gather(
                    x, picture, row * stride, column * stride, taps, first_tap, last_tap,
                    first_channel, count, work, i * pitch,
                )  # fmt: skip
                source = (block + i) * F + first_filter
                copy_to_panels(dout, source, filter_count, work, packed, i, panel_rows)
            ahead_x, ahead_dout = 0, 0
            following = block + PIXELS
            if following < stop:
                if in_order:
                    ahead_x = offset_between(work, 0, x, following * C + first_channel)
                ahead_dout = offset_between(work, packed, dout, following * F + first_filter)
            multiply_ahead(
                work, 0, 1, pitch, work, packed, panel_rows, 0,
                sums, to, sums_pitch, rows, filter_count, pixels, block - start,
                ahead_x, ahead_dout, x_apart, dout_apart,
            )  # fmt: skip
        item = next_item(share, items)


def weight_grad(dout: Array, x: Array, dweight: Array, stride: int, padding: int) -> None:
    """dweight (R, S, C, F) from dout (N, P, Q, F), x (N, H, W, C); C and F multiples of LANES.

    forward was, along one side: y[p] = sum over r of x[p stride + r - padding] @ weight[r]; so:
    dweight[r] = sum over p of x[p stride + r - padding]' @ dout[p]
    """
    R, S, C, _ = dweight.shape
    sum_windows(dout, x, window_taps(R, S, padding), C, stride, dweight)


def sum_windows(dout: Array, x: Array, taps: Taps, run: int, stride: int, dweight: Array) -> None:
    """Do as `weight_grad` for any taps, each of `run` floats."""
    F, steps = dweight.shape[3], taps.numbers.size * run
    total = dout.size // F
    taps_per_item, channels, filters = taps.numbers.size, run, F
    if steps * F > SMALL and run % LANES == 0:
        taps_per_item, channels, filters = 1, min(run, MOST_CHANNELS), min(F, MOST_CHANNELS)
    items = -(-taps.numbers.size // taps_per_item) * -(-run // channels) * -(-F // filters)
    parts = max(1, min(ITEMS // items, total // 256))
    pitch, sums_pitch = round_up(taps_per_item * channels, 16) + 16, row_apart(F)
    size = round_up(steps, REST_ROWS) * sums_pitch
    direct = parts == 1 and size == steps * F
    sums = dweight if direct else workspace.scratch("parts", parts * size)
    panel_rows = PIXELS if filters <= FEW_PANELS * PANEL else PIXELS + 1
    threads.run_with_scratch(
        PIXELS * pitch + panel_rows * filters + 4 * LANES, multiply_windows_transposed, x, taps[1:],
        run, stride, dout, sums.reshape(-1), (parts, taps_per_item, channels, filters),
        (size, sums_pitch, pitch, panel_rows),
    )  # fmt: skip
    if not direct:
        threads.run(sum_parts, sums, parts, size, sums_pitch, steps, F, dweight.reshape(-1))
