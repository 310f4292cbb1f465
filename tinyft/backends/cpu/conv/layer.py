"""The input of every convolution: the shapes of its layer, arrays as kernels take them, and what is
added to its results on their way to memory.

Letters: N pictures, H W rows and columns in, C channels in, P Q rows and columns out, F filters, R
S the kernel. Kernels see weights as (R, S, C, F), the memory order of a model's.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.memory_bound.arrays import LOWEST, ZERO
from tinyft.backends.cpu.runtime import workspace

FORWARD, INPUT_GRAD, WEIGHT_GRAD = PASSES = "forward", "input_grad", "weight_grad"
FEW_CHANNELS = 4  # up to here, gathering runs of a window's rows beats padding to full registers


class Layer(NamedTuple):
    """The shapes of one convolution, as its caller has them."""

    x: tuple[int, ...]  # (N, H, W, C)
    weight: tuple[int, ...]  # (F, C, R, S)
    out: tuple[int, ...]  # (N, P, Q, F)
    stride: int
    padding: int


class Epilogue(NamedTuple):
    """Done to the results on their way to memory: max(y + bias + residual, 0 if relu)."""

    bias: Array | None = None
    residual: Array | None = None
    relu: bool = False

    @property
    def empty(self) -> bool:
        return self.bias is None and self.residual is None and not self.relu

    def arguments(self, y: Array) -> tuple:
        """Give bias (F,), residual (N * P * Q * F,), has_residual, floor, as kernels take them,
        there or not.
        """
        bias = _zeros(y.shape[3]) if self.bias is None else self.bias
        residual = y if self.residual is None else self.residual
        floor = ZERO if self.relu else LOWEST
        return bias, residual.reshape(-1), int(self.residual is not None), floor


@functools.lru_cache(maxsize=64)
def _zeros(count: int) -> Array:
    """Stand for no bias; no kernel writes to it."""
    return np.zeros(count, np.float32)


def round_up(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple


def padded(array: Array, shape: tuple[int, ...]) -> Array:
    """`array` as the kernels take it (C-contiguous, aligned, writable: one compiled version each),
    with zeros up to `shape`; itself where it is so already.
    """
    if array.shape == shape and array.flags.carray:
        return np.asarray(array)
    out = workspace.empty(shape)
    if array.shape != shape:
        out.fill(0)
    out[tuple(slice(size) for size in array.shape)] = array
    return out


def copied(array: Array) -> Array:
    """A C-contiguous copy."""
    out = workspace.empty(array.shape)
    out[...] = array
    return out
