"""Rounding errors of the fast kernels on real weights and photos: `tinyft bench --accuracy DIR`.

**Layer by layer.** One forward and backward pass of the learner, in training mode, gives each
convolution and each batch norm the inputs that it has in practice. From these same arrays each is
computed again: by the definition in float64 (tinyft/backends/reference.py), by our kernels with
Winograd's convolutions and without, by PyTorch in float32 in both layouts. So no error of one layer
reaches the next, and no ReLU decides differently. An error is the distance from float64 as a part
of the result: of its largest element (`largest`), or of its norm (`norm`). A ratio is our error
over PyTorch's in the layout that is more exact there; the other layout has a ratio as well, and
ours to that one.

**Curves.** The losses of some fine-tuning steps of everything (Adam at the rates of `fine_tune`, no
dropout, no augmentation), from the same state and batches: ours twice, PyTorch's twice and once
more in float64. Rounding grows from step to step on every side, so the measure is what it does to
PyTorch: how far its two layouts get from each other, and from float64. It is a draw too: of three
sides that differ by rounding alone, each is in one case of three the furthest from float64.

A seed picks the photos, the random head, and with both the gradient that arrives.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any

import numpy as np
from numpy import ndarray as Array

from tinyft import backends
from tinyft.backends.cpu.conv.table import switch_winograd
from tinyft.data.loader import Batch, PictureData
from tinyft.finetune.build import vision_learner
from tinyft.finetune.learner import Learner
from tinyft.inspection.trace.kernel_watch import KernelCall, KernelWatch, as_float64

PASSES = {  # what the results of a kernel are called
    "conv2d": ("forward",),
    "conv2d_input_grad": ("input gradient",),
    "conv2d_weight_grad": ("weight gradient",),
    "batch_norm_train": ("forward",),
    "batch_norm_train_grad": ("input gradient", "weight gradient", "bias gradient"),
}
LAYOUTS = ("nchw", "channels_last")
OURS = {"winograd": True, "direct": False}  # with it, or without
EXACT = "float64"
MEASURES = ("largest", "norm")
APART = 1000  # epochs between the orders of two seeds

Errors = dict[str, dict[str, float]]  # of each side, by each measure


def photos(learner: Learner, seed: int) -> Iterator[Batch]:
    """Batches without end, another order for each seed."""
    for epoch in itertools.count(APART * seed):
        yield from learner.own_data().train_batches(epoch, learner.preprocess)


# --------------------------------------------------------------------------------- layer by layer


def layers(data: PictureData, options: dict[str, Any], seeds: int) -> list[dict[str, Any]]:
    """One row for each kind of layer and pass: how many were measured, over all seeds, and the
    worst and the median ratio of each side by each measure.
    """
    from tinyft.bench.pytorch import TorchKernels

    theirs = {layout: TorchKernels(layout) for layout in LAYOUTS}
    by_row: dict[tuple[str, str], list[Errors]] = defaultdict(list)
    for seed in range(seeds):
        learner = vision_learner(data, device="cpu", seed=seed, **options)
        learner.unfreeze()
        for call in kernel_calls(learner, next(photos(learner, seed))):
            sides = {layout: kernels.compute(call) for layout, kernels in theirs.items()}
            for name, errors in zip(PASSES[call.kernel], errors_of(call, sides), strict=True):
                by_row[kind(call), name].append(errors)
    return [
        {"kind": which, "pass": name, "count": len(errors), "ratios": ratios(errors)}
        for (which, name), errors in sorted(by_row.items())
    ]


def kernel_calls(learner: Learner, batch: Batch) -> list[KernelCall]:
    """The convolutions and batch norms of one forward and backward pass, with what they got."""
    learner.model.train()
    watch = KernelWatch()
    with backends.use("cpu"), watch.watching():
        learner.loss(learner.model(learner.input(batch.images)), batch.labels).backward()
    return [call for call in watch.take() if call.kernel in PASSES]


def kind(call: KernelCall) -> str:
    """ "convolution 3x3, stride 2", "batch norm"; that of the head's rows is another kind."""
    arguments, options, _ = call.whole
    if call.kernel.startswith("batch_norm"):
        x = arguments[0]  # or dout, which is like it
        return "batch norm" if x.ndim == 4 else "batch norm of rows"
    R, S = (arguments[2] if call.kernel == "conv2d_weight_grad" else arguments[1].shape)[2:]
    stride = options["stride"]
    return f"convolution {R}x{S}" + (f", stride {stride}" if stride > 1 else "")


def errors_of(call: KernelCall, sides: dict[str, list[Array]]) -> list[Errors]:
    """Measure for each result of the call the distance from float64 of ours and of the others'."""
    arguments, options, _ = call.whole

    def results(device: str, arguments: Iterable, options: dict[str, Any]) -> list[Array]:
        outs = getattr(backends.get(device), call.kernel)(*arguments, **options)
        return list(outs if isinstance(outs, tuple) else (outs,))[: len(PASSES[call.kernel])]

    exact = results("reference", as_float64(arguments), as_float64(options))
    results_of = dict(sides)
    for name, switch in OURS.items():
        with switch_winograd(switch):
            results_of[name] = results("cpu", arguments, options)
    return [
        {name: relative_errors(computed[i], wanted) for name, computed in results_of.items()}
        for i, wanted in enumerate(exact)
    ]


def ratios(errors: list[Errors]) -> dict[str, dict[str, dict[str, float]]]:
    """The worst and the median of error / error of PyTorch's better layout, by side and measure;
    "pytorch" is its other layout, "winograd_to_other" ours as a multiple of that one's.
    """
    each: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for error, measure in itertools.product(errors, MEASURES):
        better, other = sorted(error[layout][measure] for layout in LAYOUTS)
        for name in OURS:
            each[name][measure].append(_ratio(error[name][measure], better))
        each["pytorch"][measure].append(_ratio(other, better))
        each["winograd_to_other"][measure].append(_ratio(error["winograd"][measure], other))
    return {
        side: {name: {"worst": max(all_), "median": median(all_)} for name, all_ in found.items()}
        for side, found in each.items()
    }


def relative_errors(result: Array, exact: Array) -> dict[str, float]:
    """Measure the largest difference and its norm, each relative to that of `exact`."""
    difference = result.astype(np.float64) - exact
    norm = _ratio(float(np.linalg.norm(difference)), float(np.linalg.norm(exact)))
    return {"largest": _ratio(np.abs(difference).max(), np.abs(exact).max()), "norm": norm}


def _ratio(a: float, b: float) -> float:
    """a / b; 1 where both are 0."""
    return float(a / b) if b else (float("inf") if a else 1.0)


# ------------------------------------------------------------------------------------------ curves


def curves(
    data: PictureData, options: dict[str, Any], seed: int, steps: int
) -> dict[str, list[float]]:
    """The losses of each side's steps, and of PyTorch's in float64, from the same state and
    batches.
    """
    import torch

    from tinyft.bench.pytorch import TorchLearner

    epochs = -(-steps // data.steps_per_epoch)

    def start() -> tuple[Learner, Any, Iterator[Batch]]:
        learner = vision_learner(data, device="cpu", seed=seed, dropout=0.0, **options)
        plan = learner.plan(epochs, freeze_epochs=0)
        learner.enter(plan.phases[0], **plan.switches)
        return learner, plan.phases[0], itertools.islice(photos(learner, seed), steps)

    losses: dict[str, list[float]] = {}
    for name, switch in OURS.items():
        learner, phase, batches = start()
        losses[name] = []
        with switch_winograd(switch):
            for i, batch in enumerate(batches):
                learner.set_rates(phase, i)
                losses[name].append(learner.train_step(batch, phase.name).loss)
    for name in (*LAYOUTS, EXACT):
        learner, phase, batches = start()
        layout, dtype = ("nchw", torch.float64) if name == EXACT else (name, torch.float32)
        theirs = TorchLearner(learner, layout, dtype)
        losses[name] = [theirs.step(batch, phase, i) for i, batch in enumerate(batches)]
    return losses


def apart(losses: dict[str, list[float]]) -> dict[str, float]:
    """The largest difference of PyTorch's two curves, and of each of ours to the nearer of them."""
    differences = {"pytorch": _apart(*(losses[layout] for layout in LAYOUTS))}
    return differences | {
        name: min(_apart(losses[name], losses[layout]) for layout in LAYOUTS) for name in OURS
    }


def from_exact(losses: dict[str, list[float]]) -> dict[str, float]:
    """The largest difference of each side's curve to that in float64."""
    return {name: _apart(losses[name], losses[EXACT]) for name in (*OURS, *LAYOUTS)}


def between_seeds(curves: list[dict[str, list[float]]]) -> float:
    """The largest difference of PyTorch's curves of two seeds, in one layout; 0 for one seed."""
    pairs = itertools.combinations(curves, 2)
    return max((_apart(a[name], b[name]) for a, b in pairs for name in LAYOUTS), default=0.0)


def _apart(curve: list[float], other: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(curve, other, strict=True))
