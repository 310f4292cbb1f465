"""Convolutions on the CPU: which kernel computes what, and what is checked before one does.

Defined by the methods of the same names in tinyft/backends/reference.py.

Kernels read and write at addresses that they compute, so everything that could lead them astray is
settled here: arrays become C-contiguous, aligned and writable (a copy, if they are not), shapes are
compared, and channels are padded with zeros to full registers. Few channels (an RGB picture) are
not padded, forward and for the weight gradient: few_channels.py and winograd/stem.py take them as
they are. Their input gradient, which training never asks for, pads them.

Letters: N pictures, H W rows and columns in, C channels in, P Q rows and columns out, F filters, R
S the kernel. Weights come as (F, C, R, S), which is best a view of memory ordered (R, S, C, F).
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.simd import LANES
from tinyft.backends.cpu.conv import few_channels, whole_maps
from tinyft.backends.cpu.conv.gemm import copied, padded, round_up
from tinyft.backends.cpu.conv.implicit_gemm import forward as implicit_gemm
from tinyft.backends.cpu.conv.implicit_gemm import weight_grad as implicit_weight_grad
from tinyft.backends.cpu.conv.implicit_gemm.forward import Epilogue
from tinyft.backends.cpu.conv.winograd import forward as winograd
from tinyft.backends.cpu.conv.winograd import stem as winograd_stem
from tinyft.backends.cpu.conv.winograd import weight_grad as winograd_weight_grad
from tinyft.backends.cpu.conv.winograd.strided import forward as winograd_strided
from tinyft.backends.cpu.conv.winograd.strided import weight_grad as winograd_strided_weight_grad
from tinyft.backends.cpu.runtime import packed_weights as prepared
from tinyft.backends.cpu.runtime import workspace
from tinyft.backends.reference import output_size
from tinyft.errors import ShapeError

FEW_CHANNELS = 4  # up to here, gathering runs of a window's rows beats padding to full registers


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None,
    *,
    stride: int,
    padding: int,
    residual: Array | None,
    relu: bool,
) -> Array:
    """max(conv(x) + bias + residual, 0 if relu).

    Shapes: x (N, H, W, C), weight (F, C, R, S), bias (F,), residual (N, P, Q, F) -> (N, P, Q, F)
    Raises: ShapeError
    """
    way = _forward_way(x.shape, weight.shape, stride, padding, winograd_is_on())
    y, F = workspace.empty(way.full_out), way.out_shape[3]
    if bias is not None:
        _check_shape("conv2d", "bias", bias, (F,))
        bias = padded(bias, y.shape[3:])
    if residual is not None:
        _check_shape("conv2d", "residual", residual, way.out_shape)
        residual = padded(residual, y.shape)
    epilogue = Epilogue(bias, residual, relu)
    way.compute(padded(x, way.full_x), _as_it_lies(weight, way.full_weight), y, epilogue)
    return y if y.shape == way.out_shape else copied(y[..., :F])


def conv2d_input_grad(
    dout: Array, weight: Array, x_shape: tuple[int, ...], *, stride: int, padding: int
) -> Array:
    """Shapes: dout (N, P, Q, F), weight (F, C, R, S) -> dx (N, H, W, C)

    Raises: ShapeError
    """
    way = _input_grad_way(x_shape, weight.shape, stride, padding, winograd_is_on())
    _check_shape("conv2d_input_grad", "dout", dout, way.out_shape)
    dx = workspace.empty(way.full_x)
    way.compute(padded(dout, way.full_out), _as_it_lies(weight, way.full_weight), dx)
    return dx if dx.shape == x_shape else copied(dx[..., : x_shape[3]])


def conv2d_weight_grad(
    dout: Array, x: Array, weight_shape: tuple[int, ...], *, stride: int, padding: int
) -> Array:
    """Shapes: dout (N, P, Q, F), x (N, H, W, C) -> dweight (F, C, R, S), a view of (R, S, C, F)

    Raises: ShapeError
    """
    way = _weight_grad_way(x.shape, weight_shape, stride, padding, winograd_is_on())
    _check_shape("conv2d_weight_grad", "dout", dout, way.out_shape)
    dweight = workspace.empty(way.full_weight)
    way.compute(padded(dout, way.full_out), padded(x, way.full_x), dweight)
    F, C, _, _ = weight_shape
    if dweight.shape[2:] != (C, F):
        dweight = copied(dweight[:, :, :C, :F])
    return dweight.transpose(3, 2, 0, 1)


# ------------------------------------------------------------------------------- which kernel it is


class _Way(NamedTuple):
    """How the convolutions of one kind are computed: found once, since each step asks for the same.

    `full_x` (N, H, W, C), `full_weight` (R, S, C, F) and `full_out` (N, P, Q, F) are the shapes
    that kernels read and write, with C and F padded to registers.
    """

    out_shape: tuple[int, ...]
    full_x: tuple[int, ...]
    full_weight: tuple[int, ...]
    full_out: tuple[int, ...]
    compute: Callable[..., None]


def _shapes(name, x_shape, weight_shape, stride, padding, *, pad_c=True) -> tuple:
    """All of a way but `compute`. Raises: ShapeError"""
    F, C, R, S = weight_shape
    out_shape = _check_window(name, x_shape, weight_shape, stride, padding)
    full_c, full_f = round_up(C, LANES) if pad_c else C, round_up(F, LANES)
    return out_shape, (*x_shape[:3], full_c), (R, S, full_c, full_f), (*out_shape[:3], full_f)


@functools.lru_cache(maxsize=1024, typed=True)  # 2.0 is 2, but no stride
def _forward_way(x_shape, weight_shape, stride, padding, winograd_on) -> _Way:
    """compute(x, weight, y, epilogue). Raises: ShapeError"""
    _, C, R, S = weight_shape
    few = C <= FEW_CHANNELS
    shapes = _shapes("conv2d", x_shape, weight_shape, stride, padding, pad_c=not few)
    out_shape, full_x, _, full_out = shapes
    if few and winograd_on and winograd_stem.suits(R, stride, x_shape, out_shape):
        compute = partial(winograd_stem.forward, stride=stride, padding=padding)
    elif few:
        compute = partial(few_channels.forward, stride=stride, padding=padding)
    elif whole_maps.suits(x_shape, R, S, stride, padding):
        compute = partial(whole_maps.forward, padding=padding)
    elif (
        winograd_on
        and winograd.suits(R, S, stride, padding, out_shape)
        and winograd.pays(out_shape)
    ):
        compute = partial(winograd.convolve, turned=False, padding=padding)
    elif (
        winograd_on
        and winograd_strided.suits(R, S, stride, padding, out_shape)
        and winograd_strided.pays(full_x[3], full_out)
    ):
        compute = partial(winograd_strided.convolve, turned=False)
    else:
        compute = partial(implicit_gemm.forward, stride=stride, padding=padding)
    return _Way(*shapes, compute)


@functools.lru_cache(maxsize=1024, typed=True)  # 2.0 is 2, but no stride
def _input_grad_way(x_shape, weight_shape, stride, padding, winograd_on) -> _Way:
    """compute(dout, weight, dx). Raises: ShapeError"""
    _, _, R, S = weight_shape
    shapes = _shapes("conv2d_input_grad", x_shape, weight_shape, stride, padding)
    out_shape = shapes[0]
    turned = {"epilogue": Epilogue(), "turned": True}
    if whole_maps.suits(x_shape, R, S, stride, padding):
        compute = partial(whole_maps.input_grad, padding=padding)
    elif winograd_on and winograd.suits(R, S, stride, padding, x_shape):
        compute = partial(winograd.convolve, padding=2 - padding, **turned)
    elif winograd_on and winograd_strided.suits(R, S, stride, padding, out_shape):
        compute = partial(winograd_strided.convolve, **turned)
    else:
        compute = partial(implicit_gemm.input_grad, stride=stride, padding=padding)
    return _Way(*shapes, compute)


@functools.lru_cache(maxsize=1024, typed=True)  # 2.0 is 2, but no stride
def _weight_grad_way(x_shape, weight_shape, stride, padding, winograd_on) -> _Way:
    """compute(dout, x, dweight). Raises: ShapeError"""
    _, C, R, S = weight_shape
    few = C <= FEW_CHANNELS
    shapes = _shapes("conv2d_weight_grad", x_shape, weight_shape, stride, padding, pad_c=not few)
    out_shape, full_x, _, full_out = shapes
    if few and winograd_on and winograd_stem.suits(R, stride, x_shape, out_shape):
        compute = partial(winograd_stem.weight_grad, stride=stride, padding=padding)
    elif few:
        compute = partial(few_channels.weight_grad, stride=stride, padding=padding)
    elif whole_maps.suits(x_shape, R, S, stride, padding):
        compute = partial(whole_maps.weight_grad, padding=padding)
    elif winograd_on and winograd_weight_grad.suits(R, S, stride, padding, out_shape):
        compute = partial(winograd_weight_grad.weight_grad, padding=padding)
    elif (
        winograd_on
        and winograd_strided.suits(R, S, stride, padding, out_shape)
        and winograd_strided.pays(full_x[3], full_out)
    ):
        compute = winograd_strided_weight_grad.weight_grad
    else:
        compute = partial(implicit_weight_grad.weight_grad, stride=stride, padding=padding)
    return _Way(*shapes, compute)


def _as_it_lies(weight: Array, shape: tuple[int, ...]) -> Array:
    """weight (F, C, R, S) -> `shape` (R, S, C, F), which is its memory if nothing is missing."""
    if not prepared.is_constant(weight):
        return padded(weight.transpose(2, 3, 1, 0), shape)
    lying = prepared.memory(weight).transpose(2, 3, 1, 0)
    return prepared.keep(weight, f"{shape}", lambda: padded(lying, shape))


@functools.cache
def _environment_has_winograd_on() -> bool:
    text = os.environ.get("TINYFT_WINOGRAD", "").strip() or "1"
    if text not in ("0", "1"):
        raise ValueError(f"TINYFT_WINOGRAD must be 0 (off) or 1 (on); got {text!r}")
    return text == "1"


class _Here(threading.local):
    """Per thread: what `switch_winograd` says, if anything."""

    winograd: bool | None = None


_here = _Here()


def winograd_is_on() -> bool:
    """What `switch_winograd` says in this thread, else True unless TINYFT_WINOGRAD=0."""
    switched = _here.winograd
    return _environment_has_winograd_on() if switched is None else switched


@contextlib.contextmanager
def switch_winograd(on: bool) -> Iterator[None]:
    """Within this block, in this thread, Winograd computes what it suits, or nothing."""
    before, _here.winograd = _here.winograd, on
    try:
        yield
    finally:
        _here.winograd = before


def _check_window(name, x_shape, weight_shape, stride, padding) -> tuple[int, int, int, int]:
    """The shape of the output, (N, P, Q, F)."""
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
