"""Measurements of `tinyft bench` on a folder of photos: a frozen phase, and exactness."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from tinyft.cli.failures import RequestError
from tinyft.cli.output import percent, say
from tinyft.display import aligned, counted

Show = Callable[[str], None]

OTHERS = 0.05  # of the processors; what a system does by itself stays below

NAMES = {
    "tinyft": "tinyft",
    "pytorch_nchw": "PyTorch, NCHW",
    "pytorch_channels_last": "PyTorch, channels_last",
    "pytorch_nchw_folded": "PyTorch, NCHW, folded",
    "pytorch_channels_last_folded": "PyTorch, channels_last, folded",
    "pytorch_nchw_bf16": "PyTorch, NCHW, bf16",
    "pytorch_channels_last_bf16": "PyTorch, channels_last, bf16",
    "pytorch_nchw_bf16_folded": "PyTorch, NCHW, bf16, folded",
    "pytorch_channels_last_bf16_folded": "PyTorch, channels_last, bf16, folded",
    "onnxruntime": "ONNX Runtime",
}
EPOCHS, SEEDS, STEPS = 3, 5, 30  # unless asked for others
LIMIT = 5  # what a ratio of errors may be: Winograd's bound in the kernels' contract
PRESETS = {  # of the body's batch norms
    "frozen": 'bn="frozen": the body\'s batch norms stay as they are',
    "fastai": "the default: the body's batch norms train",
}
SIDES = {
    "winograd": "tinyft",
    "direct": "Winograd off",
    "pytorch": "other layout",
    "winograd_to_other": "tinyft to other",
}
MEASURES = {"largest": "largest error", "norm": "norm of the error"}


def measure(show: Show, args: argparse.Namespace, torch: bool) -> dict[str, Any]:
    """Measure what the options ask for."""
    if args.frozen:
        return {"rounds": args.rounds, "frozen": frozen(show, args, torch)}
    return {"accuracy": accuracy(show, args, torch)}


def data_and_options(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The photos without augmentation, and the arguments for `vision_learner`."""
    from tinyft.data.folder import ImageFolder

    size = {} if args.batch_size is None else {"batch_size": args.batch_size}
    data = ImageFolder(args.frozen or args.accuracy, size=args.size, augment=None, **size)
    weights = None if args.weights == "none" else args.weights or "default"
    return data, {"arch": args.arch, "weights": weights}


def frozen(show: Show, args: argparse.Namespace, torch: bool) -> list[dict[str, Any]]:
    """Both kinds of frozen phase, each shown as soon as it is measured."""
    from tinyft.bench import frozen as bench_frozen

    data, options = data_and_options(args)
    measurements = []
    epochs = args.epochs or EPOCHS
    for bn, words in PRESETS.items():
        case = bench_frozen.FrozenCase(data, bn, epochs, options)
        say(f"measuring a frozen phase, {words}")
        measured = bench_frozen.measure(case, args.rounds, alone=args.alone or not torch)
        show(f"\nfrozen phase, {counted(epochs, 'epoch')} of {data.n_train} pictures; {words}")
        _show_frozen(show, measured)
        measurements.append(measured)
    return measurements


def _show_frozen(show: Show, measured: dict[str, Any]) -> None:
    rows: list[tuple[str, ...]] = [("", " training", "validation", " together", " accuracy")]
    for name, side in measured["sides"].items():
        seconds = [f"{side[part]:8.2f} s" for part in ("training", "validation", "total")]
        rows.append((NAMES[name], *seconds, f"{percent(side['accuracy']):>9}"))
    show("\n".join(aligned(rows, indent="  ")))
    if "ratio" in measured:
        alone = f"({measured['training_ratio']:.2f} without validation)"
        show(f"  {measured['ratio']:.2f} times as fast as PyTorch {alone}:")
        show(f"  {measured['why']}")
    show_others(show, measured["others"])


def accuracy(show: Show, args: argparse.Namespace, torch: bool) -> dict[str, Any]:
    """Errors of layers, then curves of losses."""
    from tinyft.bench import accuracy as bench_accuracy

    if not torch:
        raise RequestError("--accuracy compares with PyTorch; install it: pip install torch")
    data, options = data_and_options(args)
    steps, seeds = args.steps or STEPS, args.seeds or SEEDS
    say("measuring the errors of layers")
    rows = bench_accuracy.layers(data, options, seeds)
    for measure in bench_accuracy.MEASURES:
        _show_errors(show, rows, measure)
    show(f"\nlosses of {steps} fine-tuning steps: the largest difference of two curves")
    curves = [_curve(show, data, options, seed, steps) for seed in range(seeds)]
    _show_largest(show, curves)
    return {"seeds": seeds, "layers": rows, "curves": curves}


def _show_errors(show: Show, rows: list[dict[str, Any]], measure: str) -> None:
    show(f"\n{MEASURES[measure]}, as a multiple of PyTorch's in its better layout: worst (median)")
    table = [("", "number", *SIDES.values())]
    for row in rows:
        numbers = [row["ratios"][side][measure] for side in SIDES]
        texts = [f"{number['worst']:.2f} ({number['median']:.2f})" for number in numbers]
        table.append((f"{row['kind']}: {row['pass']}", f"{row['count']:6}", *texts))
    show("\n".join(aligned(table, indent="  ")))
    for side in ("winograd", "direct"):
        above = [row for row in rows if row["ratios"][side][measure]["worst"] > LIMIT]
        count = f"{len(above)} of {len(rows)} lines" if above else "no line"
        show(f"  {SIDES[side]}: {count} above {LIMIT}")


def _curve(show: Show, data: Any, options: dict[str, Any], seed: int, steps: int) -> dict[str, Any]:
    """The curves of one seed, and how far they are from each other."""
    from tinyft.bench import accuracy as bench_accuracy

    say(f"fine-tuning with seed {seed}, five times")
    losses = bench_accuracy.curves(data, options, seed, steps)
    curves = {"losses": losses, "apart": bench_accuracy.apart(losses)}
    curves["from_exact"] = bench_accuracy.from_exact(losses)
    exact = losses["float64"]
    show(f"  seed {seed} (loss {exact[0]:.2f} to {exact[-1]:.2f})")
    _show_curves(show, curves)
    return curves


def _show_largest(show: Show, curves: list[dict[str, Any]]) -> None:
    """The largest of all seeds, how often ours is the furthest from float64, and how far seeds are
    apart.
    """
    from tinyft.bench.accuracy import between_seeds

    largest = {
        kind: {name: max(curve[kind][name] for curve in curves) for name in curves[0][kind]}
        for kind in ("apart", "from_exact")
    }
    show("  all seeds, the largest")
    _show_curves(show, largest)
    furthest = sum(
        curve["from_exact"]["winograd"]
        > max(curve["from_exact"][layout] for layout in ("nchw", "channels_last"))
        for curve in curves
    )
    show(f"  tinyft is further from float64 than both layouts: {furthest} of {len(curves)} seeds")
    seeds = between_seeds([curve["losses"] for curve in curves])
    show(f"  PyTorch's curves of two seeds in one layout: up to {seeds:.1e} apart")


def _show_curves(show: Show, curves: dict[str, Any]) -> None:
    apart, exact = curves["apart"], curves["from_exact"]
    ours = f"tinyft to the nearer one {apart['winograd']:.1e}, Winograd off {apart['direct']:.1e}"
    show(f"    PyTorch's layouts to each other {apart['pytorch']:.1e}; {ours}")
    ours = f"tinyft {exact['winograd']:.1e}, Winograd off {exact['direct']:.1e}"
    theirs = f"NCHW {exact['nchw']:.1e}, channels_last {exact['channels_last']:.1e}"
    show(f"    from float64: {ours}; PyTorch's {theirs}")


def show_others(show: Any, others: float | None) -> None:
    """A note, if other programs took so much of the processors that times are doubtful."""
    if others is not None and others > OTHERS:
        show(f"  note: other programs took {100 * others:.0f} % of the processors meanwhile")
