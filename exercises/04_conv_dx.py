"""conv_dx: the gradient of a convolution's pictures (20 minutes)

The other half of `conv_dweight`, with the same forward: tap (r, s) meets one pixel in each window,
padded[met] (N, P, Q, C), and multiplies it by weight[:, :, r, s] (F, C).

Windows overlap, so most pixels were read by several taps, and some by none. Do not ask, for each
pixel, who read it. Walk through the taps as forward did, and send to each pixel that forward read
what its product is worth. Nobody wants the gradient of the zeros around. Write `input_grad`.
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


def input_grad(dout, x, weight, stride, padding):
    """dout (N, P, Q, F), the gradient of forward's result -> dx (N, H, W, C)"""
    dpadded = np.pad(np.zeros_like(x), [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    R, S = weight.shape[2:]
    P, Q = dout.shape[1:3]
    ...  # the same two loops, which fill dpadded
    return ...  # and what of it is dx?


# ------------------------------------------- below: what `tinyft exercises` knows, and you do not

HINTS = [
    "out[n, p, q, f] contains pixel[n, p, q, c] * weight[f, c, r, s]: the pixel gets dout[n, p, q, "
    "f] times that weight, summed over f. For one tap: dout @ weight[:, :, r, s].",
    "A pixel that several windows read gets the sum: dpadded[met] += ..., and not =.",
    "dx is what lies within the border: dpadded[:, padding : padding + H, padding : padding + W]. "
    "The derivation, and the checkerboard that stride leaves: docs/derivations.md, 1.",
]


def check(yours):
    import tinyft as ft

    rng = np.random.default_rng(0)
    for stride, padding, kernel in [(1, 0, (1, 1)), (1, 1, (3, 3)), (2, 1, (3, 2))]:
        values, weight = rng.normal(size=(5, 7, 6, 3)), rng.normal(size=(4, 3, *kernel))
        x = ft.Tensor(values, requires_grad=True)
        out = ft.ops.conv2d(x, ft.Tensor(weight), stride=stride, padding=padding)
        out.backward(dout := rng.normal(size=out.shape))
        mine = yours.input_grad(dout, values, weight, stride, padding)
        yield f"dx, {kernel}, stride {stride}, padding {padding}", mine, x.grad
