"""break_batch_norm: take a line out of a batch norm, and say what follows (15 minutes)

Run this file as it is: python break_batch_norm.py. Then take out line [A] alone, run it again, and
compare; put it back, and do the same with [B]. Which letter says what you saw?

    a  the loss is NaN within a few steps
    b  training goes as before to the last digit, but what was trained is useless in evaluation
    c  the loss falls all the same, and evaluation works: nothing but a gradient check tells
    d  the loss does not fall at all
"""

import numpy as np

import tinyft as ft

ANSWERS = {"A": "?", "B": "?"}  # your letters
running = np.array([np.zeros(8), np.ones(8)])  # mean and variance, for evaluation


@ft.op
def batch_norm(x, w, b):
    """x (M, C), w and b (C,) -> (M, C), normalised by the batch"""
    mean, variance = x.data.mean(0), x.data.var(0)
    running[:] = 0.9 * running + 0.1 * np.array([mean, variance])  # [B]
    inverse, scale = 1 / np.sqrt(variance + 1e-5), w.data
    normal = (x.data - mean) * inverse

    def backward(dout):
        dw, db = (dout * normal).sum(0), dout.sum(0)
        dx = scale * inverse * dout
        dx -= scale * inverse * (db + normal * dw) / len(dout)  # [A]
        return dx, dw, db

    return normal * scale + b.data, backward


def main():
    rng = np.random.default_rng(0)
    x = ft.Tensor(rng.normal(3, 1, size=(64, 4)))
    labels = (x.data[:, 0] > x.data[:, 1]).astype(int)
    start = rng.normal(size=(8, 4)), np.ones(8), np.zeros(8), rng.normal(size=(2, 8))
    first, w, b, last = parameters = [ft.Tensor(array, requires_grad=True) for array in start]
    for step in range(101):
        hidden = ft.ops.relu(batch_norm(ft.ops.linear(x, first), w, b))
        loss = ft.ops.cross_entropy(ft.ops.linear(hidden, last), labels)
        loss.backward()
        for p in parameters:
            p.data, p.grad = p.data - 0.1 * p.grad, None
        if step % 25 == 0:
            print(f"step {step:3}: loss {loss.item():.4f}")
    mean, variance = running
    normal = (x.data @ first.data.T - mean) / np.sqrt(variance + 1e-5)
    scores = np.maximum(normal * w.data + b.data, 0) @ last.data.T
    print(f"right in evaluation: {(scores.argmax(1) == labels).mean():.0%}")
    try:
        print(ft.gradcheck(batch_norm, [rng.normal(size=(6, 8)), np.ones(8), np.zeros(8)]))
    except AssertionError as error:
        print(error)


if __name__ == "__main__":
    main()


# ------------------------------------------- below: what `tinyft exercises` knows, and you do not

HINTS = [
    "Look at three things each time: the losses, the share that is right in evaluation, and what "
    "the gradient check says.",
    "[A] are two of batch norm's three terms: docs/derivations.md, 2. [B] is where evaluation "
    "takes its mean and variance from: docs/glossary.md, `running statistics`.",
]


def check(yours):
    yield (
        "A", yours.ANSWERS["A"], "c",
        "a wrong gradient often points downhill still; that is why gradients are checked",
        "compare the losses and the evaluation, and read what the gradient check says",
    )  # fmt: skip
    yield (
        "B", yours.ANSWERS["B"], "b",
        "training never reads the running statistics; evaluation reads nothing else",
        "compare the losses digit by digit, and then what is right in evaluation",
    )  # fmt: skip
