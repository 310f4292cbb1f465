"""Any convolution as a matrix product on gathered pixels: forward and input gradient.

Defined by `Backend.conv2d` and `conv2d_input_grad` of tinyft/backends/reference.py.

A convolution is the product of a matrix with one row per output pixel, its window's R * S * C
numbers, and the weights. Written to memory that matrix would be up to 9 times as large as the
picture. Here a thread gathers the windows of some 50 to 100 pixels into a buffer that stays in its
L2 cache and multiplies them at once: a number is moved once for 2 F operations. Gathering also
takes care of borders, strides and channels.

- Forward: place (r, s) of the window of pixel (p, q) is at (p stride + r - padding, ...).
- Input gradient with stride 1: the same with the kernel turned by half a turn and its C and F
  exchanged. With stride t, pixels (h, w) fall into t x t *phases* by (h mod t, w mod t). All pixels
  of a phase meet the same places of the kernel, so that each phase is a convolution of dout with
  stride 1 and fewer taps.
- A 1x1 convolution with stride 1 needs no gathering: its matrix is x itself. The next rows of it
  are fetched while these are multiplied.

Letters: N pictures, H W rows and columns in, C channels in, P Q rows and columns out, F filters, R
S the kernel. Kernels see weights as (R, S, C, F), and F (for the input gradient C too) padded to
full registers.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.cache import helper, kernel
from tinyft.backends.cpu.codegen.simd import BLOCK_ROWS, LANES, REST_ROWS
from tinyft.backends.cpu.codegen.vectors import finish_streams, vload, vmax, vput, vset1, vstore
from tinyft.backends.cpu.conv.gemm import multiply, next_panel, pack, row_apart
from tinyft.backends.cpu.conv.layer import Epilogue, Layer, round_up
from tinyft.backends.cpu.memory_bound.arrays import large
from tinyft.backends.cpu.runtime import packed_weights as prepared
from tinyft.backends.cpu.runtime import threads
from tinyft.backends.cpu.runtime.work_stealing import next_start

CLEARED = 1 << 15  # numbers of an item of `clear`
STEPS = 512  # rows of the packed weights per pass: 64 KiB of a panel


@helper
def gather(
    x, picture, top, left, tap_rows, tap_columns, first_tap, last_tap, first_channel, run, to, at
):
    """to[at :] = for each tap, `run` floats of x from (top + row, left + column, first_channel);
    zeros outside the picture.

    Copies whole registers: the next tap overwrites what the last register brought too much, and
    buffers have LANES floats of slack.
    """
    _, H, W, C = x.shape
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


@kernel
def multiply_windows(
    share, work, x, tap_rows, tap_columns, run, stride, packed, y, grid,
    bias, residual, has_residual, low, plain, pixels, pitch, large,
):  # fmt: skip
    """y = max(windows @ weights + bias + residual, low) at the pixels of a grid in y; an item is
    `pixels` of them.

    grid: rows, columns, distance, first row, first column. plain: nothing is added, and the grid is
    all of y. run: floats per tap. pitch: floats per gathered row, not a power of 2, so that rows do
    not fall into the same set of the cache. large: y is written past the caches, unless plain.
    """
    N, C = x.shape[0], x.shape[3]
    _, P, Q, F = y.shape
    rows, columns, distance, first_row, first_column = grid
    total = N * rows * columns
    steps = tap_rows.size * run
    x_flat, y_flat = x.reshape(x.size), y.reshape(y.size)
    results = pixels * pitch
    lowest = vset1(low)
    item = next_start(share, pixels, total)
    while item < total:
        count = min(pixels, total - item)
        a, a_offset, ahead = work, 0, 0
        if pitch == C and count % REST_ROWS == 0:  # a 1x1 convolution: see `windows`
            a, a_offset, ahead = x_flat, item * C, BLOCK_ROWS * C
        else:
            for i in range(count):
                picture, place = divmod(item + i, rows * columns)
                row, column = divmod(place, columns)
                gather(
                    x, picture, row * stride, column * stride, tap_rows, tap_columns, 0,
                    tap_rows.size, 0, run, work, i * pitch,
                )  # fmt: skip
        out, out_offset, out_row = work, results, F + LANES
        if plain and count % REST_ROWS == 0:
            out, out_offset, out_row = y_flat, item * F, F
        full = (count + REST_ROWS - 1) // REST_ROWS * REST_ROWS
        for k in range(0, steps, STEPS):
            multiply(
                a, a_offset + k, pitch, 1, packed, 0, steps, k,
                out, out_offset, out_row, full, F, min(STEPS, steps - k), k,
                ahead, next_panel(steps, F),
            )  # fmt: skip
        if not (plain and count % REST_ROWS == 0):
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


class Taps(NamedTuple):
    """Places of a kernel: their numbers r * S + s, and how far they are from the window's start."""

    numbers: Array
    rows: Array
    columns: Array


@functools.lru_cache(maxsize=256)
def window_taps(R: int, S: int, padding: int) -> Taps:
    """All places of a kernel, seen from the pixel that the output is at."""
    rows, columns = np.divmod(np.arange(R * S), S)
    return Taps(np.arange(R * S), rows - padding, columns - padding)


def windows(x: Array, taps: Taps, run: int, stride: int, packed: Array, y: Array, grid: tuple,
            epilogue: Epilogue) -> None:  # fmt: skip
    """Run `multiply_windows` with buffers that fit."""
    F, steps = y.shape[3], taps.numbers.size * run
    total = x.shape[0] * grid[0] * grid[1]
    pointwise = steps == run == x.shape[3] and not taps.rows[0] and not taps.columns[0]
    as_it_lies = pointwise and stride == 1 and x.shape[1:3] == grid[:2]
    pitch = x.shape[3] if as_it_lies else round_up(steps, 16) + 16
    pixels = pixels_per_item(total, steps)
    # 1024 filters, added up where they belong, fill single sets of L1: 4 to 26 % slower
    plain = row_apart(F) == F and epilogue.empty and grid == (y.shape[1], y.shape[2], 1, 0, 0)
    size = pixels * (pitch + F + LANES) + 4 * LANES
    threads.run_with_scratch(
        size, multiply_windows, x, taps.rows, taps.columns, run, stride, packed, y, grid,
        *epilogue.arguments(y), plain, pixels, pitch, large(y),
    )  # fmt: skip


def pixels_per_item(total: int, steps: int) -> int:
    """Windows that fit L2, a multiple of REST_ROWS; items in fours, so that 2 or 4 threads get
    equal shares.
    """
    most = 8 * BLOCK_ROWS if steps <= 1024 else 4 * BLOCK_ROWS
    items = round_up(-(-total // most), 4)
    return round_up(-(-total // items), REST_ROWS)


def packed_weight(weight: Array, taps: Taps) -> Array:
    """All places of a kernel as packed panels, for the forward pass."""
    name = "packed weight"
    return prepared.keep(weight, name, lambda: pack(weight, taps.numbers, False, name))


def suits(what: str, layer: Layer) -> bool:
    """True: it computes any convolution."""
    return True


def forward(
    x: Array, weight: Array, y: Array, epilogue: Epilogue, stride: int, padding: int
) -> None:
    """y (N, P, Q, F) from x (N, H, W, C), weight (R, S, C, F); C and F multiples of LANES."""
    R, S, C, _ = weight.shape
    taps = window_taps(R, S, padding)
    packed = packed_weight(weight, taps)
    windows(x, taps, C, stride, packed, y, (y.shape[1], y.shape[2], 1, 0, 0), epilogue)


@functools.lru_cache(maxsize=256)
def phases(
    R: int, S: int, stride: int, padding: int, H: int, W: int
) -> list[tuple[int, int, Taps]]:
    """For each phase (a, b) that the input's H x W pixels have: the kernel's places that meet it,
    and where the outputs of these windows are, seen from pixel number (h // stride, w // stride).
    """

    def meeting(first: int, size: int) -> list[int]:
        return [tap for tap in range(size) if (first + padding - tap) % stride == 0]

    found = []
    for a in range(min(stride, H)):
        for b in range(min(stride, W)):
            places = [(r, s) for r in meeting(a, R) for s in meeting(b, S)]
            numbers = np.array([r * S + s for r, s in places], np.int64)
            rows = np.array([(a + padding - r) // stride for r, _ in places], np.int64)
            columns = np.array([(b + padding - s) // stride for _, s in places], np.int64)
            found.append((a, b, Taps(numbers, rows, columns)))
    return found


def input_grad(dout: Array, weight: Array, dx: Array, stride: int, padding: int) -> None:
    """dx (N, H, W, C) from dout (N, P, Q, F), weight (R, S, C, F); C and F multiples of LANES."""
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
