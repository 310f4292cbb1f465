"""adam: one step of the optimizer (20 minutes)

Adam remembers two running averages for each number: of its gradient, and of the gradient's square.
A running average moves a little towards the new value:

    average = momentum * average + (1 - momentum) * gradient

and likewise average_square, with square_momentum and gradient**2. Both begin at 0, so early ones
are too small: by the factor 1 - momentum**step, where step counts from 1. Divide each by its own.
The parameter then moves against the corrected average, divided by the root of the corrected square:

    parameter - lr * average_corrected / (sqrt(square_corrected) + eps)

Before that, weight decay shrinks the parameter: it is multiplied by 1 - lr * weight_decay. Write
`update`. Return new arrays. (Momentum changes from step to step here, as it does in training.)
"""

import numpy as np


def update(
    parameter, gradient, average, average_square, step, lr, momentum,
    square_momentum=0.99, eps=1e-5, weight_decay=0.01,
):  # fmt: skip
    """Arrays of one shape; step 1, 2, ... -> parameter, average, average_square after it"""
    average = ...
    average_square = ...
    parameter = ...
    return parameter, average, average_square


# ------------------------------------------- below: what `tinyft exercises` knows, and you do not

HINTS = [
    "The averages you return are the uncorrected ones: the correction is for this move only.",
    "In step 1 the average is (1 - momentum) * gradient; divided by 1 - momentum**1, it is the "
    "gradient. The root of the corrected square is then |gradient|: every number moves by lr.",
    "eps is added to the root, not under it. Decay: parameter * (1 - lr * weight_decay). "
    "docs/derivations.md, 4, says when the correction is not exact.",
]


def check(yours):
    import tinyft as ft

    rng = np.random.default_rng(0)
    right = [rng.normal(size=4), np.zeros(4), np.zeros(4)]
    for step, (lr, momentum) in enumerate([(1e-2, 0.95), (3e-2, 0.9), (1e-2, 0.85)], 1):
        gradient, settings = rng.normal(size=4), {"step": step, "lr": lr, "momentum": momentum}
        parameter, *averages = (array.copy() for array in right)
        mine = yours.update(parameter, gradient, *averages, **settings)
        ft.backends.get("reference").adam_step(
            right[0], gradient, right[1], right[2],
            square_momentum=0.99, eps=1e-5, weight_decay=0.01, **settings,
        )  # fmt: skip
        names = ("average", "average_square", "parameter")
        for name, i in zip(names, (1, 2, 0), strict=True):
            yield f"{name} after step {step}", mine[i], right[i].copy()
