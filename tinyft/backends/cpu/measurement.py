"""What an update did to a parameter: all sums of the ledger in one pass over memory.

Definition: `copy` and `update_sums` in `backends/reference.py`. NumPy makes some twenty passes with
float64 temporaries; this reads the parameter before and after and the gradient once. The order of
the elements does not matter to a sum, so all three are read as the parameter lies in memory.

A copy is NumPy's own, which is the C library's, with memory from the workspace: 590,000 floats take
45 microseconds, in a Numba kernel on one thread 110, and most parameters of a network are so small
that calling the kernel takes longest.

Products and sums are in float64: a weight moves by a millionth of itself, and the sum of its
squares has to show that. A piece's sums are kept apart and added in order, so the bits do not
depend on the number of threads.

**The trick** is a permission. LLVM may not change the order in which floats are added, so eight
plain sums take one element at a time. Versions tried, nanoseconds per element, one thread of an
Intel Xeon with AVX-512 that other work shared, minimum of 400 over 32768 elements:

    sixteen sums of each kind side by side, in an array      0.87  (they pass through memory)
    the same, with leave to reorder                          0.55
    eight plain sums, with leave to reorder                  0.16  (this: they stay in registers)
    the NumPy reference                                       200

Next: tinyft/backends/cpu/reductions.py
"""

from __future__ import annotations

import numpy as np

from tinyft.backends.cpu import workspace
from tinyft.backends.cpu.arrays import PIECE, run_pieces
from tinyft.backends.cpu.optimizers import in_memory_order
from tinyft.backends.cpu.simd import atomic_next, kernel
from tinyft.backends.reference import Backend

SUMS = 8


def _sum_pieces(counter, thread, before, after, gradient, sums):
    """Arrays (size,) -> sums (pieces, SUMS) float64"""
    while True:
        piece = atomic_next(counter, 0)
        start = piece * PIECE
        if start >= before.size:
            break
        ws, vs = before[start : start + PIECE], after[start : start + PIECE]
        gs = gradient[start : start + PIECE]
        ww = vv = dd = wd = gg = gd = gw = 0.0
        moved = 0
        for i in range(ws.size):
            w, v, g = np.float64(ws[i]), np.float64(vs[i]), np.float64(gs[i])
            d = v - w
            ww += w * w
            vv += v * v
            dd += d * d
            wd += w * d
            gg += g * g
            gd += g * d
            gw += g * w
            moved += d != 0
        row = sums[piece]
        row[0], row[1], row[2], row[3] = ww, vv, dd, wd
        row[4], row[5], row[6], row[7] = gg, gd, gw, moved


sum_pieces = kernel(_sum_pieces, reorder=True)


class Measurement(Backend):
    """The measuring kernels of the backend."""

    def copy(self, x):
        row = x.ravel("K")
        # What ravel had to copy is no whole piece of memory, and owns its data.
        if x.nbytes < workspace.SMALL or row.flags.owndata:
            return super().copy(x)
        out = workspace.empty((x.size,), x.dtype)
        out[...] = row
        return np.ndarray(x.shape, x.dtype, out, strides=x.strides)

    def update_sums(self, before, after, gradient):
        arrays = in_memory_order(after, gradient, before)
        if arrays is None:
            return super().update_sums(before, after, gradient)
        after, gradient, before = arrays
        pieces = -(-after.size // PIECE)
        sums = np.empty((pieces, SUMS))
        run_pieces(sum_pieces, pieces, before, after, gradient, sums)
        return sums.sum(axis=0) if pieces > 1 else sums[0]
