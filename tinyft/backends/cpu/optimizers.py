"""The optimizer steps: one pass over parameter, gradient and state.

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

Next: tinyft/backends/cpu/measurement.py
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.arrays import PIECE, flat, run_pieces
from tinyft.backends.cpu.simd import atomic_next, kernel
from tinyft.backends.reference import Backend


@kernel
def adam(
    counter, thread, parameter, gradient, average, average_square,
    decay, momentum, new, square_momentum, square_new, correction, rate, eps,
):  # fmt: skip
    """Arrays (size,), all else float32; `new` is 1 - momentum, `correction` what average_square is
    divided by, `rate` lr with the correction of the average.
    """
    while True:
        start = atomic_next(counter, 0) * PIECE
        if start >= parameter.size:
            break
        p, g = parameter[start : start + PIECE], gradient[start : start + PIECE]
        a, s = average[start : start + PIECE], average_square[start : start + PIECE]
        for i in range(p.size):
            a[i] = a[i] * momentum + new * g[i]
            s[i] = s[i] * square_momentum + square_new * (g[i] * g[i])
            root = np.sqrt(s[i] / correction)
            p[i] = p[i] * decay - rate * a[i] / (root + eps)


@kernel
def sgd(counter, thread, parameter, gradient, decay, lr):
    """Without momentum. Arrays (size,), decay and lr float32."""
    while True:
        start = atomic_next(counter, 0) * PIECE
        if start >= parameter.size:
            break
        p, g = parameter[start : start + PIECE], gradient[start : start + PIECE]
        for i in range(p.size):
            p[i] = p[i] * decay - lr * g[i]


@kernel
def sgd_with_momentum(counter, thread, parameter, gradient, velocity, decay, lr, momentum):
    """With momentum. Arrays (size,), decay, lr and momentum float32."""
    while True:
        start = atomic_next(counter, 0) * PIECE
        if start >= parameter.size:
            break
        p, g = parameter[start : start + PIECE], gradient[start : start + PIECE]
        v = velocity[start : start + PIECE]
        for i in range(p.size):
            v[i] = v[i] * momentum + g[i]
            p[i] = p[i] * decay - lr * v[i]


class Optimizers(Backend):
    """The optimizer steps of the backend."""

    def adam_step(
        self, parameter, gradient, average, average_square,
        *, step, lr, momentum, square_momentum, eps, weight_decay,
    ):  # fmt: skip
        arrays = in_memory_order(parameter, gradient, average, average_square)
        if arrays is None:
            super().adam_step(
                parameter, gradient, average, average_square, step=step, lr=lr, momentum=momentum,
                square_momentum=square_momentum, eps=eps, weight_decay=weight_decay,
            )  # fmt: skip
            return
        numbers = (
            1 - lr * weight_decay,
            momentum,
            1 - momentum,
            square_momentum,
            1 - square_momentum,
            1 - square_momentum**step,
            lr / (1 - momentum**step),
            eps,
        )
        run_pieces(adam, -(-parameter.size // PIECE), *arrays, *map(np.float32, numbers))

    def sgd_step(self, parameter, gradient, velocity, *, lr, momentum, weight_decay):
        state = [] if velocity is None else [velocity]
        arrays = in_memory_order(parameter, gradient, *state)
        if arrays is None:
            super().sgd_step(
                parameter, gradient, velocity, lr=lr, momentum=momentum, weight_decay=weight_decay
            )
            return
        pieces = -(-parameter.size // PIECE)
        decay, lr = np.float32(1 - lr * weight_decay), np.float32(lr)
        if velocity is None:
            run_pieces(sgd, pieces, *arrays, decay, lr)
        else:
            run_pieces(sgd_with_momentum, pieces, *arrays, decay, lr, np.float32(momentum))


def in_memory_order(parameter: Array, gradient: Array, *state: Array) -> list[Array] | None:
    """Each array's elements in the order in which the parameter lies in memory, as (size,) views of
    what will be written; None if that cannot be done, or the reference should raise.
    """
    everything, shape = (parameter, gradient, *state), parameter.shape
    if parameter.size == 0 or any(a.dtype != np.float32 or a.shape != shape for a in everything):
        return None
    rows = _alike_in_memory(everything)
    if rows is not None:
        return rows
    axes = sorted(range(parameter.ndim), key=lambda axis: -parameter.strides[axis])
    views = [a.transpose(axes) for a in (parameter, *state)]
    if not all(view.flags.carray for view in views):
        return None
    first, *rest = (view.reshape(-1) for view in views)
    return [first, flat(gradient.transpose(axes)), *rest]


def _alike_in_memory(arrays: tuple[Array, ...]) -> list[Array] | None:
    """The same for arrays that lie alike, as they nearly always do. It takes half of the time, and
    a batch norm's 64 numbers are updated in less.
    """
    strides, rows = arrays[0].strides, []
    for a in arrays:
        row = a.ravel("K")
        flags = row.flags
        if a.strides != strides or flags.owndata or not flags.carray:  # owned: it was a copy
            return None
        rows.append(row)
    return rows
