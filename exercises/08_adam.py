"""adam: one step of the optimizer (20 minutes)

Adam remembers two running averages for each number: of its gradient, and of the gradient's square.
A running average moves a little towards the new value:

    average = momentum * average + (1 - momentum) * gradient

and likewise average_square, with square_momentum and gradient**2. Both begin at 0, so early ones
are too small: by the factor 1 - momentum**step, where step counts from 1. Divide each by its own
such factor (this step's momentum in the one, square_momentum in the other). The parameter then
moves against the corrected average, divided by the root of the corrected square:

    parameter - lr * average_corrected / (sqrt(square_corrected) + eps)

Before that, weight decay shrinks the parameter: it is multiplied by 1 - lr * weight_decay. Write
`update`. Return new arrays, the averages uncorrected. (Momentum changes from step to step here.)
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
    # First the move alone, then eps and the decay, each so large that its place shows.
    steps = [(1e-2, 0.95, 0, 0), (3e-2, 0.9, 0, 0), (1e-2, 0.85, 0.1, 0), (1e-2, 0.9, 0.1, 20)]
    for step, (lr, momentum, eps, decay) in enumerate(steps, 1):
        settings = {
            "step": step, "lr": lr, "momentum": momentum, "square_momentum": 0.99, "eps": eps,
            "weight_decay": decay,
        }  # fmt: skip
        given = [right[0].copy(), rng.normal(size=4), right[1].copy(), right[2].copy()]
        for array in given:
            array.flags.writeable = False  # new arrays are asked for
        mine = yours.update(*given, **settings)
        ft.backends.get("reference").adam_step(right[0], given[1], *right[1:], **settings)
        for name, i in {"average": 1, "average_square": 2, "parameter": 0}.items():
            told = f" (eps {eps}, weight_decay {decay})" if name == "parameter" else ""
            yield f"{name} after step {step}{told}", mine[i], right[i].copy()
