"""Convolutions of pictures with fewer channels than a register has lanes: an RGB stem.

Defined by `Backend.conv2d` and `conv2d_weight_grad` of tinyft/backends/reference.py.

With 3 channels a gathered tap is 3 numbers, and gathering costs more than multiplying. After a
border of zeros has been put around the picture, a row of a window (S taps of C channels) is *one*
run of numbers, and the next window's run starts stride * C numbers later. So the windows of one row
of outputs are a matrix that already lies in memory, with rows that overlap: the micro-kernel reads
it by its two strides, and R products (one per row of the kernel) make a row of outputs, without
gathering.

A 7x7 stem with stride 2 is computed by winograd/stem.py instead, unless Winograd is turned off.

Versions, forward and weight gradient of 7x7 stride 2 on (16, 224, 224, 3) -> 64: gathered 24.9 and
25.8 ms, in place 19.3 and 22 ms (AMD Zen 4, two threads); 31.7 and 31.7, 27.1 and 27.5 ms (Intel
Sapphire Rapids, CPU time on one core). The weight gradient asks for the next line of dout while it
multiplies by this one: 10.7 instead of 11.6 ms (AMD Zen 5, two threads).
"""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.cache import kernel
from tinyft.backends.cpu.codegen.simd import BLOCK_ROWS, LANES, REST_ROWS
from tinyft.backends.cpu.codegen.vectors import offset_between, vload, vmax, vset1, vstore
from tinyft.backends.cpu.conv.gemm import copy_to_panels, multiply, sum_parts
from tinyft.backends.cpu.conv.implicit_gemm import (
    Taps,
    packed_weight,
    sum_windows,
    windows,
)
from tinyft.backends.cpu.conv.layer import FEW_CHANNELS, INPUT_GRAD, Epilogue, Layer, round_up
from tinyft.backends.cpu.runtime import threads, workspace
from tinyft.backends.cpu.runtime.work_stealing import next_item

SHORT_ROW = 2 * BLOCK_ROWS  # rows of fewer outputs are gathered: their rest would cost too much


@kernel
def copy_into_border(share, x, padding, padded):
    """padded (N, H + 2 padding, W + 2 padding, C) = x with zeros around. An item is a row."""
    N, H, W, C = x.shape
    rows, columns = H + 2 * padding, W + 2 * padding
    padded_flat, x_flat = padded.reshape(padded.size), x.reshape(x.size)
    items = N * rows
    item = next_item(share, items)
    while item < items:
        picture, row = divmod(item, rows)
        # Slices, so that LLVM knows that no index is negative; but loops over them, since Numba
        # takes 2 s to compile an assignment to one.
        line = padded_flat[item * columns * C : (item + 1) * columns * C]
        for i in range(line.size):
            line[i] = np.float32(0)
        if padding <= row < padding + H:
            source = (picture * H + row - padding) * W * C
            pixels = x_flat[source : source + W * C]
            middle = line[padding * C : padding * C + W * C]
            for i in range(pixels.size):
                middle[i] = pixels[i]
        item = next_item(share, items)


@kernel
def multiply_rows_in_place(share, x, R, S, stride, packed, y, adds, bias, floor):
    """y = conv(x) for x with its border; max(conv(x) + bias, floor) if it `adds`. An item is a row
    of outputs.
    """
    _, H, W, C = x.shape
    N, P, Q, F = y.shape
    x_flat, y_flat = x.reshape(x.size), y.reshape(y.size)
    run = S * C
    lowest = vset1(floor)
    items = N * P
    item = next_item(share, items)
    while item < items:
        picture, row = divmod(item, P)
        out = item * Q * F
        for r in range(R):
            at = (picture * H + row * stride + r) * W * C
            multiply(
                x_flat, at, stride * C, 1, packed, 0, R * run, r * run, y_flat, out, F, Q, F, run,
                r, 0, 0,
            )  # fmt: skip
        for at in range(out, out + Q * F if adds else out, F):
            for f in range(0, F, LANES):
                vstore(y, at + f, vmax(vload(y, at + f) + vload(bias, f), lowest))
        item = next_item(share, items)


@kernel
def multiply_rows_in_place_transposed(share, work, x, stride, dout, R, rows, parts, sums):
    """sums[part] (R, rows, F) = windows' @ dout over the part's rows of outputs; `rows` is what the
    micro-kernel computes, S * C or a few more. An item is a part.
    """
    _, H, W, C = x.shape
    N, P, Q, F = dout.shape
    x_flat, dout_flat = x.reshape(x.size), dout.reshape(dout.size)
    part = next_item(share, parts)
    while part < parts:
        start, stop = part * N * P // parts, (part + 1) * N * P // parts
        for line in range(start, stop):
            for q in range(Q):
                copy_to_panels(dout, (line * Q + q) * F, F, work, 0, q, Q)
            picture, row = divmod(line, P)
            for r in range(R):
                at = (picture * H + row * stride + r) * W * C
                ahead = 0
                if r == 0:  # fetch the next line of dout
                    ahead = offset_between(work, 0, dout_flat, (line + 1) * Q * F)
                to = (part * R + r) * rows * F
                multiply(
                    x_flat, at, 1, stride * C, work, 0, Q, 0, sums, to, F, rows, F, Q,
                    line - start, 0, ahead,
                )  # fmt: skip
        part = next_item(share, parts)


def suits(what: str, layer: Layer) -> bool:
    """Tell whether channels are so few that they are read as they are."""
    return what != INPUT_GRAD and layer.weight[1] <= FEW_CHANNELS


def with_border(x: Array, padding: int) -> Array:
    """x with zeros around, in scratch memory with slack behind: blocks read too far at the end."""
    N, H, W, C = x.shape
    shape = (N, H + 2 * padding, W + 2 * padding, C)
    size = math.prod(shape)
    padded = workspace.scratch("border", size + C * BLOCK_ROWS + 4 * LANES)[:size].reshape(shape)
    threads.run(copy_into_border, x, padding, padded)
    return padded


def forward(
    x: Array, weight: Array, y: Array, epilogue: Epilogue, stride: int, padding: int
) -> None:
    """y (N, P, Q, F) from x (N, H, W, C), weight (R, S, C, F); F a multiple of LANES."""
    R, S, C, _ = weight.shape
    _, P, Q, _ = y.shape
    packed = packed_weight(weight)
    padded = with_border(x, padding)
    if epilogue.residual is None and Q % REST_ROWS == 0 and Q >= SHORT_ROW:
        bias, _, _, floor = epilogue.arguments(y)
        rest = y, not epilogue.empty, bias, floor
        threads.run(multiply_rows_in_place, padded, R, S, stride, packed, *rest)
    else:
        windows(padded, row_taps(R), S * C, stride, packed, y, (P, Q, 1, 0, 0), epilogue)


def weight_grad(dout: Array, x: Array, dweight: Array, stride: int, padding: int) -> None:
    """dweight (R, S, C, F) from dout (N, P, Q, F), x (N, H, W, C); F a multiple of LANES."""
    R, S, C, F = dweight.shape
    N, P, Q, _ = dout.shape
    padded, run = with_border(x, padding), S * C
    if Q < SHORT_ROW:
        sum_windows(dout, padded, row_taps(R), run, stride, dweight)
        return
    rows = round_up(run, REST_ROWS)
    parts, size = max(1, min(16, N * P // 16)), R * rows * F
    sums = workspace.scratch("parts", parts * size)
    threads.run_with_scratch(
        Q * F, multiply_rows_in_place_transposed, padded, stride, dout, R, rows, parts, sums
    )
    # of each kernel row `run` of the `rows` that were computed
    threads.run(sum_parts, sums, parts, size, rows * F, R, run * F, dweight.reshape(-1))


def row_taps(R: int) -> Taps:
    """One tap per row of the kernel, as long as the row."""
    return Taps(np.arange(R), np.arange(R), np.zeros(R, np.int64))
