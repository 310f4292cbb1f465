"""ReLU, sums, dropout, pictures: one pass over memory each, by all threads.

Definition: `relu`, `relu_grad`, `add`, `sum`, `dropout`, `images` in `backends/reference.py`; the
random words in `backends/philox.py`. Results have the same bits as there.

All but the sum are plain loops: LLVM makes vector code of them by itself, since nothing has to stay
in a register from one element to the next. An item is a slice of 32768 elements; taking the slice
first also tells LLVM that no index is negative.

**Dropout** draws its words where it needs them. NumPy computes ten rounds over arrays of the whole
size, the kernel keeps the four words of a block in registers.

**A sum over rows**, as the gradient of a bias needs it, is made in float64 as in the definition,
but in pieces of rows by all threads, and without NumPy's copy of the array in float64.

**Pictures** have 256 values a channel, so the definition itself, applied to all of them, is a table
and the kernel looks pixels up in it.

Milliseconds: this / the NumPy reference / PyTorch 2.14.1, float32, one thread of an Intel Xeon with
AVX-512 that other work shared, minimum of 9:

    ReLU, (16, 56, 56, 64)          1.4 / 1.3 / 1.6     (one thread of NumPy does as well)
    its gradient                    2.1 /  16 / 2.1
    dropout                          20 /  77 / 34
    pictures, (16, 224, 224, 3)     1.7 /  14 / 5.1
    sum over rows, (16, 56, 56, 64) 0.6 / 1.7 / 0.8     (PyTorch's in float32)

A sum of two gradients writes what is large past the caches: (16, 56, 56, 64) takes 0.36 instead of
0.48 ms, two threads of an idle AMD Zen 5.
"""

from __future__ import annotations

import numpy as np

from tinyft.backends.cpu.codegen.cache import helper, kernel
from tinyft.backends.cpu.codegen.simd import LANES
from tinyft.backends.cpu.codegen.vectors import finish_streams, vload, vput
from tinyft.backends.cpu.memory_bound.arrays import (
    PIECE,
    flat,
    large,
    rows_per_piece,
    run_pieces,
    suitable,
)
from tinyft.backends.cpu.runtime import workspace
from tinyft.backends.cpu.runtime.work_stealing import next_start
from tinyft.backends.philox import HALF, KEY_STEPS, MASK, MULTIPLIERS
from tinyft.backends.reference import Backend, rows_of

FIRST_MULTIPLIER, SECOND_MULTIPLIER = MULTIPLIERS
FIRST_STEP, SECOND_STEP = (np.uint64(step) for step in KEY_STEPS)


@kernel
def rectify(share, x, out):
    """out = max(x, 0), NaN where x is NaN"""
    while True:
        start = next_start(share, PIECE, x.size)
        if start >= x.size:
            break
        values, results = x[start : start + PIECE], out[start : start + PIECE]
        for i in range(values.size):
            results[i] = np.float32(0) if values[i] <= 0 else values[i]


@kernel
def rectify_gradient(share, dout, out, dx):
    """forward was: out = max(x, 0); so: dx = 0 where out <= 0, else dout"""
    while True:
        start = next_start(share, PIECE, dout.size)
        if start >= dout.size:
            break
        gradients, outputs = dout[start : start + PIECE], out[start : start + PIECE]
        results = dx[start : start + PIECE]
        for i in range(gradients.size):
            results[i] = np.float32(0) if outputs[i] <= 0 else gradients[i]


@kernel
def add_pairs(share, a, b, out, large):
    """out = a + b"""
    while True:
        start = next_start(share, PIECE, a.size)
        if start >= a.size:
            break
        stop = min(a.size, start + PIECE)
        rest = stop - stop % LANES
        for i in range(start, rest, LANES):
            vput(out, i, vload(a, i) + vload(b, i), large)
        for i in range(rest, stop):
            out[i] = a[i] + b[i]
    finish_streams()


@helper
def random_words(block, first_stream, second_stream, first_key, second_key):
    """The four words of one block of Philox4x32-10: `philox4x32` of philox.py, for one counter."""
    a, b, c, d = block & MASK, block >> HALF, first_stream, second_stream
    for _ in range(10):
        first, second = a * FIRST_MULTIPLIER, c * SECOND_MULTIPLIER
        a, b = (second >> HALF) ^ b ^ first_key, second & MASK
        c, d = (first >> HALF) ^ d ^ second_key, first & MASK
        first_key = (first_key + FIRST_STEP) & MASK
        second_key = (second_key + SECOND_STEP) & MASK
    return a, b, c, d


@kernel
def drop(share, x, threshold, scale, streams, keys, out):
    """out = x * scale where the element's word reaches the threshold, else 0. Element i has word
    i % 4 of block i // 4.
    """
    zero = np.float32(0)
    while True:
        start = next_start(share, PIECE, x.size)
        if start >= x.size:
            break
        values, results = x[start : start + PIECE], out[start : start + PIECE]
        for block in range(-(-values.size // 4)):
            words = random_words(
                np.uint64(start // 4 + block), streams[0], streams[1], keys[0], keys[1]
            )
            i = block * 4
            if i + 4 <= values.size:
                results[i] = values[i] * scale if words[0] >= threshold else zero
                results[i + 1] = values[i + 1] * scale if words[1] >= threshold else zero
                results[i + 2] = values[i + 2] * scale if words[2] >= threshold else zero
                results[i + 3] = values[i + 3] * scale if words[3] >= threshold else zero
            else:
                for j in range(values.size - i):
                    results[i + j] = values[i + j] * scale if words[j] >= threshold else zero


@kernel
def look_up(share, pixels, table, rows, out):
    """out[i, c] = table[c, pixels[i, c]]: pixels out (M, C), table (C, 256)"""
    M, C = pixels.shape
    while True:
        begin = next_start(share, rows, M)
        if begin >= M:
            break
        for i in range(begin, min(M, begin + rows)):
            for c in range(C):
                out[i, c] = table[c, pixels[i, c]]


@kernel
def sum_rows(share, x, M, C, rows, sums):
    """Per piece of rows: the sum of each channel. x (M * C,) -> sums (pieces, C) float64"""
    while True:
        begin = next_start(share, rows, M)
        if begin >= M:
            break
        total = sums[begin // rows]
        for row in range(begin, min(M, begin + rows)):
            values = x[row * C : (row + 1) * C]
            for c in range(values.size):
                total[c] += values[c]


class Elementwise(Backend):
    """The kernels of the backend that treat each element alone."""

    def relu(self, x):
        if not suitable(x):
            return super().relu(x)
        out = workspace.empty(x.shape)
        run_pieces(rectify, _pieces(x), flat(x), out.reshape(-1))
        return out

    def relu_grad(self, dout, out):
        if not suitable(dout, out):
            return super().relu_grad(dout, out)
        dx = workspace.empty(dout.shape)
        run_pieces(rectify_gradient, _pieces(dout), flat(dout), flat(out), dx.reshape(-1))
        return dx

    def add(self, a, b):
        if not suitable(a, b):
            return super().add(a, b)
        out = workspace.empty(a.shape)
        run_pieces(add_pairs, _pieces(a), flat(a), flat(b), out.reshape(-1), large(out))
        return out

    def dropout(self, x, probability, seed, stream):
        if not suitable(x):
            return super().dropout(x, probability, seed, stream)
        out = workspace.empty(x.shape)
        scale = np.float32(1 / (1 - probability))
        threshold = np.uint64(np.uint32(probability * 2**32))
        words = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
        streams = np.array([s & 0xFFFFFFFF for s in stream], np.uint64)
        keys = np.array(words, np.uint64)
        run_pieces(drop, _pieces(x), flat(x), threshold, scale, streams, keys, out.reshape(-1))
        return out

    def images(self, pixels, mean, std, dtype):
        C = pixels.shape[-1] if pixels.ndim else 0
        shapes = {np.shape(mean), np.shape(std)}
        if (
            np.dtype(dtype) != np.float32
            or pixels.dtype != np.uint8
            or pixels.size == 0
            or shapes != {(C,)}
        ):
            return super().images(pixels, mean, std, dtype)
        every = np.repeat(np.arange(256, dtype=np.uint8)[:, None], C, axis=1)
        table = np.ascontiguousarray(super().images(every, mean, std, dtype).T)
        out = workspace.empty(pixels.shape)
        rows = max(1, PIECE // C)
        M = pixels.size // C
        run_pieces(
            look_up, -(-M // rows), flat(pixels).reshape(M, C), table, rows, out.reshape(M, C)
        )
        return out

    def sum(self, x, axis, keepdims=False):
        if axis is None or x.ndim < 2 or tuple(axis) != rows_of(x) or not suitable(x):
            return super().sum(x, axis, keepdims)
        C = x.shape[-1]
        M, rows = x.size // C, rows_per_piece(C)
        pieces = -(-M // rows)
        sums = np.zeros((pieces, C))
        run_pieces(sum_rows, pieces, flat(x), M, C, rows, sums)
        out = sums.sum(axis=0).astype(np.float32)
        return out.reshape((1,) * (x.ndim - 1) + (C,)) if keepdims else out


def _pieces(x) -> int:
    return -(-x.size // PIECE)
