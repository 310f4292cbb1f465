"""The optimizer steps: one pass over parameter, gradient and state.

Definition: `adam_step` and `sgd_step` in `backends/reference.py`. The same operations in the same
order on the same float32 numbers, so results have the same bits.

NumPy makes some ten passes with a temporary each; the kernel reads four arrays and writes three.
A convolution's weight is (F, C, R, S) over memory ordered (R, S, C, F), and its gradient and state
are alike: the kernel goes through memory in its own order. A gradient that is ordered otherwise is
copied; state that is, or anything that is no whole piece of memory, is left to the reference.

A step that is measured (measurement.py) is summed up piece by piece, while the piece is in the
core's cache: `sums` has a row for each piece then, and none otherwise, and `before` (PIECE,) holds
the piece as it was.

Milliseconds for the 11.7 million parameters of ResNet-18 in one array / in its 62 arrays, float32,
one thread of an Intel Xeon with AVX-512 that other work shared, minimum of 9:

                                Adam         SGD with momentum
    this                       12 / 14           8 / 10
    the NumPy reference        93 / 69          25 / 26
    PyTorch 2.14.1             66 / 38          34 / 22
    the same, fused=True       13 / 12           9 / 10
"""

from __future__ import annotations

import numpy as np

from tinyft.backends.cpu.codegen.cache import kernel
from tinyft.backends.cpu.memory_bound.arrays import PIECE, in_memory_order, run_pieces
from tinyft.backends.cpu.memory_bound.measurement import Measurement, set_aside, sum_up
from tinyft.backends.cpu.runtime.work_stealing import next_start


@kernel
def adam(
    share, before, sums, parameter, gradient, average, average_square,
    decay, momentum, new, square_momentum, square_new, correction, rate, eps,
):  # fmt: skip
    """Arrays (size,), all else float32; `new` is 1 - momentum, `correction` what average_square is
    divided by, `rate` lr with the correction of the average.
    """
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
def sgd(share, before, sums, parameter, gradient, decay, lr):
    """Without momentum. Arrays (size,), decay and lr float32."""
    while True:
        start = next_start(share, PIECE, parameter.size)
        if start >= parameter.size:
            break
        p, g = parameter[start : start + PIECE], gradient[start : start + PIECE]
        if len(sums):
            set_aside(p, before)
        for i in range(p.size):
            p[i] = p[i] * decay - lr * g[i]
        if len(sums):
            sum_up(before, p, g, sums[start // PIECE])


@kernel
def sgd_with_momentum(share, before, sums, parameter, gradient, velocity, decay, lr, momentum):
    """With momentum. Arrays (size,), decay, lr and momentum float32."""
    while True:
        start = next_start(share, PIECE, parameter.size)
        if start >= parameter.size:
            break
        p, g = parameter[start : start + PIECE], gradient[start : start + PIECE]
        if len(sums):
            set_aside(p, before)
        v = velocity[start : start + PIECE]
        for i in range(p.size):
            v[i] = v[i] * momentum + g[i]
            p[i] = p[i] * decay - lr * v[i]
        if len(sums):
            sum_up(before, p, g, sums[start // PIECE])


class Optimizers(Measurement):
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
        pieces = -(-parameter.size // PIECE)
        update = self.sums_of(pieces), *arrays, *map(np.float32, numbers)
        run_pieces(adam, pieces, *update, scratch=PIECE)

    def sgd_step(self, parameter, gradient, velocity, *, lr, momentum, weight_decay):
        state = [] if velocity is None else [velocity]
        arrays = in_memory_order(parameter, gradient, *state)
        if arrays is None:
            super().sgd_step(
                parameter, gradient, velocity, lr=lr, momentum=momentum, weight_decay=weight_decay
            )
            return
        pieces = -(-parameter.size // PIECE)
        sums = self.sums_of(pieces)
        decay, lr = np.float32(1 - lr * weight_decay), np.float32(lr)
        if velocity is None:
            run_pieces(sgd, pieces, sums, *arrays, decay, lr, scratch=PIECE)
        else:
            update = sums, *arrays, decay, lr, np.float32(momentum)
            run_pieces(sgd_with_momentum, pieces, *update, scratch=PIECE)
