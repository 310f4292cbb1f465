"""Convolutions on the GPU: which kernel, with which tile, on how many blocks.

Definition: `conv2d`, `conv2d_input_grad` and `conv2d_weight_grad` of `backends/reference.py`. A 1x1
convolution of stride 1 is a plain matrix product and cuBLAS's; all others are conv2d.cu's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np

from tinyft.backends.gpu.memory import Array, Memory
from tinyft.backends.reference import output_size

FIELDS = ("N", "H", "W", "C", "P", "Q", "F", "R", "S", "step", "spread", "pad_h", "pad_w")
PROBLEM = np.dtype([(name, np.int32) for name in FIELDS])  # `Problem` of conv2d.cu
SLICE = 16  # BK of conv2d.cu
# Twice the 132 multiprocessors of an H100. A constant and not the card's own number, because the
# weight's gradient is summed in as many parts, and bits should depend on shapes alone.
ENOUGH_BLOCKS = 264
READ = 16  # bytes; an address that is no multiple of it would end the process
FEWEST_ROWS = 512  # of a partial sum of the weight's gradient


class Convolution(Memory):
    """The convolution kernels of the backend."""

    def conv2d(self, x, weight, bias=None, *, stride=1, padding=0, residual=None, relu=False):
        x, matrix, bias, residual = self.ready(
            "conv2d", x, weight.transpose(2, 3, 1, 0), bias, residual
        )  # matrix: (R, S, C, F), as a network's weights lie in memory
        (N, H, W, C), (R, S, _, F) = x.shape, matrix.shape
        P, Q = output_size(H, R, stride, padding), output_size(W, S, stride, padding)
        if R == S == stride == 1 and padding == 0:
            out = self._product(x.reshape(-1, C), matrix.reshape(C, F)).reshape(N, P, Q, F)
            if bias is not None or residual is not None or relu:
                finish = out, bias, residual, np.int64(out.size), F, relu
                self.launch_each("elementwise.finish", out.size, finish, dtype=x.dtype)
            return out
        x, matrix = self._wide(x, 3), self._wide(matrix, 2, 3)
        problem = N, H, W, x.shape[3], P, Q, F, R, S, stride, 1, padding, padding
        return self._gather(problem, x, matrix, bias, residual, relu)

    def conv2d_input_grad(self, dout, weight, x_shape, *, stride, padding):
        dout, matrix = self.ready("conv2d_input_grad", dout, weight.transpose(2, 3, 1, 0))
        (N, H, W, C), (R, S, _, F) = x_shape, matrix.shape
        if R == S == stride == 1 and padding == 0:
            return self._product(dout.reshape(-1, F), matrix.reshape(C, F).T).reshape(x_shape)
        dout = self._wide(dout, 3)
        _, P, Q, wide_F = dout.shape
        turned = self.empty((R, S, wide_F, -(-C // 4) * 4), dout.dtype)
        arguments = matrix, turned, R, S, C, F, turned.shape[3], wide_F
        self.launch_each("elementwise.turn", turned.size, arguments, dtype=dout.dtype)
        pads = R - 1 - padding, S - 1 - padding
        problem = N, P, Q, wide_F, H, W, C, R, S, 1, stride, *pads
        return self._gather(problem, dout, turned, None, None, False)

    def conv2d_weight_grad(self, dout, x, weight_shape, *, stride, padding):
        dout, x = self.ready("conv2d_weight_grad", dout, x)
        F, C, R, S = weight_shape
        if R == S == stride == 1 and padding == 0 and x.size:
            product = self._product(x.reshape(-1, C).T, dout.reshape(-1, F))
            return product.reshape(1, 1, C, F).transpose(3, 2, 0, 1)
        if not x.size:
            return self.zeros((R, S, C, F), x.dtype).transpose(3, 2, 0, 1)
        x, dout = self._wide(x, 3), self._wide(dout, 3)
        (N, H, W, wide_C), (_, P, Q, _) = x.shape, dout.shape
        problem = N, H, W, wide_C, P, Q, F, R, S, stride, 1, padding, padding
        dweight = self._weight_grad(problem, x, dout).reshape(R, S, wide_C, F)
        return self.contiguous(dweight[:, :, :C]).transpose(3, 2, 0, 1)

    def _gather(self, problem: tuple, x, matrix, bias, residual, relu: bool) -> Array:
        """out (N, P, Q, F) of the problem."""
        N, P, Q, F = problem[0], *problem[4:7]
        out = self.empty((N, P, Q, F), x.dtype)
        if out.size:
            defines, height, width = self.tile_for(x.dtype, N * P * Q, F)
            grid = -(-N * P * Q // height), -(-F // width)
            arguments = x, matrix, bias, residual, out, np.array(problem, PROBLEM), relu
            self.launch("conv2d.gather", grid, arguments, dtype=x.dtype, defines=defines)
        return out

    def _weight_grad(self, problem: tuple, x, dout) -> Array:
        """(R * S * C, F): a block for each tile and each part of the rows."""
        N, _, _, C, P, Q, F, R, S, *_ = problem
        M, K = N * P * Q, R * S * C
        defines, height, width = self.tile_for(x.dtype, K, F)
        tiles = -(-K // height), -(-F // width)
        parts = max(1, min(M // FEWEST_ROWS, -(-ENOUGH_BLOCKS // math.prod(tiles))))
        share = -(-M // (parts * SLICE)) * SLICE
        parts = -(-M // share)
        partial = self.empty((parts, K, F), x.dtype)
        arguments = x, dout, partial, np.array(problem, PROBLEM), share
        self.launch(
            "conv2d.weight_grad", (*tiles, parts), arguments, dtype=x.dtype, defines=defines
        )
        if parts == 1:
            return partial[0]
        total = self.empty((K, F), x.dtype)
        sums = partial, total, np.int64(total.size), parts
        self.launch_each("elementwise.add_partial", total.size, sums, dtype=x.dtype)
        return total

    def tile_for(self, dtype: np.dtype, rows: int, F: int) -> tuple[tuple[str, ...], int, int]:
        """Return the options that conv2d.cu is compiled with, and a block's tile: height and width.

        A double takes twice the shared memory, so its tile has half the height. A wide tile reads
        less shared memory per product, which is what bounds the tensor cores, but there must be
        enough tiles for all multiprocessors.
        """
        if dtype == np.float64:
            return ("-DBM=64",), 64, 64
        if self.precision == "fp32":
            return (), 128, 64
        if F % 128 == 0 and -(-rows // 128) * (F // 128) >= ENOUGH_BLOCKS:
            return ("-DTF32", "-DBN=128"), 128, 128
        return ("-DTF32",), 128, 64

    def _wide(self, x: Array, *axes: int) -> Array:
        """x with zeros behind it, until the lengths of these axes are multiples of 4; x itself
        where they are, unless it is a view that begins where no read of 16 bytes may.
        """
        shape = tuple(-(-n // 4) * 4 if axis in axes else n for axis, n in enumerate(x.shape))
        if shape == x.shape:
            return x if x.data.ptr % READ == 0 else x.copy()
        wide = self.zeros(shape, x.dtype)
        wide[tuple(slice(n) for n in x.shape)] = x
        return wide

    def _product(self, a: Array, b: Array) -> Array:
        """a @ b by cuBLAS, in the precision of convolutions."""
        with self.current(), self._tensor_cores():
            return a @ b

    @contextlib.contextmanager
    def _tensor_cores(self) -> Iterator[None]:
        """CuPy has one switch for all products; it is turned for this one."""
        if self.precision == "fp32":
            yield
            return
        core = self.cupy._core
        before = core.get_compute_type(np.float32)
        core.set_compute_type(np.float32, core._routines_linalg.COMPUTE_TYPE_TF32)
        try:
            yield
        finally:
            core.set_compute_type(np.float32, before)
