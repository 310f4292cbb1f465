"""Computes what needs sums over many elements on the GPU: batch normalisation, the loss, and what
an update did to a parameter. Work is divided among blocks by shapes alone, and so the bits are.

Definition: the methods of the same names of `backends/reference.py`.
"""

from __future__ import annotations

import numpy as np

from tinyft.backends.gpu.memory import THREADS, Array, Memory, memory_order

CHANNELS = 32  # of a block
MOST_BLOCKS = 1024  # some eight for each multiprocessor; a constant, so that bits depend on shapes
FEWEST_ROWS = 64  # of a block
ROW_THREADS = 128  # of a block of the loss
MOST_SUM_BLOCKS = 256  # of update_sums
SUMS = 8


class Grid:
    """x (..., C) as rows of C channels, divided into shares of rows and strips of channels."""

    def __init__(self, x: Array):
        self.C = x.shape[-1]
        self.rows = x.size // self.C if self.C else 0
        strips = max(1, -(-self.C // CHANNELS))
        shares = max(1, min(-(-self.rows // FEWEST_ROWS), MOST_BLOCKS // strips))
        self.share = max(1, -(-self.rows // shares))
        self.shares = -(-self.rows // self.share)
        self.strips = strips

    @property
    def blocks(self) -> tuple[int, int]:
        return self.strips, self.shares

    @property
    def numbers(self) -> tuple[np.int64, int, int]:
        """The same as arguments of a kernel."""
        return np.int64(self.rows), self.C, self.share


class BatchNorm(Memory):
    """The batch norm kernels of the backend."""

    def batch_norm_train(self, x, weight, bias, eps, *, residual=None, relu=False):
        x, weight, bias, residual = self.ready("batch_norm", x, weight, bias, residual)
        grid = Grid(x)
        mean, variance = self.empty((grid.C,), x.dtype), self.empty((grid.C,), x.dtype)
        partial = self.empty((grid.shares, 2, grid.C), np.float64)
        arguments = x, partial, *grid.numbers
        self.launch("reductions.batch_norm_moments", grid.blocks, arguments, dtype=x.dtype)
        rest = self.empty((grid.C,), x.dtype)
        arguments = partial, x, mean, variance, rest, grid.shares, np.int64(grid.rows), grid.C
        self.launch(
            "reductions.batch_norm_finish_moments", (grid.strips,), arguments, dtype=x.dtype
        )
        statistics = mean, variance, rest
        out = self._normalise(grid, x, weight, bias, statistics, eps, residual, relu)
        return out, mean, variance

    def batch_norm_eval(self, x, weight, bias, mean, variance, eps, *, residual=None, relu=False):
        x, weight, bias, mean, variance, residual = self.ready(
            "batch_norm_eval", x, weight, bias, mean, variance, residual
        )
        statistics = mean, variance, None
        return self._normalise(Grid(x), x, weight, bias, statistics, eps, residual, relu)

    def _normalise(self, grid, x, weight, bias, statistics, eps, residual, relu):
        out = self.empty(x.shape, x.dtype)
        if x.size:
            arrays = x, weight, bias, *statistics, residual, out
            arguments = *arrays, *grid.numbers, float(eps), relu
            self.launch("reductions.batch_norm_normalise", grid.blocks, arguments, dtype=x.dtype)
        return out

    def batch_norm_train_grad(self, dout, x, weight, mean, variance, eps, *, out=None, bias=None):
        return self._gradients(dout, x, weight, mean, variance, eps, out, bias, train=True)

    def batch_norm_eval_grad(self, dout, x, weight, mean, variance, eps, *, out=None, bias=None):
        return self._gradients(dout, x, weight, mean, variance, eps, out, bias, train=False)

    def _gradients(self, dout, x, weight, mean, variance, eps, out, bias, train):
        dout, x, weight, mean, variance, out = self.ready(
            "batch_norm's gradient", dout, x, weight, mean, variance, out
        )
        grid, dtype, eps = Grid(x), x.dtype, float(eps)
        if not x.size:
            return dout, self.zeros((grid.C,), dtype), self.zeros((grid.C,), dtype), dout
        dweight, dbias = self.empty((grid.C,), dtype), self.empty((grid.C,), dtype)
        rest = self.empty((grid.C,), dtype)
        partial = self.empty((grid.shares, 3, grid.C), np.float64)
        arguments = dout, x, mean, variance, out, partial, *grid.numbers, eps
        self.launch("reductions.batch_norm_gradient_sums", grid.blocks, arguments, dtype=dtype)
        sums = partial, variance, dweight, dbias, rest
        arguments = *sums, grid.shares, np.int64(grid.rows), grid.C, eps, train
        self.launch(
            "reductions.batch_norm_finish_gradient_sums", (grid.strips,), arguments, dtype=dtype
        )
        dx = self.empty(x.shape, dtype)
        # the residual's gradient, where a ReLU makes it differ from dout, and it is wanted
        dresidual = self.empty(x.shape, dtype) if bias is None and out is not None else None
        arrays = dout, x, weight, mean, variance, rest, out, dweight, dbias, dx, dresidual
        arguments = *arrays, *grid.numbers, eps, train
        self.launch("reductions.batch_norm_gradient", grid.blocks, arguments, dtype=dtype)
        return dx, dweight, dbias, dout if out is None else dresidual


class Loss(Memory):
    """The loss kernels of the backend."""

    def softmax_cross_entropy(self, logits, labels, label_smoothing, class_weights):
        logits, weights = self.ready("cross_entropy", logits, class_weights)
        N, C = logits.shape
        log_probabilities = self.empty((N, C), logits.dtype)
        loss = self.empty((), logits.dtype)
        losses, row_weights = self.empty((N,), np.float64), self.empty((N,), np.float64)
        arrays = logits, self._labels(labels), weights, log_probabilities, losses, row_weights
        arguments = *arrays, C, float(label_smoothing)
        options = {"dtype": logits.dtype, "threads": ROW_THREADS}
        self.launch("reductions.cross_entropy", (N,), arguments, **options)
        self.launch("reductions.mean_loss", (1,), (losses, row_weights, loss, N), **options)
        return loss, log_probabilities

    def softmax_cross_entropy_grad(self, log_probabilities, labels, label_smoothing, class_weights):
        kept, weights = self.ready("cross_entropy's gradient", log_probabilities, class_weights)
        N, C = kept.shape
        dlogits = self.empty((N, C), kept.dtype)
        arguments = kept, self._labels(labels), weights, dlogits, N, C, float(label_smoothing)
        options = {"dtype": kept.dtype, "threads": ROW_THREADS}
        self.launch("reductions.cross_entropy_grad", (N,), arguments, **options)
        return dlogits

    def _labels(self, labels):
        """As 64-bit integers on the GPU."""
        return self.contiguous(self.upload(labels).astype(np.int64, copy=False))


class Measurement(Memory):
    """The measuring kernel of the backend."""

    def update_sums(self, before, after, gradient):
        axes = memory_order(after)  # all three in one order, whichever it is
        arrays = self.ready("update_sums", *(a.transpose(axes) for a in (before, after, gradient)))
        size, dtype = after.size, after.dtype
        blocks = max(1, min(-(-size // THREADS), MOST_SUM_BLOCKS))
        partial, out = self.empty((blocks, SUMS), np.float64), self.empty((SUMS,), np.float64)
        arguments = *arrays, partial, np.int64(size)
        self.launch("reductions.update_sums", (blocks,), arguments, dtype=dtype)
        self.launch("reductions.finish_update_sums", (1,), (partial, out, blocks), dtype=dtype)
        return out
