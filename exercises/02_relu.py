"""relu: which gradients a rectifier lets through (5 minutes)

A ReLU keeps what is above 0 and makes 0 of the rest. Move an x that is below 0 a little: nothing
changes. Move one above 0: the result moves as much.

dout says, for each element of the result, how much the loss grows when that element grows; dx is to
say the same of x. Write `backward`. At exactly 0 there is no derivative; take 0, as everybody does.
"""

import numpy as np


def forward(x):
    return np.maximum(x, 0)


def backward(dout, x):
    """dout (N, C), the gradient of forward(x); x (N, C) -> dx (N, C)"""
    return ...


# ------------------------------------------- below: what `tinyft exercises` knows, and you do not

HINTS = [
    "x > 0 is an array of True and False, one for each element.",
    "A product with True is a product with 1, and with False it is 0.",
]


def check(yours):
    import tinyft as ft

    rng = np.random.default_rng(0)
    values, dout = rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    values[1, 2] = 0
    x = ft.Tensor(values, requires_grad=True)
    ft.ops.relu(x).backward(dout)
    yield "dx", yours.backward(dout, values), x.grad
