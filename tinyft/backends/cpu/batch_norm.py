"""Batch normalisation with residual and ReLU, in as few passes over memory as it can be done.

Definition: `batch_norm_train`, `batch_norm_eval` and their gradients in `backends/reference.py`.

Memory decides: NumPy writes some ten temporaries as large as x. Here a piece of rows (128 KiB)
stays in a core's L2 cache, and

    forward    reads x once for the moments (a piece is read twice, the second time from cache),
               once more to normalise, adds the residual, rectifies and stores
    backward   one pass for the two sums, one for dx. With fixed statistics dx needs no sums: one
               pass does both.

What a ReLU let pass is read off its result, and the rest of dout stored for the second pass and for
the residual. Where no residual was added, x says it: normalised again, with the same bits. Nothing
is stored then, and two arrays are read instead of three: (16, 112, 112, 64) takes 8.5 instead of
14.7 ms (two threads of an idle Intel Xeon).

Milliseconds: this / the NumPy reference / PyTorch 2.14.1 (channels last; its kernels one after the
other), float32, one thread of an idle AMD Zen 5, minimum of 9:

                                       (16, 112, 112, 64)   (16, 56, 56, 64)   (16, 14, 14, 256)
    training, residual and ReLU          4.5 /  59 / 29     0.9 / 9.7 / 1.8    0.19 / 1.3 / 0.31
    its gradient                         7.8 / 130 / 49     1.7 /  28 / 2.5    0.30 / 4.7 / 0.39
    the same without residual, ReLU      6.2 /  -  / 27     1.3 /  -  / 1.5    0.22 /  -  / 0.29
    evaluation and ReLU                  2.2 /  31 / 23     0.4 / 3.7 / 0.8    0.08 / 0.7 / 0.16
    its gradient                         4.7 /  89 / 47     0.9 /  19 / 2.2    0.26 / 3.9 / 0.31

Next: tinyft/backends/cpu/batch_norm_kernels.py
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu import threads, workspace
from tinyft.backends.cpu.arrays import (
    LOWEST,
    ZERO,
    flat,
    large,
    rows_per_piece,
    run_pieces,
    suitable_channels,
)
from tinyft.backends.cpu.batch_norm_kernels import (
    BY_OUT,
    BY_X,
    NO_RELU,
    differentiate,
    join_gradients,
    join_moments,
    normalise,
    sum_gradients,
    sum_moments,
)
from tinyft.backends.reference import Backend


class BatchNorm(Backend):
    """The four batch norm kernels of the backend."""

    def batch_norm_train(self, x, weight, bias, eps, *, residual=None, relu=False):
        if not suitable_channels([x, residual], [weight, bias]):
            return super().batch_norm_train(x, weight, bias, eps, residual=residual, relu=relu)
        values = flat(x)  # one copy for both passes, if any
        mean, variance = _moments(values, x.shape)
        out = _normalise(values, x.shape, weight, bias, mean, variance, eps, residual, relu)
        return out, mean, variance

    def batch_norm_eval(self, x, weight, bias, mean, variance, eps, *, residual=None, relu=False):
        if not suitable_channels([x, residual], [weight, bias, mean, variance]):
            return super().batch_norm_eval(
                x, weight, bias, mean, variance, eps, residual=residual, relu=relu
            )
        mean = flat(mean)
        return _normalise(flat(x), x.shape, weight, bias, mean, variance, eps, residual, relu)

    def batch_norm_train_grad(self, dout, x, weight, mean, variance, eps, *, out=None, bias=None):
        relu = {"out": out, "bias": bias}
        if not _suitable_gradients(dout, x, weight, mean, variance, **relu):
            return super().batch_norm_train_grad(dout, x, weight, mean, variance, eps, **relu)
        M, C, rows, pieces = _extent(x.shape)
        values, mean, weight, variance = flat(x), flat(mean), flat(weight), flat(variance)
        norm = _norm_and_relu(mean, variance, eps, weight, out, bias)
        left, parts, _ = _sum_gradients(dout, values, x.shape, out, None, norm)
        dweight, dbias, factors = _join(parts, x.shape, weight, variance, eps)
        dx = workspace.empty(x.shape)
        run_pieces(
            differentiate, pieces, flat(left), values, M, C, rows, *norm, *factors,
            dx.reshape(-1), large(dx), scratch=C,
        )  # fmt: skip
        return dx, dweight, dbias, left if bias is None else None

    def batch_norm_eval_grad(self, dout, x, weight, mean, variance, eps, *, out=None, bias=None):
        relu = {"out": out, "bias": bias}
        if not _suitable_gradients(dout, x, weight, mean, variance, **relu):
            return super().batch_norm_eval_grad(dout, x, weight, mean, variance, eps, **relu)
        mean, weight, variance = flat(mean), flat(weight), flat(variance)
        norm = _norm_and_relu(mean, variance, eps, weight, out, bias)
        inverse_std = 1 / np.sqrt(variance.astype(np.float64) + eps)  # as in join_gradients
        scale = (weight * inverse_std).astype(np.float32)
        left, parts, dx = _sum_gradients(dout, flat(x), x.shape, out, scale, norm)
        dweight, dbias, _ = _join(parts, x.shape, weight, variance, eps)
        return dx, dweight, dbias, left if bias is None else None


def _moments(x, shape) -> tuple[Array, Array]:
    """Mean and biased variance of each channel, (C,), (C,); x (size,)"""
    M, C, rows, pieces = _extent(shape)
    parts = threads.scratch("sums of pieces", pieces * 3 * C)
    run_pieces(sum_moments, pieces, x, M, C, rows, parts)
    mean, variance = np.empty(C, np.float32), np.empty(C, np.float32)
    join_moments(parts, pieces, M, rows, mean, variance)
    return mean, variance


def _normalise(x, shape, weight, bias, mean, variance, eps, residual, relu) -> Array:
    """The result; x (size,), residual of that shape or None"""
    M, C, rows, pieces = _extent(shape)
    out = workspace.empty(shape)
    added = x if residual is None else flat(residual)
    run_pieces(
        normalise, pieces, x, M, C, rows, mean, flat(variance), np.float32(eps), flat(weight),
        flat(bias), added, residual is not None, ZERO if relu else LOWEST, out.reshape(-1),
        large(out), scratch=C,
    )  # fmt: skip
    return out


def _suitable_gradients(dout, x, weight, mean, variance, out, bias) -> bool:
    channels = [weight, mean, variance, *([] if bias is None else [bias])]
    return suitable_channels([x, dout, out], channels)


def _norm_and_relu(mean, variance, eps, weight, out, bias) -> tuple:
    """mean, variance, eps, weight and bias of the forward pass, and what tells where a ReLU was."""
    told_by = NO_RELU if out is None else BY_OUT if bias is None else BY_X
    bias = flat(bias) if told_by == BY_X else weight  # only x needs it to tell
    return mean, variance, np.float32(eps), weight, bias, told_by


def _sum_gradients(dout, x, shape, out, scale, norm):
    """dout (with BY_OUT 0 where `out` is), the two sums of each piece (in scratch memory, pieces *
    2 * C), and, with fixed statistics and a `scale`, dx. x (size,)
    """
    M, C, rows, pieces = _extent(shape)
    by_out, fixed = norm[-1] == BY_OUT, scale is not None
    parts = threads.scratch("sums of pieces", pieces * 2 * C)
    arriving, unused = flat(dout), norm[0]
    left = workspace.empty(shape) if by_out else dout
    dx = workspace.empty(shape) if fixed else None
    run_pieces(
        sum_gradients, pieces, arriving, x, flat(out) if by_out else arriving, M, C, rows, *norm,
        scale if fixed else unused, fixed, parts, left.reshape(-1) if by_out else unused,
        dx.reshape(-1) if fixed else unused, large(x), scratch=C,
    )  # fmt: skip
    return left, parts, dx


def _join(parts, shape, weight, variance, eps):
    """The gradients of weight and bias, and the three factors of dx."""
    M, C, _, pieces = _extent(shape)
    dweight, dbias = np.empty(C, np.float32), np.empty(C, np.float32)
    factors = np.empty((3, C), np.float32)
    join_gradients(parts, pieces, M, weight, variance, eps, dweight, dbias, factors)
    return dweight, dbias, factors


@functools.lru_cache(maxsize=256)
def _extent(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Rows, channels, rows of one piece, pieces."""
    C = shape[-1]
    M, rows = math.prod(shape[:-1]), rows_per_piece(C)
    return M, C, rows, -(-M // rows)
