"""1x1 convolutions with the factors of each product rounded to bf16, for CPUs with AVX512_BF16.

Asked for by the backend's name, `cpu:bf16`; float32 never comes here. Weights, optimizer, batch
norms and loss stay float32, and so do the sums of the products.

**bf16** is the upper half of a float32: the same range, 8 bits of precision instead of 24. One
instruction, `vdpbf16ps`, multiplies 16 pairs with 16 pairs and adds each lane's two products to 16
float32 sums: twice as many products as a multiply-add in the same time (228 against 115 GFLOP/s on
a core of AMD Zen 4). A *word* of 32 bits holds the bf16 of two numbers that follow each other in
the sum, and arrays of words are float32 to Numba. So the register block of generators.py serves as
it is, with another multiply-add, on half as many rows:

    c[i, j] += a[i, 2k] * b[2k, j] + a[i, 2k + 1] * b[2k + 1, j]

**Operands.** The channels of a pixel are converted in order, which makes words of neighbours. Of
weights, and of both factors of the weight gradient, two rows of a matrix are zipped. That happens
to what fits L2, right before it is multiplied.

The weight gradient reads pixels that no core sees coming, rows of 1 KiB, so it asks for the next
while it multiplies by these: 0.76 to 0.81 of its time (Zen 4, all 1x1 of ResNet-50).

**Which layers.** 1x1 with either stride, most of ResNet-50. 3x3 stays float32: F(4,3) of Winograd
needs a quarter of the products, which is faster (0.6 of this file's time) and more exact.

**Errors.** Each factor is wrong by up to 2^-8 of its size. Results are wrong by 2e-3 to 3e-3 of the
largest, where float32 has 2e-7. With each number in two halves and three products (bf16x3) it would
be 5e-6, but three of twice the speed are slower than one in float32 (README.md, Tried).
"""

from __future__ import annotations

import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from numpy import ndarray as Array

from tinyft.backends.cpu.codegen import compiler
from tinyft.backends.cpu.codegen.cache import helper, kernel
from tinyft.backends.cpu.codegen.simd import (
    ADDRESS,
    BLOCK_ROWS,
    INT32,
    LANES,
    PANEL,
    REGISTER,
    REST_ROWS,
    VECTOR,
    has,
    instruction,
    write_call,
    write_load,
)
from tinyft.backends.cpu.codegen.vectors import finish_streams, offset_between, vload, vset1, vstore
from tinyft.backends.cpu.conv.gemm import make_multiply, pack, row_apart, sum_parts
from tinyft.backends.cpu.conv.implicit_gemm import clear, put_pixels
from tinyft.backends.cpu.conv.layer import Epilogue, Layer, copied, round_up
from tinyft.backends.cpu.memory_bound.arrays import large
from tinyft.backends.cpu.runtime import packed_weights, threads, workspace
from tinyft.backends.cpu.runtime.work_stealing import next_item, next_start

STEPS = 512  # words of a row of weights per pass: 64 KiB of a panel
PIXELS = 128  # of a block of the weight gradient
MOST = 256  # channels and filters of its items, at most
ITEMS = 8  # at most, where pixels are cut


def why_not() -> str | None:
    """Say why products in bf16 do not work here; None if they do."""
    if not (has("avx512bf16") and LANES == 16):
        return "needs a CPU with AVX512_BF16 (AMD Zen 4 or 5, Intel Cooper Lake or from 2023)"
    if compiler.lacks or llvm.llvm_version_info[0] < 20:
        return "needs Numba 0.62 or later, and one that `tinyft doctor` finds nothing missing in"
    return None


def suits(what: str, layer: Layer) -> bool:
    """1x1 kernels with whole panels of channels and filters."""
    F, C, R, S = layer.weight
    return R == S == 1 and layer.padding == 0 and C % PANEL == F % PANEL == 0


# ------------------------------------------------------------------------------------ instructions


class _BFloat(ir.Type):
    """LLVM's type of a bf16 number, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


PAIRS = ir.VectorType(_BFloat(), 2 * LANES)
INTRINSICS = "llvm.x86.avx512bf16"


def write_multiply_add_pairs(builder, x, y, z):
    """z + the two products in each lane of registers of words"""
    x, y = builder.bitcast(x, PAIRS), builder.bitcast(y, PAIRS)
    return write_call(builder, f"{INTRINSICS}.dpbf16ps.512", REGISTER, z, x, y)


def _write_rounded(builder, first, second):
    """The bf16 of 32 numbers, to the nearest, to even in the middle."""
    return write_call(builder, f"{INTRINSICS}.cvtne2ps2bf16.512", PAIRS, second, first)


@instruction(VECTOR, ADDRESS)
def vload_words(builder, pointer):
    """vload_words(a, i): words of the 32 floats from a[i], two that follow each other in each"""
    second = builder.gep(pointer, [INT32(LANES)])
    rounded = _write_rounded(builder, write_load(builder, pointer), write_load(builder, second))
    return builder.bitcast(rounded, REGISTER)


@instruction(VECTOR, VECTOR, VECTOR)
def vzip(builder, x, y):
    """vzip(x, y): words (x[i], y[i])"""
    rounded = _write_rounded(builder, x, y)
    order = [i // 2 + LANES * (i % 2) for i in range(2 * LANES)]
    mask = ir.Constant(ir.VectorType(INT32, 2 * LANES), order)
    return builder.bitcast(builder.shuffle_vector(rounded, rounded, mask), REGISTER)


multiply_ahead = make_multiply(numbers=2, multiply_add=write_multiply_add_pairs)


# ----------------------------------------------------------------------------------------- weights


@kernel
def zip_rows(share, x, words):
    """words (K / 2, N) of x (K, N): word (k, j) is x[2k, j] and x[2k + 1, j]. An item is a row."""
    half, N = words.shape
    flat, out = x.reshape(x.size), words.reshape(words.size)
    k = next_item(share, half)
    while k < half:
        for j in range(0, N, LANES):
            one, two = vload(flat, 2 * k * N + j), vload(flat, (2 * k + 1) * N + j)
            vstore(out, k * N + j, vzip(one, two))
        k = next_item(share, half)


@kernel
def convert_rows(share, x, words):
    """words (M, K / 2) of x (M, K): word (i, k) is x[i, 2k] and x[i, 2k + 1]."""
    M, half = words.shape
    flat, out = x.reshape(x.size), words.reshape(words.size)
    i = next_item(share, M)
    while i < M:
        for k in range(0, half, LANES):
            vstore(out, i * half + k, vload_words(flat, 2 * (i * half + k)))
        i = next_item(share, M)


def packed_words(weight: Array, transposed: bool) -> Array:
    """Panels of weight (1, 1, C, F), or of its transpose, with a word for two rows."""
    C, F = weight.shape[2:]
    words = workspace.scratch("words", C * F // 2)[: C * F // 2]
    words = words.reshape((C, F // 2) if transposed else (C // 2, F))
    threads.run(convert_rows if transposed else zip_rows, weight.reshape(C, F), words)
    return pack(words[None, None], np.zeros(1, np.int64), transposed, "packed words")


# ---------------------------------------------------------------------- forward and input gradient


@helper
def place(x, number, P, Q, stride):
    """Find the pixel of x that output pixel `number` is made of. (Divisions for each pixel of a
    56x56 map took 6 to 11 % of 1x1 convolutions.)
    """
    _, H, W, C = x.shape
    if stride == 1:
        return number * C
    picture, within = divmod(number, P * Q)
    row, column = divmod(within, Q)
    return ((picture * H + row * stride) * W + column * stride) * C


@kernel
def multiply_pixels(share, work, x, every, packed, y, grid, epilogue, direct, layout):
    """y = max(x[p every, q every] @ weights + bias + residual, floor) at the pixels of a grid in y,
    as `multiply_windows` of implicit_gemm.py takes it, for its row p and column q. layout: pixels
    of an item, words of a converted pixel, whether y is written past the caches, unless direct.
    """
    N, C = x.shape[0], x.shape[3]
    F = y.shape[3]
    rows, columns = grid[:2]
    pixels, pitch, large = layout
    total, steps = N * rows * columns, C // 2
    x_flat, y_flat = x.reshape(x.size), y.reshape(y.size)
    results = pixels * pitch
    item = next_start(share, pixels, total)
    while item < total:
        count = min(pixels, total - item)
        for i in range(count):
            pixel = place(x, item + i, rows, columns, every)
            for c in range(0, steps, LANES):
                vstore(work, i * pitch + c, vload_words(x_flat, pixel + 2 * c))
        out, out_offset, out_row = work, results, F + LANES
        if direct and count % REST_ROWS == 0:
            out, out_offset, out_row = y_flat, item * F, F
        full = (count + REST_ROWS - 1) // REST_ROWS * REST_ROWS
        for k in range(0, steps, STEPS):
            multiply_ahead(
                work, k, pitch, 1, packed, 0, steps, k, out, out_offset, out_row, full, F,
                min(STEPS, steps - k), k, 0, 0, 0, 0,
            )  # fmt: skip
        if not (direct and count % REST_ROWS == 0):
            put_pixels(work, results, y, item, count, grid, epilogue, large)
        item = next_start(share, pixels, total)
    finish_streams()


def _pixels(
    x: Array, every: int, packed: Array, y: Array, apart: int, grid: tuple, epilogue: Epilogue
) -> None:
    """Run `multiply_pixels` with buffers that fit."""
    C, F = x.shape[3], y.shape[3]
    total, pitch = x.shape[0] * grid[0] * grid[1], C // 2 + LANES
    items = round_up(-(-total // (8 * BLOCK_ROWS)), 4)  # equal shares for 2 or 4 threads
    pixels = round_up(-(-total // items), REST_ROWS)
    direct = row_apart(F) == F and epilogue.empty and apart == 1
    threads.run_with_scratch(
        pixels * (pitch + F + LANES), multiply_pixels, x, every, packed, y,
        (*grid, apart, 0, 0), epilogue.arguments(y), direct, (pixels, pitch, large(y)),
    )  # fmt: skip


def forward(
    x: Array, weight: Array, y: Array, epilogue: Epilogue, stride: int, padding: int
) -> None:
    """y (N, P, Q, F) from x (N, H, W, C), weight (1, 1, C, F)."""

    def make() -> Array:
        packed = packed_words(weight, False)
        return copied(packed) if packed_weights.is_constant(weight) else packed

    packed = packed_weights.keep(weight, "packed words", make)
    _pixels(x, stride, packed, y, 1, y.shape[1:3], epilogue)


def input_grad(dout: Array, weight: Array, dx: Array, stride: int, padding: int) -> None:
    """dx (N, H, W, C) from dout (N, P, Q, F), weight (1, 1, C, F)."""
    if stride > 1:
        threads.run(clear, dx.reshape(-1))  # the stride jumps over some pixels
    _pixels(dout, 1, packed_words(weight, True), dx, stride, dout.shape[1:3], Epilogue())


# --------------------------------------------------------------------------------- weight gradient


@kernel
def multiply_pixels_transposed(share, work, x, stride, dout, sums, cut, layout):
    """sums[part] = x' @ dout over the part's pixels, of which two make a word. An item is one part,
    and of the channels and filters as many as `cut` says: parts, and the item's channels, filters.

    layout: floats of a part of `sums`, of its rows, words of a zipped row, rows of a panel.
    """
    parts, channels, filters = cut
    size, sums_pitch, pitch, panel_rows = layout
    C, (N, P, Q, F) = x.shape[3], dout.shape
    total = N * P * Q
    pairs = (total + 1) // 2
    channel_groups, filter_groups = (C + channels - 1) // channels, (F + filters - 1) // filters
    packed = PIXELS // 2 * pitch  # where in `work` the panels of dout are
    zero = vset1(np.float32(0))
    items = parts * channel_groups * filter_groups
    item = next_item(share, items)
    while item < items:
        group, filter_group = divmod(item, filter_groups)
        part, channel_group = divmod(group, channel_groups)
        first_channel, first_filter = channel_group * channels, filter_group * filters
        count, filter_count = min(channels, C - first_channel), min(filters, F - first_filter)
        to = part * size + first_channel * sums_pitch + first_filter
        start, stop = part * pairs // parts * 2, min(total, (part + 1) * pairs // parts * 2)
        for first in range(start, stop, PIXELS):
            pixels = min(PIXELS, stop - first)
            for i in range(0, pixels, 2):
                alone = i + 1 == pixels  # the last of an odd number
                at, source, second = i // 2 * pitch, (first + i) * F + first_filter, 0
                pixel = place(x, first + i, P, Q, stride) + first_channel
                if not alone:
                    second = place(x, first + i + 1, P, Q, stride) + first_channel
                for c in range(0, count, LANES):
                    other = zero if alone else vload(x, second + c)
                    vstore(work, at + c, vzip(vload(x, pixel + c), other))
                for f in range(0, filter_count, LANES):
                    other = zero if alone else vload(dout, source + F + f)
                    panel = packed + f // PANEL * PANEL * panel_rows + i // 2 * PANEL + f % PANEL
                    vstore(work, panel, vzip(vload(dout, source + f), other))
            ahead_x, ahead_dout, following = 0, 0, first + PIXELS
            if following + PIXELS <= stop:
                if stride == 1:
                    ahead_x = offset_between(work, 0, x, following * C + first_channel)
                ahead_dout = offset_between(work, packed, dout, following * F + first_filter)
            multiply_ahead(
                work, 0, 1, pitch, work, packed, panel_rows, 0, sums, to, sums_pitch, count,
                filter_count, (pixels + 1) // 2, first - start, ahead_x, ahead_dout, C, F,
            )  # fmt: skip
        item = next_item(share, items)


def weight_grad(dout: Array, x: Array, dweight: Array, stride: int, padding: int) -> None:
    """dweight (1, 1, C, F) from dout (N, P, Q, F), x (N, H, W, C)."""
    C, F = dweight.shape[2:]
    channels, filters = min(C, MOST), min(F, MOST)
    items = -(-C // channels) * -(-F // filters)
    parts = max(1, min(ITEMS // items, dout.size // F // 256))
    pitch, sums_pitch = channels + LANES, row_apart(F)
    size, panel_rows = C * sums_pitch, PIXELS // 2 + 1  # panels not a power of 2 apart
    direct = parts == 1 and sums_pitch == F
    sums = dweight if direct else workspace.scratch("parts", parts * size)
    threads.run_with_scratch(
        PIXELS // 2 * pitch + panel_rows * filters, multiply_pixels_transposed, x, stride, dout,
        sums.reshape(-1), (parts, channels, filters), (size, sums_pitch, pitch, panel_rows),
    )  # fmt: skip
    if not direct:
        threads.run(sum_parts, sums, parts, size, sums_pitch, C, F, dweight.reshape(-1))
