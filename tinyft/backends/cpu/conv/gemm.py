"""GEMM, the matrix product that every convolution here comes down to, in the manner of GotoBLAS.

Defined by `Backend.matmul` of tinyft/backends/reference.py.

As in GotoBLAS and BLIS the innermost loop is a *micro-kernel*, whose block of sums stays in
registers, and the right matrix B is *packed*: cut into panels of PANEL columns, each stored row
after row, which the micro-kernel reads as one stream. Unlike there the left one, A, is read where
it lies, by two strides. All rows of A pass by a panel of B before the next one (K x 32 numbers: 64
KiB for K = 512). A short panel stays in the L1 cache; a long one comes from L2, as does A. Two
loads of B serve 24 multiply-adds, which L2 is fast enough for: with operands there, 12 x 2
registers do 215 to 220 of a core's 230 GFLOP/s in one sum, 190 of 240 with sums in pieces (Intel
Sapphire Rapids). No further level of blocking is needed.

**Prefetching.** A larger B (the 9.4 MB of transformed filters of a 14x14x256 layer) comes from L3
again for each block of A. So a micro-kernel can ask for the lines that are needed next while it
multiplies by those at hand: 6 to 14 % of Winograd's layers from 28x28x128 on, 9 to 12 % of the
direct ones that have over 1 MiB of weights. The same with an A that was not gathered before, the
pictures of a 1x1 convolution: 10 to 35 % on 56x56 maps (Intel Xeon, 2 threads). Where all is found
in L2 the requests cost 4 to 5 %, so there are two versions.

Letters: A is M x K, B is K x N, the result M x N.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.cache import helper, kernel
from tinyft.backends.cpu.codegen.generators import make_register_block
from tinyft.backends.cpu.codegen.simd import (
    BLOCK_REGISTERS,
    BLOCK_ROWS,
    LANES,
    LINE,
    PANEL,
    REST_ROWS,
)
from tinyft.backends.cpu.codegen.vectors import vload, vstore, vtranspose
from tinyft.backends.cpu.conv.layer import copied, padded, round_up
from tinyft.backends.cpu.runtime import packed_weights, threads, workspace
from tinyft.backends.cpu.runtime.work_stealing import next_item, next_start

SAME_SET = 1024  # floats; so far apart lines fall into one set of the L1 cache
IN_L2 = 1 << 18  # floats (1 MiB) of B that are still in L2 when the next rows of A need them
BOTH_ROWS = math.lcm(BLOCK_ROWS, REST_ROWS)  # 20 rows are 6 + 6 + 4 + 4, or 12 + 4 + 4
ITEM_ROWS = 96  # of A: some 200 KiB at K = 512; as many results for each number of B from L3
ITEM_COLUMNS = max(PANEL, 2 * LINE)  # of B: as many results for each number of A from there
AHEAD = LINE * BLOCK_ROWS // 12  # floats of the next A to each step: a third more than its rows
SHORT_SUM = 32  # products that are added up in registers before they join the rest of their sum


@helper
def panel_offset(row, column, rows, columns):
    """Find element (row, column) of a packed rows x columns matrix. `columns` is a multiple of
    LANES; where it is no multiple of PANEL, a last panel of LANES columns follows.
    """
    first = column // PANEL * PANEL
    width = PANEL if first + PANEL <= columns else LANES
    return first * rows + row * width + (column - first)


@helper
def copy_to_panels(x, source, columns, packed, at, row, rows):
    """Row `row` of a packed matrix with `rows` rows at packed[at :] = x[source : source + columns].
    (Without divisions: with `panel_offset` a 1x1 convolution's weight gradient took 4 % more.)
    """
    column = 0
    while column + PANEL <= columns:
        to = at + column * rows + row * PANEL
        for i in range(0, PANEL, LANES):
            vstore(packed, to + i, vload(x, source + column + i))
        column += PANEL
    if column < columns:
        vstore(packed, at + column * rows + row * LANES, vload(x, source + column))


def in_pieces(rows: int, registers: int, unroll: int = 1, **how: Any):
    """A micro-kernel, and one that prefetches, with sums made of pieces of SHORT_SUM products.

    Each addition rounds by up to half a unit in the last place of what has grown so far, so that a
    sum of K random products, added one by one, is wrong by some 0.2 sqrt(K) units of its size.
    Pieces are short, and there are few of them: the best size is near sqrt(K), 8 to 23 for a
    ResNet's channels. 16 is hardly better than 32, which has half as many additions in memory
    (README.md, Errors). The one that prefetches runs rarely: `unroll` is for the other one. `how`:
    another `multiply_add`.
    """
    width = registers * LANES
    here = make_register_block(rows, registers, unroll=unroll, **how)
    ahead = make_register_block(rows, registers, ahead=True, **how)

    @helper
    def block(a, a_offset, a_row, a_step, b, b_offset, c, c_offset, c_row, K, accumulate):
        for k in range(0, K, SHORT_SUM):
            here(
                a, a_offset + k * a_step, a_row, a_step, b, b_offset + k * width,
                c, c_offset, c_row, min(SHORT_SUM, K - k), accumulate + k,
            )  # fmt: skip

    @helper
    def block_ahead(
        a, a_offset, a_row, a_step, b, b_offset, c, c_offset, c_row, K, accumulate,
        ahead_a, step_a, ahead_b, step_b,
    ):  # fmt: skip
        for k in range(0, K, SHORT_SUM):
            ahead(
                a, a_offset + k * a_step, a_row, a_step, b, b_offset + k * width,
                c, c_offset, c_row, min(SHORT_SUM, K - k), accumulate + k,
                ahead_a + k * (step_a - a_step), step_a, ahead_b + k * (step_b - width), step_b,
            )  # fmt: skip

    return block, block_ahead


def make_multiply(numbers: int = 1, **how: Any):
    """Write `multiply_ahead` with micro-kernels of one kind: `how` as `in_pieces` takes it, and how
    many `numbers` of a row or column of the operands an element stands for.
    """
    wide, wide_ahead = in_pieces(BLOCK_ROWS, BLOCK_REGISTERS, unroll=4, **how)
    wide_rest, _ = in_pieces(REST_ROWS, BLOCK_REGISTERS, **how)
    narrow, _ = in_pieces(BLOCK_ROWS, 1, **how)
    narrow_rest, _ = in_pieces(REST_ROWS, 1, **how)

    @helper
    def multiply_ahead(
        a, a_offset, a_row, a_step, b, b_offset, b_rows, b_first, c, c_offset, c_row, M, N, K,
        accumulate, ahead_a, ahead_b, ahead_a_row, ahead_b_row,
    ):  # fmt: skip
        """c (M, N) (+)= A (M, K) @ B[b_first : b_first + K] (K, N).

        `accumulate` 0 overwrites c, any other number adds to it: callers pass the counter of the
        loop that they add up over. M is a multiple of REST_ROWS, N of LANES, K >= 1. A's element
        (i, k) is at a_offset + i * a_row + k * a_step. B is a packed matrix of `b_rows` rows, at
        b_offset.

        If not 0, ahead_a and ahead_b say how many floats from here the A and the panel of B lie
        that are needed next and not in L2. They are fetched meanwhile: the next A while the first
        panel is multiplied, and a panel's successor while it is multiplied by the first rows.
        ahead_a_row and ahead_b_row: 0 if they lie line after line; for the K * `numbers` rows of a
        matrix, of each of which a line is fetched, how many floats these are apart. The second K
        of them are fetched during the second panel, and by the second rows.
        """
        full = M // BOTH_ROWS * BOTH_ROWS
        line_a, step_a = (AHEAD, ahead_a_row) if ahead_a_row else (K * AHEAD, AHEAD)
        step_b = ahead_b_row if ahead_b_row else PANEL
        j = 0
        while j + PANEL <= N:
            panel = b_offset + j * b_rows + b_first * PANEL
            next_b = ahead_b + (j - j * b_rows if ahead_b_row else 0)
            for i in range(0, full, BLOCK_ROWS):
                a_at, c_at = a_offset + i * a_row, c_offset + i * c_row + j
                fetch_a = ahead_a != 0 and j < numbers * PANEL
                fetch_b = ahead_b != 0 and i < numbers * BLOCK_ROWS
                if fetch_a or fetch_b:
                    turn_a, turn_b = j // PANEL, i // BLOCK_ROWS
                    next_a = ahead_a + turn_a * K * step_a + turn_b * line_a - i * a_row
                    wide_ahead(
                        a, a_at, a_row, a_step, b, panel, c, c_at, c_row, K, accumulate,
                        next_a if fetch_a else 0, step_a if fetch_a else 0,
                        next_b + turn_b * K * step_b if fetch_b else 0, step_b if fetch_b else 0,
                    )  # fmt: skip
                else:
                    wide(a, a_at, a_row, a_step, b, panel, c, c_at, c_row, K, accumulate)
            for i in range(full, M, REST_ROWS):
                a_at, c_at = a_offset + i * a_row, c_offset + i * c_row + j
                wide_rest(a, a_at, a_row, a_step, b, panel, c, c_at, c_row, K, accumulate)
            j += PANEL
        if j < N:
            panel = b_offset + j * b_rows + b_first * LANES
            for i in range(0, full, BLOCK_ROWS):
                a_at, c_at = a_offset + i * a_row, c_offset + i * c_row + j
                narrow(a, a_at, a_row, a_step, b, panel, c, c_at, c_row, K, accumulate)
            for i in range(full, M, REST_ROWS):
                a_at, c_at = a_offset + i * a_row, c_offset + i * c_row + j
                narrow_rest(a, a_at, a_row, a_step, b, panel, c, c_at, c_row, K, accumulate)

    return multiply_ahead


multiply_ahead = make_multiply()


@helper
def multiply(
    a, a_offset, a_row, a_step, b, b_offset, b_rows, b_first, c, c_offset, c_row, M, N, K,
    accumulate, ahead_a, ahead_b,
):  # fmt: skip
    """Do as `multiply_ahead` where what is prefetched lies line after line."""
    multiply_ahead(
        a, a_offset, a_row, a_step, b, b_offset, b_rows, b_first, c, c_offset, c_row, M, N, K,
        accumulate, ahead_a, ahead_b, 0, 0,
    )  # fmt: skip


@helper
def next_panel(rows, columns):
    """Count floats to the panel of a packed B that is needed next; 0 if all of B stays in L2."""
    return rows * PANEL if rows * columns > IN_L2 else 0


@kernel
def pack_panels(share, weight, taps, transposed, packed):
    """Pack places `taps` (numbers r * S + s) of a kernel (R, S, C, F): rows (tap, c) and columns
    f, or rows (tap, f) and columns c if transposed. An item is one place and LANES channels.
    """
    C, F = weight.shape[2:]
    groups = (C + LANES - 1) // LANES
    items = taps.size * groups
    item = next_item(share, items)
    while item < items:
        tap, group = divmod(item, groups)
        first = group * LANES
        at = taps[tap] * C * F
        for f in range(0, F, LANES):
            if transposed:
                width = PANEL if first // PANEL * PANEL + PANEL <= C else LANES
                to = panel_offset(tap * F + f, first, taps.size * F, C)
                vtranspose(weight, at + first * F + f, F, packed, to, width)
            else:
                for c in range(first, min(C, first + LANES)):
                    to = panel_offset(tap * C + c, f, taps.size * C, F)
                    vstore(packed, to, vload(weight, at + c * F + f))
        item = next_item(share, items)


def pack(weight: Array, taps: Array, transposed: bool, name: str) -> Array:
    """The packed panels, in scratch memory that the next call with the same name overwrites (a
    constant's in memory of their own).

    weight (R, S, C, F): F is a multiple of LANES, and so is C if transposed.
    """
    packed = packed_weights.buffer(weight, name, taps.size * weight.shape[2] * weight.shape[3])
    threads.run(pack_panels, weight, taps, transposed, packed)
    return packed


@kernel
def sum_parts(share, parts, count, size, pitch, rows, columns, out):
    """out (rows, columns) = the sum of `count` matrices in order, each `size` floats long, its rows
    `pitch` floats apart. An item is some 4096 numbers.
    """
    group = max(1, 4096 // columns)
    first = next_start(share, group, rows)
    while first < rows:
        for row in range(first, min(rows, first + group)):
            for column in range(0, columns, LANES):
                total = vload(parts, row * pitch + column)
                for part in range(1, count):
                    total = total + vload(parts, part * size + row * pitch + column)
                vstore(out, row * columns + column, total)
        first = next_start(share, group, rows)


def row_apart(columns: int) -> int:
    """Floats from one row of results to the next: rows 4 KiB apart would lie in one set of L1."""
    return columns + LINE if columns % SAME_SET == 0 else columns


# ------------------------------------------------------------------------------------------- matmul


@kernel
def multiply_rows(share, a, packed, out):
    """out = a @ the packed matrix. An item is ITEM_ROWS rows and ITEM_COLUMNS columns."""
    M, K = a.shape
    N = out.shape[1]
    a_flat, out_flat = a.reshape(a.size), out.reshape(out.size)
    panels = (N + ITEM_COLUMNS - 1) // ITEM_COLUMNS
    items = (M + ITEM_ROWS - 1) // ITEM_ROWS * panels
    item = next_item(share, items)
    while item < items:
        rows, panel = divmod(item, panels)
        i, j = rows * ITEM_ROWS, panel * ITEM_COLUMNS
        multiply(
            a_flat, i * K, K, 1, packed, j * K, K, 0, out_flat, i * N + j, N,
            min(ITEM_ROWS, M - i), min(ITEM_COLUMNS, N - j), K, 0, 0, 0,
        )  # fmt: skip
        item = next_item(share, items)


def matmul(a: Array, b: Array) -> Array:
    """a (M, K) @ b (K, N) in float32, of any strides, not empty."""
    M, K, N = *a.shape, b.shape[1]
    out = workspace.empty((round_up(M, REST_ROWS), round_up(N, LANES)))
    transposed = b.T.flags.c_contiguous and K % LANES == 0  # a weight's view: packed as it lies
    b = padded(b.T, (out.shape[1], K)) if transposed else padded(b, (K, out.shape[1]))
    packed = pack(b[None, None], np.zeros(1, np.int64), transposed, "packed b")
    threads.run(multiply_rows, padded(a, (out.shape[0], K)), packed, out)
    return out if out.shape == (M, N) else copied(out[:M, :N])
