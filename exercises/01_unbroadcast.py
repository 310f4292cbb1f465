"""unbroadcast: what broadcasting repeated is summed on the way back (10 minutes)

NumPy adds a bias of shape (3,) to every row of a (5, 3) array, as if it stood there five times.
Each of the five gets a gradient of its own, and the bias itself gets their sum. In an autograd
engine the way back through every +, -, * and / ends with this function.

Write `unbroadcast`. It undoes both things that broadcasting does, and both at once:

    an axis that was put in front      (3,) used as (5, 3):    sum over axis 0
    an axis of length 1, stretched     (5, 1) used as (5, 3):  sum over axis 1, which stays as 1

What was not repeated comes back as it is.
"""

import numpy as np


def unbroadcast(gradient, shape):
    """The gradient of an input of that `shape`, which was used as if it had gradient.shape."""
    return ...  # an array of that shape


# ------------------------------------------- below: what `tinyft exercises` knows, and you do not

HINTS = [
    "How many axes were put in front? gradient.ndim - len(shape): sum over the first so many.",
    "Now both have as many axes. Where shape has a 1 and the gradient does not, sum over that axis "
    "with keepdims=True, so that the axis stays.",
    "Or all at once: np.sum takes several axes, axis=(0, 2); .reshape(shape) brings the 1s back.",
]


def check(yours):
    import tinyft as ft

    rng = np.random.default_rng(0)
    for shape, used in [
        ((5, 3), (5, 3)), ((3,), (5, 3)), ((5, 1), (5, 3)), ((1, 3), (4, 5, 3)), ((), (2, 3)),
        ((2, 1, 4, 1), (2, 3, 4, 5)), ((1, 3), (1, 3)),
    ]:  # fmt: skip
        gradient = rng.normal(size=used)
        b = ft.Tensor(rng.normal(size=shape), requires_grad=True)
        (ft.Tensor(np.zeros(used)) + b).backward(gradient)
        yield f"{shape} used as {used}", yours.unbroadcast(gradient, shape), b.grad
