"""What an update did to a parameter: all sums of the ledger in one pass over memory.

Definition: `copy` and `update_sums` in `backends/reference.py`. NumPy makes some twenty passes with
float64 temporaries; this reads the parameter before and after and the gradient once. The order of
the elements does not matter to a sum, so all three are read as the parameter lies in memory.

Products and sums are in float64: a weight moves by a millionth of itself, and the sum of its
squares has to show that. LLVM may not reorder a sum of floats, so 16 of each kind run side by side
in an array that stays in the first cache; its inner loop is vector code. A piece's sums are kept
apart and added in order, so the bits do not depend on the number of threads.

Next: tinyft/backends/cpu/reductions.py
"""

from __future__ import annotations

import numpy as np

from tinyft.backends.cpu import workspace
from tinyft.backends.cpu.arrays import PIECE, run_pieces
from tinyft.backends.cpu.optimizers import in_memory_order
from tinyft.backends.cpu.simd import atomic_next, kernel
from tinyft.backends.reference import Backend

SIDE_BY_SIDE = 16  # two registers of eight float64 with AVX-512
SUMS = 8


@kernel
def copy_pieces(counter, thread, x, out):
    """out = x, both (size,)"""
    while True:
        start = atomic_next(counter, 0) * PIECE
        if start >= x.size:
            break
        out[start : start + PIECE] = x[start : start + PIECE]


@kernel
def sum_pieces(counter, thread, before, after, gradient, sums):
    """Arrays (size,) -> sums (pieces, SUMS, SIDE_BY_SIDE) float64"""
    while True:
        piece = atomic_next(counter, 0)
        start = piece * PIECE
        if start >= before.size:
            break
        ws, vs = before[start : start + PIECE], after[start : start + PIECE]
        gs, total = gradient[start : start + PIECE], sums[piece]
        whole = ws.size // SIDE_BY_SIDE * SIDE_BY_SIDE
        for i in range(0, whole, SIDE_BY_SIDE):
            for j in range(SIDE_BY_SIDE):
                w, v, g = np.float64(ws[i + j]), np.float64(vs[i + j]), np.float64(gs[i + j])
                d = v - w
                total[0, j] += w * w
                total[1, j] += v * v
                total[2, j] += d * d
                total[3, j] += w * d
                total[4, j] += g * g
                total[5, j] += g * d
                total[6, j] += g * w
                total[7, j] += np.float64(d != 0)
        for i in range(whole, ws.size):
            w, v, g = np.float64(ws[i]), np.float64(vs[i]), np.float64(gs[i])
            d = v - w
            total[0, 0] += w * w
            total[1, 0] += v * v
            total[2, 0] += d * d
            total[3, 0] += w * d
            total[4, 0] += g * g
            total[5, 0] += g * d
            total[6, 0] += g * w
            total[7, 0] += np.float64(d != 0)


class Measurement(Backend):
    """The measuring kernels of the backend."""

    def copy(self, x):
        arrays = in_memory_order(x, x)
        if arrays is None:
            return super().copy(x)
        out = workspace.empty((x.size,))
        run_pieces(copy_pieces, -(-x.size // PIECE), arrays[0], out)
        axes = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
        ordered = out.reshape([x.shape[axis] for axis in axes])
        return ordered.transpose(np.argsort(axes)) if axes else ordered

    def update_sums(self, before, after, gradient):
        arrays = in_memory_order(after, gradient, before)
        if arrays is None:
            return super().update_sums(before, after, gradient)
        after, gradient, before = arrays
        pieces = -(-after.size // PIECE)
        sums = np.zeros((pieces, SUMS, SIDE_BY_SIDE))
        run_pieces(sum_pieces, pieces, before, after, gradient, sums)
        return sums.sum(axis=(0, 2))
