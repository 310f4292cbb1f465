"""one_cycle: the learning rate over a training (15 minutes)

A random head makes large gradients, so training begins with small steps, warms up, and then cools
down until it hardly moves: one cycle. fastai's goes along half a cosine wave each way:

    position 0      peak / 25        the share of training that is done
    position 1/4    peak
    position 1      peak / 100,000

Half a cosine from a to b: it leaves a slowly, is fastest in the middle, and arrives slowly at b.
Momentum mirrors the rate: 0.95, at the peak 0.85, and 0.95 again.

Write `cosine`, then `one_cycle`, which takes the three values that it goes through.
"""

import math


def cosine(a, b, done):
    """From a (done = 0) to b (done = 1), along half a cosine"""
    return ...


def one_cycle(position, values, warm_up=0.25):
    """values[0] to values[1] until `warm_up`, from there to values[2] at position 1"""
    return ...


# ------------------------------------------- below: what `tinyft exercises` knows, and you do not

HINTS = [
    "cos(pi * done) goes from 1 to -1. So (1 - cos(pi * done)) / 2 goes from 0 to 1.",
    "cosine = a + (b - a) * (1 - cos(pi * done)) / 2",
    "How much of its own piece is done? Before warm_up position / warm_up, after it (position - "
    "warm_up) / (1 - warm_up). docs/glossary.md has the picture under `one cycle`.",
]


def check(yours):
    import numpy as np

    import tinyft as ft

    halves = [yours.cosine(2.0, 4.0, done) for done in (0, 1 / 3, 0.5, 1)]
    title = "cosine from 2 to 4, done 0, 1/3, 1/2, 1"
    yield title, ... if ... in halves else halves, [2.0, 2.5, 3.0, 4.0]
    phase, slow = (
        ft.finetune.one_cycle_phase("all", 1, 20, 1e-3, 1, first_trainable=0, pct_start=warm_up)
        for warm_up in (0.25, 0.5)
    )
    at = np.arange(20) / 20
    rates = [yours.one_cycle(position, (1e-3 / 25, 1e-3, 1e-3 / 1e5)) for position in at]
    # fastai locates a position in single precision
    yield "20 rates", ... if ... in rates else rates, phase.lr[:, 0].astype(np.float32)
    momentums = [yours.one_cycle(position, (0.95, 0.85, 0.95), warm_up=0.5) for position in at]
    mine = ... if ... in momentums else momentums
    yield "20 momentums, warm_up 0.5", mine, slow.momentum.astype(np.float32)
