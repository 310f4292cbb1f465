"""Checked convolutions for float32 arrays: any shape comes in, padded channels go to the kernels."""

from __future__ import annotations

import numpy as np

from tinyft.backends.cpu import implicit_gemm as direct
from tinyft.backends.cpu import winograd
from tinyft.backends.cpu.simd import LANES


def _up(n):
    return -(-n // LANES) * LANES


def _pad_channels(a, axis, n):
    a = np.ascontiguousarray(a)
    if a.shape[axis] == n:
        return a
    shape = list(a.shape)
    shape[axis] = n
    out = np.zeros(shape, np.float32)
    out[tuple(slice(0, s) for s in a.shape)] = a
    return out


def _winograd(R, S, stride, pad, C):
    return R == S == 3 and stride == 1 and pad <= 2 and C > 4


def conv2d(x, weight, bias, stride, pad, residual, relu):
    N, H, W, C = x.shape
    w = weight.transpose(2, 3, 1, 0)
    R, S, _, F = w.shape
    P, Q = (H + 2 * pad - R) // stride + 1, (W + 2 * pad - S) // stride + 1
    Fp = _up(F)
    Cp = C if C <= 4 else _up(C)
    x = _pad_channels(x, 3, Cp)
    w = _pad_channels(_pad_channels(w, 3, Fp), 2, Cp)
    y = np.empty((N, P, Q, Fp), np.float32)
    b = None if bias is None else _pad_channels(bias, 0, Fp)
    r = None if residual is None else _pad_channels(residual, 3, Fp)
    if _winograd(R, S, stride, pad, C):
        if b is None and r is None and not relu:
            winograd.train_forward(x, w, False, pad, y)
        else:
            winograd.forward(x, winograd.transform_filter(w, False), Fp, pad, y, b, r, relu)
    else:
        direct.forward(x, direct.pack(w), R, S, stride, pad, y, b, r, relu)
    return y if Fp == F else np.ascontiguousarray(y[..., :F])


def conv2d_input_grad(dout, weight, x_shape, stride, pad):
    w = weight.transpose(2, 3, 1, 0)
    R, S, C, F = w.shape
    Fp, Cp = _up(F), _up(C)
    dout = _pad_channels(dout, 3, Fp)
    w = _pad_channels(_pad_channels(w, 3, Fp), 2, Cp)
    dx = np.empty((*x_shape[:3], Cp), np.float32)
    if _winograd(R, S, stride, pad, C):
        winograd.train_forward(dout, w, True, 2 - pad, dx)
    else:
        direct.input_gradient(
            dout, direct.pack_input_gradient(w, stride, pad), R, S, stride, pad, dx
        )
    return dx if Cp == C else np.ascontiguousarray(dx[..., :C])


def conv2d_weight_grad(dout, x, weight_shape, stride, pad):
    F, C, R, S = weight_shape
    Fp = _up(F)
    Cp = C if C <= 4 else _up(C)
    x, dout = _pad_channels(x, 3, Cp), _pad_channels(dout, 3, Fp)
    dw = np.empty((R, S, Cp, Fp), np.float32)
    if _winograd(R, S, stride, pad, C):
        winograd.weight_gradient(x, dout, pad, dw)
    else:
        direct.weight_gradient(x, dout, R, S, stride, pad, dw)
    return np.ascontiguousarray(dw[:, :, :C, :F]).transpose(3, 2, 0, 1)
