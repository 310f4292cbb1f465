"""conv_dweight: the gradient of a convolution's filters (20 minutes)

A filter of R x S taps is laid on every window of a picture; `stride` is how far the windows lie
apart, `padding` how many zeros stand around the picture. N pictures, H W rows and columns, C
channels, F filters; P Q are the rows and columns of the result.

`forward` takes the taps one by one. Tap (r, s) meets one pixel in each window: padded[met] are
those pixels, (N, P, Q, C), and each is multiplied by the same weight[:, :, r, s], (F, C).

What was used by many on the way forward collects a sum on the way back: so which products does
weight[f, c, r, s] collect? Write `weight_grad`.
"""

import numpy as np


def forward(x, weight, stride, padding):
    """x (N, H, W, C), weight (F, C, R, S) -> out (N, P, Q, F)"""
    padded = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    R, S = weight.shape[2:]
    P, Q = (padded.shape[1] - R) // stride + 1, (padded.shape[2] - S) // stride + 1
    out = 0
    for r in range(R):
        for s in range(S):
            met = np.s_[:, r : r + P * stride : stride, s : s + Q * stride : stride]
            out = out + padded[met] @ weight[:, :, r, s].T
    return out


def weight_grad(dout, x, weight, stride, padding):
    """dout (N, P, Q, F), the gradient of forward's result -> dweight (F, C, R, S)"""
    padded = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    R, S = weight.shape[2:]
    P, Q = dout.shape[1:3]
    dweight = np.zeros_like(weight)
    ...  # the same two loops
    return dweight


# ------------------------------------------- below: what `tinyft exercises` knows, and you do not

HINTS = [
    "One number: out[n, p, q, f] contains padded[met][n, p, q, c] * weight[f, c, r, s]. So this "
    "weight gets dout[n, p, q, f] times that pixel, summed over n, p and q.",
    "For one tap that is a matrix product: dout as (N P Q, F), transposed, times the pixels as "
    "(N P Q, C), which gives (F, C).",
    "dweight[:, :, r, s] = np.einsum('npqf,npqc->fc', dout, padded[met]). The derivation: "
    "docs/derivations.md, 1.",
]


def check(yours):
    import tinyft as ft

    rng = np.random.default_rng(0)
    for stride, padding, kernel in [(1, 0, (1, 1)), (1, 1, (3, 3)), (2, 1, (3, 2))]:
        x, weight = rng.normal(size=(5, 7, 6, 3)), rng.normal(size=(4, 3, *kernel))
        w = ft.Tensor(weight, requires_grad=True)
        out = ft.ops.conv2d(ft.Tensor(x), w, stride=stride, padding=padding)
        out.backward(dout := rng.normal(size=out.shape))
        mine = yours.weight_grad(dout, x, weight, stride, padding)
        mine = mine if mine.any() else ...  # the zeros that it begins with
        yield f"dweight, {kernel}, stride {stride}, padding {padding}", mine, w.grad
