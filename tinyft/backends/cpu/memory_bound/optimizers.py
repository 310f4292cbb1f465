"""Optimizer steps: one pass over parameter, gradient and state, and the sums of what they did.

Definition: `adam_step` and `sgd_step` in `backends/reference.py`. The same operations in the same
order on the same float32 numbers, so results have the same bits.

NumPy makes some ten passes with a temporary each; the kernel reads four arrays and writes three.
A convolution's weight is (F, C, R, S) over memory ordered (R, S, C, F), and its gradient and state
are alike: the kernel goes through memory in its own order. A gradient that is ordered otherwise is
copied; state that is, or anything that is no whole piece of memory, is left to the reference.

Milliseconds for the 11.7 million parameters of ResNet-18 in one array / in its 62 arrays, float32,
one thread of an Intel Xeon with AVX-512 that other work shared, minimum of 9:

                                Adam         SGD with momentum
    this                       12 / 14           8 / 10
    the NumPy reference        93 / 69          25 / 26
    PyTorch 2.14.1             66 / 38          34 / 22
    the same, fused=True       13 / 12           9 / 10

**A measured step** (the ledger) adds up what it did to each parameter: `measured`, `update_sums`
and `copy` of the reference. NumPy makes some twenty passes with float64 temporaries. Here the
kernel copies a piece of 128 KiB before it updates it and adds up the sums behind it, while the
piece is in the core's cache: `sums` has a row for each piece then, and none otherwise, and `before`
(PIECE,) holds the piece as it was. An update that no kernel takes is measured around the
reference's.

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
NO_VELOCITY = np.empty(0, np.float32)


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


@kernel
def adam(share, before, sums, parameter, gradient, average, average_square, options):
    """Arrays (size,), options float32: `new` is 1 - momentum, `correction` what average_square is
    divided by, `rate` lr with the correction of the average.
    """
    decay, momentum, new, square_momentum, square_new, correction, rate, eps = options
    while True:
        start = next_start(share, PIECE, parameter.size)
        if start >= parameter.size:
            break
        p, g = parameter[start : start + PIECE], gradient[start : start + PIECE]
        if len(sums):
            set_aside(p, before)
        a, s = average[start : start + PIECE], average_square[start : start + PIECE]
        for i in range(p.size):
            a[i] = a[i] * momentum + new * g[i]
            s[i] = s[i] * square_momentum + square_new * (g[i] * g[i])
            root = np.sqrt(s[i] / correction)
            p[i] = p[i] * decay - rate * a[i] / (root + eps)
        if len(sums):
            sum_up(before, p, g, sums[start // PIECE])


@kernel
def sgd(share, before, sums, parameter, gradient, velocity, decay, lr, momentum):
    """Arrays (size,), velocity (0,) for steps without momentum; decay, lr and momentum float32."""
    while True:
        start = next_start(share, PIECE, parameter.size)
        if start >= parameter.size:
            break
        p, g = parameter[start : start + PIECE], gradient[start : start + PIECE]
        if len(sums):
            set_aside(p, before)
        if len(velocity):
            v = velocity[start : start + PIECE]
            for i in range(p.size):
                v[i] = v[i] * momentum + g[i]
                p[i] = p[i] * decay - lr * v[i]
        else:
            for i in range(p.size):
                p[i] = p[i] * decay - lr * g[i]
        if len(sums):
            sum_up(before, p, g, sums[start // PIECE])


class Optimizers(Backend):
    """The optimizer steps of the backend, and what measures them."""

    def adam_step(
        self, parameter, gradient, average, average_square,
        *, step, lr, momentum, square_momentum, eps, weight_decay,
    ):  # fmt: skip
        arrays = in_memory_order(parameter, gradient, average, average_square)
        if arrays is None:
            with self._measured_around(parameter, gradient):
                super().adam_step(
                    parameter, gradient, average, average_square, step=step, lr=lr,
                    momentum=momentum, square_momentum=square_momentum, eps=eps,
                    weight_decay=weight_decay,
                )  # fmt: skip
            return
        options = (
            1 - lr * weight_decay,
            momentum,
            1 - momentum,
            square_momentum,
            1 - square_momentum,
            1 - square_momentum**step,
            lr / (1 - momentum**step),
            eps,
        )
        pieces = -(-parameter.size // PIECE)
        update = self._sums_of(pieces), *arrays, tuple(map(np.float32, options))
        run_pieces(adam, pieces, *update, scratch=PIECE)

    def sgd_step(self, parameter, gradient, velocity, *, lr, momentum, weight_decay):
        state = [] if velocity is None else [velocity]
        arrays = in_memory_order(parameter, gradient, *state)
        if arrays is None:
            options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
            with self._measured_around(parameter, gradient):
                super().sgd_step(parameter, gradient, velocity, **options)
            return
        if velocity is None:
            arrays = [*arrays, NO_VELOCITY]
        pieces = -(-parameter.size // PIECE)
        numbers = map(np.float32, (1 - lr * weight_decay, lr, momentum))
        run_pieces(sgd, pieces, self._sums_of(pieces), *arrays, *numbers, scratch=PIECE)

    # -------------------------------------------------------------------------------- measured

    @contextlib.contextmanager
    def measured(self, parameter, gradient):
        before, _measured.updates, sums = _measured.updates, [], []
        try:
            yield sums
            sums += [s.sum(axis=0) if len(s) > 1 else s[0] for s in _measured.updates]
        finally:
            _measured.updates = before

    def _sums_of(self, pieces):
        """For an update that begins: where its kernel writes its sums, if it is measured."""
        if _measured.updates is None:
            return NOTHING
        _measured.updates.append(np.empty((pieces, SUMS)))
        return _measured.updates[-1]

    @contextlib.contextmanager
    def _measured_around(self, parameter, gradient):
        """Measure what the reference updates within this block, if updates are measured."""
        updates = _measured.updates
        if updates is None:
            yield
            return
        with super().measured(parameter, gradient) as sums:
            yield
        updates.append(sums[0][None])

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
