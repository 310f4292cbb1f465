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
"""

from __future__ import annotations

import functools
import math

import numpy as np

from tinyft.backends.cpu.memory_bound.arrays import (
    LOWEST,
    ZERO,
    flat,
    large,
    rows_per_piece,
    run_pieces,
    suitable_channels,
)
from tinyft.backends.cpu.memory_bound.row_kernels import (
    BY_OUT,
    BY_X,
    NO_RELU,
    differentiate_as_given,
    differentiate_by_batch,
    normalise_as_given,
    normalise_by_batch,
)
from tinyft.backends.cpu.runtime import threads, workspace
from tinyft.backends.reference import Backend


class BatchNorm(Backend):
    """The four batch norm kernels of the backend."""

    def batch_norm_train(self, x, weight, bias, eps, *, residual=None, relu=False):
        if not suitable_channels([x, residual], [weight, bias]):
            return super().batch_norm_train(x, weight, bias, eps, residual=residual, relu=relu)
        M, C, rows, pieces = _extent(x.shape)
        parts = threads.scratch("sums of pieces", pieces * 3 * C)
        out, x = workspace.empty(x.shape), flat(x)
        mean, variance = np.empty(C, np.float32), np.empty(C, np.float32)
        run_pieces(
            normalise_by_batch, pieces, x, M, C, rows, parts,
            *_norm(eps, weight, bias, x, residual, relu), mean, variance, out.reshape(-1),
            large(out), scratch=3 * C,
        )  # fmt: skip
        return out, mean, variance

    def batch_norm_eval(self, x, weight, bias, mean, variance, eps, *, residual=None, relu=False):
        if not suitable_channels([x, residual], [weight, bias, mean, variance]):
            return super().batch_norm_eval(
                x, weight, bias, mean, variance, eps, residual=residual, relu=relu
            )
        M, C, rows, pieces = _extent(x.shape)
        out, x = workspace.empty(x.shape), flat(x)
        run_pieces(
            normalise_as_given, pieces, x, M, C, rows,
            *_norm(eps, weight, bias, x, residual, relu), flat(mean), flat(variance),
            out.reshape(-1), large(out), scratch=C,
        )  # fmt: skip
        return out

    def batch_norm_train_grad(self, dout, x, weight, mean, variance, eps, *, out=None, bias=None):
        relu = {"out": out, "bias": bias}
        if not _suitable_gradients(dout, x, weight, mean, variance, **relu):
            return super().batch_norm_train_grad(dout, x, weight, mean, variance, eps, **relu)
        return _gradients(differentiate_by_batch, dout, x, weight, mean, variance, eps, out, bias)

    def batch_norm_eval_grad(self, dout, x, weight, mean, variance, eps, *, out=None, bias=None):
        relu = {"out": out, "bias": bias}
        if not _suitable_gradients(dout, x, weight, mean, variance, **relu):
            return super().batch_norm_eval_grad(dout, x, weight, mean, variance, eps, **relu)
        return _gradients(differentiate_as_given, dout, x, weight, mean, variance, eps, out, bias)


def _norm(eps, weight, bias, x, residual, relu) -> tuple:
    """The kernels' arguments `eps` to `low`. Where there is no residual any array will do."""
    added = residual is not None
    residual = flat(residual) if added else x
    return np.float32(eps), flat(weight), flat(bias), residual, added, ZERO if relu else LOWEST


def _suitable_gradients(dout, x, weight, mean, variance, out, bias) -> bool:
    channels = [weight, mean, variance, *([] if bias is None else [bias])]
    return suitable_channels([x, dout, out], channels)


def _gradients(kernel, dout, x, weight, mean, variance, eps, out, bias):
    """dx, dweight, dbias, and what is left of dout behind the ReLU if it was told by `out`."""
    M, C, rows, pieces = _extent(x.shape)
    told_by = NO_RELU if out is None else BY_OUT if bias is None else BY_X
    parts = threads.scratch("sums of pieces", pieces * 2 * C)
    dx, left = workspace.empty(x.shape), dout
    arriving = flat(dout)
    kept_out = left_flat = arriving  # any arrays will do, but where the result tells
    if told_by == BY_OUT:
        left = workspace.empty(x.shape)
        kept_out, left_flat = flat(out), left.reshape(-1)
    weight = flat(weight)
    bias_flat = flat(bias) if told_by == BY_X else weight
    dweight, dbias = np.empty(C, np.float32), np.empty(C, np.float32)
    run_pieces(
        kernel, pieces, arriving, flat(x), kept_out, M, C, rows, parts, flat(mean), flat(variance),
        eps, weight, bias_flat, told_by, left_flat, dweight, dbias, dx.reshape(-1), large(dx),
        scratch=6 * C,
    )  # fmt: skip
    return dx, dweight, dbias, left if bias is None else None


@functools.lru_cache(maxsize=256)
def _extent(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Rows, channels, rows of one piece, pieces."""
    C = shape[-1]
    M, rows = math.prod(shape[:-1]), rows_per_piece(C)
    return M, C, rows, -(-M // rows)
