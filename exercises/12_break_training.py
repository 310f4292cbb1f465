"""break_training: take a line out of a training loop, and say what follows (15 minutes)

Run this file as it is: python break_training.py. Then take out line [A] alone, run it again, and
compare; put it back, and do the same with [B]. Which letter says what you saw?

    A  a  the loss is NaN within a few steps
       b  gradients of earlier steps add up: their length grows, and Adam goes on in old directions
       c  an error: the graph was already used and is freed
       d  no number changes, since Adam divides by the size of the gradient
    B  a  the parameters go on moving while photos are judged
       b  an error: a batch norm cannot judge a single photo
       c  what a photo is taken for depends on the photos that are judged beside it
       d  nothing changes: without loss.backward() there is no training
"""

import numpy as np

import tinyft as ft
from tinyft.bundled import bundled

ANSWERS = {"A": "?", "B": "?"}  # your letters


def main():
    data = ft.ImageFolder(bundled("examples/animals8"), size=64, seed=0)
    learner = ft.vision_learner(data, "resnet10s", head="linear")
    model, optimizer = learner.model.train(), learner.optimizer
    for step, batch in enumerate(data.train_batches(0, learner.preprocess)):
        loss = learner.loss(model(learner.input(batch.images)), batch.labels)
        optimizer.zero_grad()  # [A]
        loss.backward()
        optimizer.step()
        length = np.linalg.norm(model.head.linear.weight.grad)
        print(f"step {step:2}: loss {loss.item():.3f}, length of the head's gradient {length:.2f}")

    model.eval()  # [B]
    with ft.no_grad():
        together = model(learner.input(batch.images)).data
        alone = model(learner.input(batch.images[:1])).data
    print("the first photo among others ", np.round(together[0, :4], 3))
    print("the first photo by itself    ", np.round(alone[0, :4], 3))


if __name__ == "__main__":
    main()


# ------------------------------------------- below: what `tinyft exercises` knows, and you do not

HINTS = [
    "A: compare the lengths of the gradients in the later steps, with and without the line.",
    "A: `grad` is added to, not set; see docs/glossary.md, `leaf`, and tinyft/engine/tape.py: "
    "_add_to_leaf.",
    "B: compare the last two lines that are printed. By what does a batch norm normalise in "
    "training, and by what in evaluation? docs/glossary.md, `batch statistics` and `running "
    "statistics`.",
]


def check(yours):
    yield (
        "A", yours.ANSWERS["A"], "b",
        "backward adds to `grad`, so each step is made with the sum of all gradients so far",
        "look at the lengths of the gradient, step by step, with and without the line",
    )  # fmt: skip
    yield (
        "B", yours.ANSWERS["B"], "c",
        "in training mode a batch norm normalises with its batch, whose other photos then matter",
        "compare the last two lines that are printed",
    )  # fmt: skip
