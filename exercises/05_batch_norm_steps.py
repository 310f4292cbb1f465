"""batch_norm_steps: batch norm's backward, one small step at a time (30 minutes)

A batch norm gives each channel the mean 0 and the variance 1, then scales it by w and shifts it by
b. `forward` does that in nine steps, each so small that you know its derivative. x is (M, C): M
values of each of C channels.

Write `backward`: put a line in the place of each `...`, from step 9 back to step 1. Two rules are
enough. What M values shared (mean, variance, inverse, w, b: all (C,)) gets a sum over them,
.sum(0). What was used twice (apart, in steps 3 and 7; x, in 1 and 2) gets two gradients, added.

`check` compares every line by itself, so begin at the first that it calls wrong.
"""

import numpy as np


def forward(x, w, b, eps=1e-5):
    mean = x.sum(0) / len(x)  # 1
    apart = x - mean  # 2
    square = apart**2  # 3
    variance = square.sum(0) / len(x)  # 4
    std = np.sqrt(variance + eps)  # 5
    inverse = 1 / std  # 6
    normal = apart * inverse  # 7
    scaled = normal * w  # 8
    out = scaled + b  # 9
    return out, (x, w, apart, std, inverse, normal)


def backward(dout, cache):
    """dout (M, C), and forward's cache -> the gradient of everything, by name"""
    x, w, apart, std, inverse, normal = cache
    dscaled = ...  # 9  out = scaled + b
    db = ...
    dnormal = ...  # 8  scaled = normal * w
    dw = ...
    dapart_7 = ...  # 7  normal = apart * inverse
    dinverse = ...
    dstd = ...  # 6  inverse = 1 / std
    dvariance = ...  # 5  std = np.sqrt(variance + eps)
    dsquare = ...  # 4  variance = square.sum(0) / len(x); alike in all M rows, so (C,) will do
    dapart_3 = ...  # 3  square = apart**2
    dapart = ...  # both together
    dmean = ...  # 2  apart = x - mean; x gets dapart as it is
    dx = ...  # what x gets from step 2, and from step 1: mean = x.sum(0) / len(x)
    return {
        "dscaled": dscaled, "db": db, "dnormal": dnormal, "dw": dw, "dapart_7": dapart_7,
        "dinverse": dinverse, "dstd": dstd, "dvariance": dvariance, "dsquare": dsquare,
        "dapart_3": dapart_3, "dapart": dapart, "dmean": dmean, "dx": dx,
    }  # fmt: skip


# ------------------------------------------- below: what `tinyft exercises` knows, and you do not

HINTS = [
    "9 is a sum: both get dout, and b, which M rows share, gets dout.sum(0). 8 is a product: each "
    "factor gets dscaled times the other one; w sums over the rows.",
    "7 is a product too, of apart and of inverse, which is shared. 6: the derivative of 1 / std is "
    "-1 / std**2. 5: that of a square root is 1 / (2 * root).",
    "4: a mean gives each of its M values the share 1 / M. 3: 2 * apart. dapart is the sum of its "
    "two uses.",
    "2: mean is subtracted from all M rows: minus the sum of dapart. 1: each x gets dmean / M, "
    "beside the dapart of step 2. Written out: docs/derivations.md, 2.",
]


def check(yours):
    import tinyft as ft

    # The same nine steps on tinyft's tape. What lies between the steps is no leaf, and so keeps no
    # gradient; but a leaf of zeros that is added to it gets the same one.
    rng = np.random.default_rng(0)
    shapes = {"x": (6, 3), "w": (3,), "b": (3,)}
    leaf = {n: ft.Tensor(rng.normal(size=s), requires_grad=True) for n, s in shapes.items()}
    x, w, b = leaf.values()
    arrays = [x.data, w.data, b.data]

    def seen(name, value):
        leaf[name] = ft.Tensor(np.zeros(value.shape), requires_grad=True)
        return value + leaf[name]

    mean = seen("mean", x.sum(0) / 6)
    apart = seen("apart", x - mean)
    square = seen("square", seen("apart_3", apart) ** 2)
    variance = seen("variance", square.sum(0) / 6)
    std = seen("std", ft.ops.sqrt(variance + 1e-5))
    inverse = seen("inverse", 1 / std)
    normal = seen("normal", seen("apart_7", apart) * inverse)
    out, dout = seen("scaled", normal * w) + b, rng.normal(size=(6, 3))
    out.backward(dout)
    cache = forward(*arrays)[1]
    known = dict(zip(("w", "apart", "std", "inverse", "normal"), cache[1:], strict=True))
    for name, value in yours.backward(dout, cache).items():
        right = leaf[name[1:]].grad
        if name == "dsquare" and value is not ...:
            value = np.broadcast_to(value, right.shape)
        yield name, value, right, known

    def backward(dout, cache):
        gradients = yours.backward(dout, cache)
        return [gradients[name] for name in ("dx", "dw", "db")]

    ft.gradcheck(forward, arrays, backward=backward)
