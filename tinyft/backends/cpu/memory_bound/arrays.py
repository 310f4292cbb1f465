"""Shared by the kernels on pictures and parameters: which arrays they take, and in what pieces."""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.simd import LANES
from tinyft.backends.cpu.runtime.threads import run_alone, run_with_scratch

PIECE = 1 << 15  # floats of one piece: 128 KiB, which stays in a core's L2 between two passes
BEYOND_CACHES = 1 << 21  # floats (8 MiB) of an array that others push out of the caches too soon
LEAST_ROWS = 64  # but so many rows, or the partial sums of 2048 channels are as large as the piece

ZERO, LOWEST = np.float32(0), np.float32(-np.inf)  # no result is less: with a ReLU, without one


def suitable(*arrays: Array | None) -> bool:
    """Tell whether the kernels take these arrays: float32, not empty, of one shape (None: absent).

    What they do not take, the reference does, or it raises: a kernel does not look where an array
    ends.
    """
    shape = None
    for a in arrays:  # `all` would call a generator once per array, in every op
        if a is None:
            continue
        if shape is None:
            shape = a.shape
        if a.dtype != np.float32 or a.size == 0 or a.shape != shape:
            return False
    return True


def suitable_channels(
    pictures: tuple[Array, *tuple[Array | None, ...]], channels: list[Array]
) -> bool:
    """Tell it for kernels that keep a channel in a lane: pictures (..., C), channels (C,), and C a
    multiple of LANES, as the 16, 64 or 2048 of a ResNet are.
    """
    shape = pictures[0].shape
    return (
        bool(shape)
        and shape[-1] % LANES == 0
        and suitable(*pictures)
        and suitable(*channels)
        and (not channels or channels[0].shape == shape[-1:])
    )


def flat(x: Array) -> Array:
    """The elements of x in a row: x's own memory if it is ordinary, else a copy.

    Read-only arrays are copied: for Numba they are another type, and all kernels would be compiled
    once more.
    """
    if not x.flags.carray:
        x = np.array(x, order="C")
    return x if x.ndim == 1 else x.reshape(-1)


def large(x: Array) -> bool:
    """Tell whether x, from `workspace.empty`, is better written past the caches (`vput`)."""
    return x.size >= BEYOND_CACHES


def rows_per_piece(C: int) -> int:
    """Rows of C floats in one piece. It depends on the shape alone, and so do all partial sums."""
    return max(LEAST_ROWS, PIECE // C)


def run_pieces(kernel, pieces: int, *arguments, scratch: int = 0) -> None:
    """All pieces, by all threads, each with so many floats of scratch memory; a single piece here,
    because waking another thread would take longer.
    """
    if pieces == 1:
        run_alone(scratch, kernel, *arguments)
    else:
        run_with_scratch(scratch, kernel, *arguments)


def in_memory_order(parameter: Array, gradient: Array, *state: Array) -> list[Array] | None:
    """Each array's elements in the order in which the parameter lies in memory, as (size,) views of
    what will be written; None if that cannot be done, or the reference should raise.
    """
    everything = parameter, gradient, *state
    if not suitable(*everything):
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
    """Do so for arrays that lie alike, as they nearly always do. It takes half of the time, and
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
