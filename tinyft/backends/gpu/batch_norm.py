"""Batch normalisation on the GPU: how rows and channels are divided among blocks.

Definition: the four `batch_norm_*` kernels of `backends/reference.py`.
"""

from __future__ import annotations

import numpy as np

from tinyft.backends.gpu.memory import Array, Memory

CHANNELS = 32  # of a block
MOST_BLOCKS = 1024  # some eight for each multiprocessor; a constant, so that bits depend on shapes
FEWEST_ROWS = 64  # of a block


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
        """How kernels are told."""
        return np.int64(self.rows), self.C, self.share


class BatchNorm(Memory):
    """The batch norm kernels of the backend."""

    def batch_norm_train(self, x, weight, bias, eps, *, residual=None, relu=False):
        x, weight, bias, residual = self.ready("batch_norm", x, weight, bias, residual)
        grid = Grid(x)
        mean, variance = self.empty((grid.C,), x.dtype), self.empty((grid.C,), x.dtype)
        partial = self.empty((grid.shares, 2, grid.C), np.float64)
        self.launch("batch_norm.moments", grid.blocks, (x, partial, *grid.numbers), dtype=x.dtype)
        rest = self.empty((grid.C,), x.dtype)
        arguments = partial, x, mean, variance, rest, grid.shares, np.int64(grid.rows), grid.C
        self.launch("batch_norm.finish_moments", (grid.strips,), arguments, dtype=x.dtype)
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
            self.launch("batch_norm.normalise", grid.blocks, arguments, dtype=x.dtype)
        return out

    def batch_norm_train_grad(self, dout, x, weight, mean, variance, eps, *, out=None, bias=None):
        wanted = bias is None
        return self._gradients(dout, x, weight, mean, variance, eps, out, wanted, train=True)

    def batch_norm_eval_grad(self, dout, x, weight, mean, variance, eps, *, out=None, bias=None):
        wanted = bias is None
        return self._gradients(dout, x, weight, mean, variance, eps, out, wanted, train=False)

    def _gradients(self, dout, x, weight, mean, variance, eps, out, wanted, train):
        """`wanted`: the residual's gradient, where a ReLU makes it differ from dout."""
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
        self.launch("batch_norm.gradient_sums", grid.blocks, arguments, dtype=dtype)
        sums = partial, variance, dweight, dbias, rest
        arguments = *sums, grid.shares, np.int64(grid.rows), grid.C, eps, train
        self.launch("batch_norm.finish_sums", (grid.strips,), arguments, dtype=dtype)
        dx = self.empty(x.shape, dtype)
        dresidual = self.empty(x.shape, dtype) if wanted and out is not None else None
        arrays = dout, x, weight, mean, variance, rest, out, dweight, dbias, dx, dresidual
        arguments = *arrays, *grid.numbers, eps, train
        self.launch("batch_norm.gradient", grid.blocks, arguments, dtype=dtype)
        return dx, dweight, dbias, dout if out is None else dresidual
