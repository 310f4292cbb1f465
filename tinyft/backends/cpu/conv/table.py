"""Convolutions on the CPU: a table of algorithms, which one computes, and what is checked before.

Defined by the methods of the same names in tinyft/backends/reference.py.

A new algorithm is a file with four functions and a row of `TABLE`; the first row that suits does
the work:

    suits(what, layer) -> bool          what: "forward", "input_grad" or "weight_grad"
    forward(x, weight, y, epilogue, stride, padding)
    input_grad(dout, weight, dx, stride, padding)
    weight_grad(dout, x, dweight, stride, padding)

Kernels read and write at addresses that they compute, so everything that could lead them astray is
settled here: arrays become C-contiguous, aligned and writable (a copy, if they are not), shapes are
compared, and channels are padded with zeros to full registers. Few channels (an RGB picture) are
not padded, forward and for the weight gradient: two algorithms take them as they are. Their input
gradient, which training never asks for, pads them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.simd import LANES
from tinyft.backends.cpu.conv import bf16, few_channels, implicit_gemm, whole_maps
from tinyft.backends.cpu.conv.layer import (
    FEW_CHANNELS,
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    Epilogue,
    Layer,
    copied,
    padded,
    round_up,
)
from tinyft.backends.cpu.conv.winograd import forward as winograd
from tinyft.backends.cpu.conv.winograd import stem, strided
from tinyft.backends.cpu.conv.winograd import weight_grad as winograd_weight_grad
from tinyft.backends.cpu.runtime import packed_weights, workspace
from tinyft.backends.reference import output_size
from tinyft.errors import ShapeError


class Algorithm(NamedTuple):
    """One way to compute a convolution. `input_grad` is None if it suits no input gradient."""

    name: str
    suits: Callable[[str, Layer], bool]
    forward: Callable[..., None]
    input_grad: Callable[..., None] | None
    weight_grad: Callable[..., None]
    is_winograd: bool = False  # may be turned off
    precision: str | None = None  # for backends of this one alone; None: for all


# In milliseconds, where nothing else is said of batch 16 on two threads of an AMD Zen 5: forward,
# input gradient, weight gradient.
TABLE = (
    # 1x1 on 14x14x256 to 1024: 10.9, 8.4, 10.3, in float32 18.0, 16.9, 16.3 (Zen 4, one thread)
    Algorithm(
        "bf16", bf16.suits, bf16.forward, bf16.input_grad, bf16.weight_grad, precision="bf16"
    ),
    # 7x7 with stride 2 on 224x224x3: 5.2, -, 5.4, by few channels 9.1, -, 10.6
    Algorithm("Winograd stem", stem.suits, stem.forward, None, stem.weight_grad, is_winograd=True),
    # the same layer: 19.3, -, 22, by implicit GEMM 24.9, -, 25.8 (AMD Zen 4)
    Algorithm(
        "few channels", few_channels.suits, few_channels.forward, None, few_channels.weight_grad
    ),
    # 3x3 on 64 maps of 2x2x512: 2.7, 2.9, 2.2, by implicit GEMM 4.9, 5.1, 4.0 (Intel Xeon)
    Algorithm(
        "whole maps",
        whole_maps.suits,
        whole_maps.forward,
        whole_maps.input_grad,
        whole_maps.weight_grad,
    ),
    # 3x3 on 56x56x64: 5.2, 5.2, 5.3, by implicit GEMM 16.1, 16.1, 15.9 (one thread)
    Algorithm(
        "Winograd",
        winograd.suits,
        winograd.forward,
        winograd.input_grad,
        winograd_weight_grad.weight_grad,
        is_winograd=True,
    ),
    # 3x3 with stride 2 on 28x28x128: 2.49, 2.70, 2.59, by implicit GEMM 3.72, 3.82, 3.95
    Algorithm(
        "Winograd with stride 2",
        strided.suits,
        strided.forward,
        strided.input_grad,
        strided.weight_grad,
        is_winograd=True,
    ),
    # any layer: 180 to 240 GFLOP/s of a core's 265
    Algorithm(
        "implicit GEMM",
        implicit_gemm.suits,
        implicit_gemm.forward,
        implicit_gemm.input_grad,
        implicit_gemm.weight_grad,
    ),
)
PASS_OF = {"conv2d": FORWARD, "conv2d_input_grad": INPUT_GRAD, "conv2d_weight_grad": WEIGHT_GRAD}


def choose(what: str, layer: Layer, winograd_on: bool, precision: str | None = None) -> Algorithm:
    """The first row of the table that suits. Raises: TypeError if it lacks what it suits"""
    for algorithm in TABLE:
        if algorithm.is_winograd and not winograd_on:
            continue
        if algorithm.precision not in (None, precision):
            continue
        if algorithm.suits(what, layer):
            if getattr(algorithm, what) is None:
                raise TypeError(
                    f"the algorithm {algorithm.name!r} says that it suits {what} of {layer}, but "
                    f"its row in {__name__}.TABLE has no {what}"
                )
            return algorithm
    raise TypeError(f"no row in {__name__}.TABLE suits {what} of {layer}")


def algorithm_of(
    kernel: str,
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: int,
    padding: int,
    precision: str | None = None,
) -> str:
    """The name of the algorithm that computes "conv2d", "conv2d_input_grad" or
    "conv2d_weight_grad" for these shapes (N, H, W, C) and (F, C, R, S), in this thread, now.

    Raises: ShapeError
    """
    layer = x_shape, weight_shape, stride, padding
    return _plan(kernel, *layer, winograd_is_on(), precision).algorithm.name


# -------------------------------------------------------------------------- what the backend calls


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None,
    *,
    stride: int,
    padding: int,
    residual: Array | None,
    relu: bool,
    precision: str | None = None,
) -> Array:
    """max(conv(x) + bias + residual, 0 if relu).

    Shapes: x (N, H, W, C), weight (F, C, R, S), bias (F,), residual (N, P, Q, F) -> (N, P, Q, F)
    Raises: ShapeError
    """
    layer = x.shape, weight.shape, stride, padding
    plan = _plan("conv2d", *layer, winograd_is_on(), precision)
    y, F = workspace.empty(plan.full_out), plan.out[3]
    if bias is not None:
        _check_shape("conv2d", "bias", bias, (F,))
        bias = padded(bias, y.shape[3:])
    if residual is not None:
        _check_shape("conv2d", "residual", residual, plan.out)
        residual = padded(residual, y.shape)
    epilogue, weight = Epilogue(bias, residual, relu), _kernel_weight(weight, plan.full_weight)
    plan.compute(padded(x, plan.full_x), weight, y, epilogue, stride, padding)
    return y if y.shape == plan.out else copied(y[..., :F])


def conv2d_input_grad(
    dout: Array,
    weight: Array,
    x_shape: tuple[int, ...],
    *,
    stride: int,
    padding: int,
    precision: str | None = None,
) -> Array:
    """Shapes: dout (N, P, Q, F), weight (F, C, R, S) -> dx (N, H, W, C)

    Raises: ShapeError
    """
    layer = x_shape, weight.shape, stride, padding
    plan = _plan("conv2d_input_grad", *layer, winograd_is_on(), precision)
    _check_shape("conv2d_input_grad", "dout", dout, plan.out)
    dx, weight = workspace.empty(plan.full_x), _kernel_weight(weight, plan.full_weight)
    plan.compute(padded(dout, plan.full_out), weight, dx, stride, padding)
    return dx if dx.shape == x_shape else copied(dx[..., : x_shape[3]])


def conv2d_weight_grad(
    dout: Array,
    x: Array,
    weight_shape: tuple[int, ...],
    *,
    stride: int,
    padding: int,
    precision: str | None = None,
) -> Array:
    """Shapes: dout (N, P, Q, F), x (N, H, W, C) -> dweight (F, C, R, S), a view of (R, S, C, F)

    Raises: ShapeError
    """
    layer = x.shape, weight_shape, stride, padding
    plan = _plan("conv2d_weight_grad", *layer, winograd_is_on(), precision)
    _check_shape("conv2d_weight_grad", "dout", dout, plan.out)
    dweight = workspace.empty(plan.full_weight)
    dout, x = padded(dout, plan.full_out), padded(x, plan.full_x)
    plan.compute(dout, x, dweight, stride, padding)
    F, C, _, _ = weight_shape
    if dweight.shape[2:] != (C, F):
        dweight = copied(dweight[:, :, :C, :F])
    return dweight.transpose(3, 2, 0, 1)


class _Plan(NamedTuple):
    """An algorithm, its function for the pass, and the shapes that this reads and writes, with C
    and F padded to registers.
    """

    algorithm: Algorithm
    compute: Callable[..., None]
    out: tuple[int, ...]  # (N, P, Q, F), not padded
    full_x: tuple[int, ...]  # (N, H, W, C)
    full_weight: tuple[int, ...]  # (R, S, C, F)
    full_out: tuple[int, ...]  # (N, P, Q, F)


@functools.lru_cache(maxsize=1024, typed=True)  # each step asks for the same; 2.0 is no stride
def _plan(kernel, x_shape, weight_shape, stride, padding, winograd_on, precision) -> _Plan:
    """Raises: ShapeError"""
    F, C, R, S = weight_shape
    out = _check_window(kernel, x_shape, weight_shape, stride, padding)
    what, layer = PASS_OF[kernel], Layer(x_shape, weight_shape, out, stride, padding)
    as_they_are = C <= FEW_CHANNELS and what != INPUT_GRAD
    full_c, full_f = C if as_they_are else round_up(C, LANES), round_up(F, LANES)
    shapes = out, (*x_shape[:3], full_c), (R, S, full_c, full_f), (*out[:3], full_f)
    algorithm = choose(what, layer, winograd_on, precision)
    return _Plan(algorithm, getattr(algorithm, what), *shapes)


def _kernel_weight(weight: Array, shape: tuple[int, ...]) -> Array:
    """weight (F, C, R, S) -> `shape` (R, S, C, F), which is its memory if nothing is missing."""
    if not packed_weights.is_constant(weight):
        return padded(weight.transpose(2, 3, 1, 0), shape)
    memory = packed_weights.memory(weight).transpose(2, 3, 1, 0)
    return packed_weights.keep(weight, f"{shape}", lambda: padded(memory, shape))


def _check_window(name, x_shape, weight_shape, stride, padding) -> tuple[int, int, int, int]:
    """The shape of the output, (N, P, Q, F). Raises: ShapeError"""
    N, H, W, C = x_shape
    F, weight_c, R, S = weight_shape
    if weight_c != C:
        raise ShapeError(f"{name}: weight expects {weight_c} input channels but x has {C}")
    if stride < 1 or padding < 0:
        raise ShapeError(
            f"{name}: stride {stride} must be at least 1, padding {padding} at least 0"
        )
    P, Q = output_size(H, R, stride, padding), output_size(W, S, stride, padding)
    if P < 1 or Q < 1:
        raise ShapeError(
            f"{name}: a {R}x{S} kernel is larger than the {H}x{W} picture with padding {padding}"
        )
    return N, P, Q, F


def _check_shape(name: str, argument: str, array: Array, expected: tuple) -> None:
    if array.shape != expected:
        raise ShapeError(f"{name}: {argument} must have shape {expected}; got {array.shape}")


# --------------------------------------------------------------------------- Winograd's on and off


@functools.cache
def environment_has_winograd_on() -> bool:
    """True unless TINYFT_WINOGRAD is 0.  Raises: ValueError if it is neither 0 nor 1"""
    text = os.environ.get("TINYFT_WINOGRAD", "").strip() or "1"
    if text not in ("0", "1"):
        raise ValueError(f"TINYFT_WINOGRAD must be 0 (off) or 1 (on); got {text!r}")
    return text == "1"


class _Here(threading.local):
    """Per thread: what `switch_winograd` says, if anything."""

    winograd: bool | None = None


_here = _Here()


def winograd_is_on() -> bool:
    """Give what `switch_winograd` says in this thread, else True unless TINYFT_WINOGRAD=0."""
    switched = _here.winograd
    return environment_has_winograd_on() if switched is None else switched


@contextlib.contextmanager
def switch_winograd(on: bool) -> Iterator[None]:
    """Within this block, in this thread, Winograd computes what it suits, or nothing."""
    before, _here.winograd = _here.winograd, on
    try:
        yield
    finally:
        _here.winograd = before
