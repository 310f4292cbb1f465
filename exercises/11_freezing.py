"""freezing: which layers backward reaches, and why it stops (20 minutes)

A step is a list of calls in the order in which they ran: (name, inputs, trains). `inputs` are the
earlier calls whose results it took, or "photos"; `trains` is True for a layer whose weights want a
gradient, False for one whose weights are frozen, None for a call without weights (relu, add).

Three questions about each call say what backward costs and whom it reaches:

    recorded   Is the call on the tape? Only if somebody wants a gradient from it: its own weights,
               or a recorded call that it took a result from. Photos want none.
    weight     Does backward compute the gradient of its weights?
    passes     Does backward compute the gradient of what the call took in, and so walk on?

Write `walk`. Then answer by looking at what it says: why does a frozen layer save half of its way
back if something before it trains, and all of it if not? (The last hint answers.)
"""

# bn="fastai": in a frozen body the scales and shifts of the batch norms train.
FASTAI = [
    ("conv1", ["photos"], False), ("bn1", ["conv1"], True), ("relu", ["bn1"], None),
    ("conv2", ["relu"], False), ("add", ["conv2", "relu"], None), ("head", ["add"], True),
]  # fmt: skip


def walk(calls):
    """-> {name: (recorded, weight, passes)}, three True or False for each call"""
    answers = {}
    for name, inputs, trains in calls:
        ...
    return answers


# ------------------------------------------- below: what `tinyft exercises` knows, and you do not

HINTS = [
    "passes: is any of the inputs a call that was recorded? Earlier calls are in `answers` "
    "already; photos are not.",
    "recorded: trains or passes. weight: trains, since a layer whose own weights want a gradient "
    "is always recorded.",
    "In tinyft these are two lines: tinyft/engine/tape.py: _record says what is recorded. See "
    "docs/glossary.md, `tape` and `leaf`, for the words.",
    "Why: a layer has two products to compute on the way back, for its weights and for its input. "
    "A frozen one saves the first alone if it must pass something on; if not, it is not recorded.",
]


def check(yours):
    import numpy as np

    import tinyft as ft

    head_alone = [(name, inputs, trains and name == "head") for name, inputs, trains in FASTAI]
    first_alone = [("conv1", ["photos"], True), ("relu", ["conv1"], None), ("fc", ["relu"], False)]
    nothing = [("conv1", ["photos"], False), ("relu", ["conv1"], None)]
    one_branch = [
        ("conv1", ["photos"], False), ("conv2", ["conv1"], True), ("add", ["conv1", "conv2"], None),
    ]  # fmt: skip
    networks = {
        "fastai": FASTAI, "head alone": head_alone, "first layer alone": first_alone,
        "nothing trains": nothing, "one branch": one_branch,
    }  # fmt: skip
    for title, calls in networks.items():
        mine = yours.walk(calls)
        if not mine:  # or each call would be called missing
            yield title, ..., {}
            continue
        made, weights, right = {"photos": ft.Tensor(np.ones((2, 2)))}, {}, {}
        for name, inputs, trains in calls:
            taken = [made[i] for i in inputs]
            if trains is not None:
                weights[name] = ft.Tensor(np.ones((2, 2)), requires_grad=trains)
                out = ft.ops.linear(*taken, weights[name])
            else:
                out = taken[0] + taken[1] if len(taken) == 2 else ft.ops.relu(*taken)
            made[name], before = out, out.node.inputs if out.node else ()
            right[name] = [bool(out.node), False, any(isinstance(i, ft.Node) for i in before)]
        if out.node:
            out.backward(np.ones((2, 2)))
        for name, weight in weights.items():
            right[name][1] = weight.grad is not None
        for name, inputs, trains in calls:
            call = f"{title}: {name}({', '.join(inputs)}), trains {trains}"
            answers = mine.get(name) and [bool(answer) for answer in mine[name]]
            yield f"{call} (recorded, weight, passes)", answers, right[name]
