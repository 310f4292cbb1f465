"""batch_norm: the nine steps become one line (20 minutes)

In `batch_norm_steps` the gradient walked through nine lines. Put them into one another and most of
it cancels; what is left is what every library computes, three terms:

    dx = w * inverse * (dout - the mean of dout - normal * the mean of ...)

The first is the gradient of a channel that is merely scaled. The second and the third are there
because x moves the mean and the deviation by which it is measured. Write dx in one line; db and dw
are of use. (What does it look like if mean and variance are given numbers, as in evaluation?)
"""

import numpy as np


def forward(x, w, b, eps=1e-5):
    """x (M, C), w and b (C,) -> out (M, C), and what backward needs"""
    inverse = 1 / np.sqrt(x.var(0) + eps)
    normal = (x - x.mean(0)) * inverse
    return normal * w + b, (w, inverse, normal)


def backward(dout, cache):
    """dout (M, C) -> dx (M, C), dw (C,), db (C,)"""
    w, inverse, normal = cache
    db = dout.sum(0)
    dw = (dout * normal).sum(0)
    dx = ...
    return dx, dw, db


# ------------------------------------------- below: what `tinyft exercises` knows, and you do not

HINTS = [
    "By steps: dapart = w * inverse * (dout - normal * dw / M). The part through the variance is "
    "the one with normal.",
    "dmean is minus the sum of dapart over the M rows. normal sums to 0 there, because a mean was "
    "subtracted; so what is left of that sum? And each x gets a share of 1 / M of it.",
    "The three terms are dout, dout.mean(0) and normal * (dout * normal).mean(0). In evaluation "
    "the first alone is left. All steps: docs/derivations.md, 2.",
]


def check(yours):
    import tinyft as ft

    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(6, 3)), rng.normal(size=3), rng.normal(size=3)
    x, w, b = (ft.Tensor(a, requires_grad=True) for a in arrays)
    out, _, _ = ft.ops.batch_norm(x, w, b)
    out.backward(dout := rng.normal(size=(6, 3)))
    mine = yours.backward(dout, forward(*arrays)[1])
    yield from zip(("dx", "dw", "db"), mine, (x.grad, w.grad, b.grad), strict=True)
    ft.gradcheck(forward, arrays, backward=yours.backward)
