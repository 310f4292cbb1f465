"""What an update did to a parameter: all sums of the ledger, while the optimizer has it in cache.

Definition: `copy`, `measured` and `update_sums` in `backends/reference.py`. NumPy makes some twenty
passes with float64 temporaries. Here the kernel of the optimizer's step (optimizers.py) copies a
piece of 128 KiB before it updates it and adds up the sums behind it, so that only its gradient,
which it needs anyway, and the parameter come from memory, and those once. An update that no kernel
takes is measured around the reference's.

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
"""

from __future__ import annotations

import contextlib
import threading

import numpy as np

from tinyft.backends.cpu.codegen.cache import helper, kernel
from tinyft.backends.cpu.memory_bound.arrays import PIECE, in_memory_order, run_pieces
from tinyft.backends.cpu.runtime import workspace
from tinyft.backends.cpu.runtime.work_stealing import next_start
from tinyft.backends.reference import Backend

SUMS = 8
NOTHING = np.empty((0, SUMS))


@helper
def set_aside(parameter, before):
    """Array (size,) -> the first `size` numbers of `before`"""
    for i in range(parameter.size):
        before[i] = parameter[i]


def _sum_up(before, after, gradient, sums):
    """Arrays (size,), `before` (size,) or longer -> sums (SUMS,) float64"""
    ww = vv = dd = wd = gg = gd = gw = 0.0
    moved = 0
    for i in range(after.size):
        w, v, g = np.float64(before[i]), np.float64(after[i]), np.float64(gradient[i])
        d = v - w
        ww += w * w
        vv += v * v
        dd += d * d
        wd += w * d
        gg += g * g
        gd += g * d
        gw += g * w
        moved += d != 0
    sums[0], sums[1], sums[2], sums[3] = ww, vv, dd, wd
    sums[4], sums[5], sums[6], sums[7] = gg, gd, gw, moved


sum_up = helper(_sum_up, reorder=True)


@kernel
def sum_pieces(share, before, after, gradient, sums):
    """Arrays (size,) -> sums (pieces, SUMS) float64"""
    while True:
        start = next_start(share, PIECE, before.size)
        if start >= before.size:
            break
        end = start + PIECE
        sum_up(before[start:end], after[start:end], gradient[start:end], sums[start // PIECE])


class _Measured(threading.local):
    """Per thread: the sums of the updates in progress, by piece; None while nobody measures."""

    updates: list[np.ndarray] | None = None


_measured = _Measured()


class Measurement(Backend):
    """The measuring kernels of the backend."""

    @contextlib.contextmanager
    def measured(self, parameter, gradient):
        before, _measured.updates, found = _measured.updates, [], []
        try:
            yield found
            found += [s.sum(axis=0) if len(s) > 1 else s[0] for s in _measured.updates]
        finally:
            _measured.updates = before

    def sums_of(self, pieces):
        """For an update that begins: where its kernel writes its sums, if it is measured."""
        if _measured.updates is None:
            return NOTHING
        _measured.updates.append(np.empty((pieces, SUMS)))
        return _measured.updates[-1]

    def adam_step(self, parameter, gradient, *state, **numbers):
        """What no kernel takes, as `sgd_step`."""
        with self._around(parameter, gradient):
            super().adam_step(parameter, gradient, *state, **numbers)

    def sgd_step(self, parameter, gradient, velocity, **numbers):
        with self._around(parameter, gradient):
            super().sgd_step(parameter, gradient, velocity, **numbers)

    @contextlib.contextmanager
    def _around(self, parameter, gradient):
        updates = _measured.updates
        if updates is None:
            yield
            return
        with super().measured(parameter, gradient) as found:
            yield
        updates.append(found[0][None])

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
