"""Convolutions of maps so small that every result sees all of its picture: no zero is multiplied.

Defined by `Backend.conv2d`, `conv2d_input_grad` and `conv2d_weight_grad` of
tinyft/backends/reference.py.

A 3x3 window on a 2x2 map, as at the end of a ResNet-18 for pictures of 64 pixels, has 4 of its 9
places inside the picture; the other 5 multiply zeros. Here nothing is gathered: result (p, q) is
the sum over the pixels (h, w) of x[:, h, w] times the weights at the window's place (h - p +
padding, w - q + padding), each a matrix product (pictures x C) @ (C x F). The gradients change the
roles:

    y[:, target]  = sum over sources of x[:, source] @ weight[tap]        from (h, w) to (p, q)
    dx[:, target] = sum over sources of dout[:, source] @ weight[tap]'    from (p, q) to (h, w)
    dweight[tap]  = sum over its pairs of x[:, (h, w)]' @ dout[:, (p, q)]

64 maps of 2x2x512 take 2.7, 2.9 and 2.2 ms, with windows 4.9, 5.1 and 4.0 (Intel Xeon, 2 threads).

**Infinity times 0 is NaN**, so by the definition an infinite weight makes NaN of the results that
meet it in their padding. Every weight meets a pixel of some result, which it makes infinite or NaN;
where that is seen, and where dout is not finite, windows compute it all again. dx needs none of
this: its definition multiplies no padding.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.cache import kernel
from tinyft.backends.cpu.codegen.simd import LANES, PANEL, REST_ROWS
from tinyft.backends.cpu.codegen.vectors import vfma, vload, vmax, vset1, vstore
from tinyft.backends.cpu.conv import implicit_gemm
from tinyft.backends.cpu.conv.gemm import ITEM_COLUMNS, ITEM_ROWS, multiply, pack
from tinyft.backends.cpu.conv.implicit_gemm import packed_weight
from tinyft.backends.cpu.conv.layer import Epilogue, Layer, padded, round_up
from tinyft.backends.cpu.runtime import threads, workspace
from tinyft.backends.cpu.runtime.work_stealing import next_item

CHANNELS = 64  # rows of dweight that an item computes


@kernel
def multiply_maps(share, x, packed, packed_rows, taps, y, epilogue, zeros):
    """y[:, target] = max(sum over sources of x[:, source] @ packed[tap] + bias + residual, floor).

    x (N, sources, C), y (N, targets, F), taps (targets, sources): which C rows of the packed matrix
    are multiplied; N is a multiple of REST_ROWS. An item is ITEM_COLUMNS columns of a target, for
    ITEM_ROWS pictures. zeros (items, LANES): 0, or NaN if an item's sums are not finite.
    """
    bias, residual, has_residual, floor = epilogue
    N, sources, C = x.shape
    _, targets, F = y.shape
    x_flat, y_flat = x.reshape(x.size), y.reshape(y.size)
    parts = (N + ITEM_ROWS - 1) // ITEM_ROWS
    zero, lowest = vset1(np.float32(0)), vset1(floor)
    items = zeros.shape[0]
    item = next_item(share, items)
    while item < items:
        panel, rest = divmod(item, targets * parts)
        target, part = divmod(rest, parts)
        first, f = part * ITEM_ROWS, panel * ITEM_COLUMNS
        rows, columns = min(ITEM_ROWS, N - first), min(ITEM_COLUMNS, F - f)
        to = (first * targets + target) * F + f
        for source in range(sources):
            tap, ahead = taps[target, source], 0
            if source + 1 < sources:  # fetch the weights of the next
                ahead = (taps[target, source + 1] - tap) * C * PANEL
            multiply(
                x_flat, (first * sources + source) * C, sources * C, 1,
                packed, f * packed_rows, packed_rows, tap * C,
                y_flat, to, targets * F, rows, columns, C, source, 0, ahead,
            )  # fmt: skip
        total = zero
        for at in range(to, to + rows * targets * F, targets * F):
            for j in range(0, columns, LANES):
                value = vload(y, at + j)
                total = vfma(value, zero, total)
                value = value + vload(bias, f + j)
                if has_residual:
                    value = value + vload(residual, at + j)
                vstore(y, at + j, vmax(value, lowest))
        vstore(zeros, item * LANES, total)
        item = next_item(share, items)


@kernel
def multiply_pairs(share, x, packed, packed_rows, dweight, pairs, starts):
    """dweight[tap] = sum over the tap's pairs of x[:, pixel]' @ dout[:, result].

    x (N, pixels, C), packed: the panels of dout (results * N, F), dweight (taps, C, F), pairs (all,
    2): pixel and result; those of a tap are from starts[tap] to starts[tap + 1]. An item is
    CHANNELS rows of a tap.
    """
    N, pixels, C = x.shape
    taps, _, F = dweight.shape
    x_flat, out = x.reshape(x.size), dweight.reshape(dweight.size)
    groups = (C + CHANNELS - 1) // CHANNELS
    items = taps * groups
    item = next_item(share, items)
    while item < items:
        tap, group = divmod(item, groups)
        c = group * CHANNELS
        for i in range(starts[tap], starts[tap + 1]):
            multiply(
                x_flat, pairs[i, 0] * C + c, 1, pixels * C,
                packed, 0, packed_rows, pairs[i, 1] * N,
                out, (tap * C + c) * F, F, min(CHANNELS, C - c), F, N, i - starts[tap], 0, 0,
            )  # fmt: skip
        item = next_item(share, items)


def suits(what: str, layer: Layer) -> bool:
    """Tell whether all windows reach over the whole picture, each place of them meets it, and there
    are as many pictures as a micro-kernel has rows at least: for one, windows are 1.1 to 1.6 times
    as fast.
    """
    (N, H, W, _), (_, _, R, S), padding = layer.x, layer.weight, layer.padding
    sees_all = layer.stride == 1 and padding > 0 and H + padding == R and W + padding == S
    return sees_all and N >= REST_ROWS


@functools.lru_cache(maxsize=64)
def tap_table(R: int, S: int, padding: int) -> Array:
    """Give the place r * S + s of each pixel (h, w) in the window of result (p, q): (P Q, H W)."""
    r = np.arange(R - padding) - np.arange(padding + 1)[:, None] + padding  # (P, H)
    s = np.arange(S - padding) - np.arange(padding + 1)[:, None] + padding  # (Q, W)
    numbers = r[:, None, :, None] * S + s[None, :, None, :]  # (P, Q, H, W)
    return numbers.reshape(len(r) * len(s), -1)


@functools.lru_cache(maxsize=64)
def pairs_of_taps(R: int, S: int, padding: int) -> tuple[Array, Array]:
    """For each place of the windows all (pixel, result) that meet there, one place after the other,
    and where each begins: (all, 2), (R S + 1,).
    """
    table = tap_table(R, S, padding)
    pairs_of_taps = [np.argwhere(table == tap)[:, ::-1] for tap in range(R * S)]
    pairs = np.ascontiguousarray(np.concatenate(pairs_of_taps))
    return pairs, np.cumsum([0, *map(len, pairs_of_taps)])


def forward(
    x: Array, weight: Array, y: Array, epilogue: Epilogue, stride: int, padding: int
) -> None:
    """y (N, P, Q, F) from x (N, H, W, C), weight (R, S, C, F); C and F multiples of LANES."""
    R, S, C, _ = weight.shape
    packed = packed_weight(weight)
    taps = tap_table(R, S, padding)
    if not _multiply_maps(x, packed, R * S * C, taps, y, epilogue):
        implicit_gemm.forward(x, weight, y, epilogue, stride, padding)


def input_grad(dout: Array, weight: Array, dx: Array, stride: int, padding: int) -> None:
    """dx (N, H, W, C) from dout (N, P, Q, F), weight (R, S, C, F); C and F multiples of LANES."""
    R, S, _, F = weight.shape
    packed = pack(weight, np.arange(R * S), True, "packed weight")
    taps = np.ascontiguousarray(tap_table(R, S, padding).T)
    _multiply_maps(dout, packed, R * S * F, taps, dx, Epilogue())


def _multiply_maps(x, packed, packed_rows, taps, y, epilogue) -> bool:
    """Tell whether all sums are finite. What has no multiple of REST_ROWS pictures is copied."""
    rows, F = round_up(y.shape[0], REST_ROWS), y.shape[3]
    whole = y if rows == y.shape[0] else workspace.empty((rows, *y.shape[1:]))
    if epilogue.residual is not None:
        epilogue = epilogue._replace(residual=padded(epilogue.residual, whole.shape))
    items = len(taps) * -(-F // ITEM_COLUMNS) * -(-rows // ITEM_ROWS)
    zeros = np.empty((items, LANES), np.float32)
    threads.run(
        multiply_maps, _maps(padded(x, (rows, *x.shape[1:]))), packed, packed_rows, taps,
        _maps(whole), epilogue.arguments(whole), zeros,
    )  # fmt: skip
    if whole is not y:
        y[...] = whole[: y.shape[0]]
    return not zeros.any()


def weight_grad(dout: Array, x: Array, dweight: Array, stride: int, padding: int) -> None:
    """dweight (R, S, C, F) from dout (N, P, Q, F), x (N, H, W, C); C and F multiples of LANES."""
    R, S, C, F = dweight.shape
    N, P, Q, _ = dout.shape
    if not np.isfinite(dout).all():
        implicit_gemm.weight_grad(dout, x, dweight, stride, padding)
        return
    results = np.ascontiguousarray(dout.transpose(1, 2, 0, 3))  # (P, Q, N, F)
    packed = pack(results, np.arange(P * Q), False, "packed dout")
    pairs, starts = pairs_of_taps(R, S, padding)
    dweight = dweight.reshape(R * S, C, F)
    threads.run(multiply_pairs, _maps(x), packed, P * Q * N, dweight, pairs, starts)


def _maps(x: Array) -> Array:
    """(N, H, W, C) -> (N, H W, C)"""
    return x.reshape(x.shape[0], -1, x.shape[3])
