"""`tinyft weights ...`: published weights, and files between their format and tinyft's."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyft.cli.failures import RequestError, naming
from tinyft.cli.opening import trained_file
from tinyft.cli.options import Parser, add_command, add_json, expect_replaceable
from tinyft.cli.output import json_result, one_line, result, say
from tinyft.display import aligned, beside, counted, did_you_mean

if TYPE_CHECKING:
    from tinyft.weights import Weights


HELP = "list, fetch, convert, export and verify weights"
EXAMPLE = "tinyft weights convert resnet18.pth resnet18.h5"


def add_options(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, run: Callable[[argparse.Namespace], int], help: str, example: str) -> Any:
        return add_command(actions, name, run, help=help, example=f"tinyft weights {example}")

    below = action(
        "list", list_published, "list the published weights that can be fetched",
        "list --arch resnet50",
    )  # fmt: skip
    below.add_argument("--arch", metavar="NAME", help="only those of this architecture")
    add_json(below)

    below = action(
        "fetch", fetch_published, "download published weights into the cache, and check them",
        "fetch resnet18",
    )  # fmt: skip
    below.add_argument("name", metavar="NAME", help="an id of `weights list`, or an architecture")

    below = action(
        "convert", convert,
        "write weights of any format as tinyft's HDF5 file, and report how they fit",
        "convert resnet18.pth resnet18.h5",
    )  # fmt: skip
    below.add_argument("source", metavar="SRC", help=".pth, .th, .pth.tar, .safetensors, .h5")
    below.add_argument("out", metavar="OUT.h5")
    below.add_argument("--arch", metavar="NAME", help="(default: recognised from the shapes)")
    below.add_argument("--half", action="store_true", help="store weights as float16")
    ignore = "leave out objects of unknown classes"
    below.add_argument("--ignore-unknown", action="store_true", help=ignore)

    below = action(
        "export", export,
        "write a trained network for ONNX Runtime, or as safetensors in torchvision's names with a "
        "Python file that loads it in PyTorch",
        "export runs/photos-resnet18-1 flowers.onnx",
    )  # fmt: skip
    what = "a run's folder, a saved learner, a weights file, or a published name"
    below.add_argument("source", metavar="RUN|WEIGHTS", help=what)
    below.add_argument("out", metavar="OUT.onnx|OUT.safetensors")
    below.add_argument("--best", action="store_true", help="the run's best epoch, not its last")

    below = action(
        "verify", verify_file, "check a weights file: its hash, its numbers, its architecture",
        "verify resnet18.h5",
    )  # fmt: skip
    below.add_argument("source", metavar="FILE")
    add_json(below)


def list_published(args: argparse.Namespace) -> int:
    from tinyft.weights import cached_path, entries
    from tinyft.weights.published.registry import sources

    chosen = [entry for entry in entries() if args.arch in (None, entry.arch)]
    if not chosen:
        known = ", ".join(sorted({entry.arch for entry in entries()}))
        raise RequestError(f"no weights are published for {args.arch}; there are some for {known}")
    if args.json:
        json_result([{"id": e.id, "arch": e.arch, "top1": e.top1, "bytes": e.size,
                      "licence": e.licence, "url": e.url, "sha256": e.sha256}
                     for e in chosen])  # fmt: skip
        return 0
    rows = [("name", "architecture", "accuracy", f"{'size':>9}", "licence", "")]
    for entry in chosen:
        accuracy = f"{entry.top1:6.2f} %" if entry.top1 else "       -"
        size = f"{entry.size / 1e6:6.1f} MB" if entry.size else "        -"
        here = "(fetched)" if cached_path(entry).exists() else ""
        if entry.bundled_file:
            here = "(comes with tinyft)"
        elif not sources(entry)[0].sha256:
            here = f"(no sha256 is published) {here}"
        rows.append((entry.id, entry.arch, accuracy, size, entry.licence, here.rstrip()))
    result("\n".join(aligned(rows)))
    say("accuracy: on ImageNet, of tinyft's own on Tiny ImageNet; --weights NAME takes one")
    return 0


def fetch_published(args: argparse.Namespace) -> int:
    from tinyft.weights import fetch, find

    entry = find(args.name)
    args.working = True
    args.on_interrupt = "; the same command goes on with what came"
    result(str(fetch(entry)))
    return 0


def convert(args: argparse.Namespace) -> int:
    from tinyft.weights import load_weights, save_weights

    _check_out(args, (".h5", ".hdf5"), "weights convert writes tinyft's HDF5 file")
    options = {"arch": args.arch, "ignore_unknown": args.ignore_unknown}
    with naming(args.source):
        weights = load_weights(args.source, **options)
    args.working = True
    digest = save_weights(args.out, weights, half=args.half)
    _show_report(weights)
    result(f"{args.out}: {_describe(weights)}; content sha256 {digest}")
    return 0


def export(args: argparse.Namespace) -> int:
    from tinyft.finetune.run.save import judged_preprocess, settings_in
    from tinyft.nn.head import HEADS
    from tinyft.weights import export_onnx, export_safetensors, load_weights
    from tinyft.weights.model import trained_head

    _check_out(args, (".onnx", ".safetensors"), "it writes ONNX or, also for PyTorch, safetensors")
    source = trained_file(args.source, best=args.best)
    with naming(source):
        weights = load_weights(source)
        weights = replace(weights, preprocess=judged_preprocess(source, weights))
        if settings_in(source, weights)["mirrored"]:
            say(
                "note: what is written answers for a picture alone. tinyft's answer is the softmax "
                "of its mean logits and those of the picture's mirror image"
            )
        if Path(args.out).suffix.lower() == ".onnx":
            export_onnx(weights, args.out)
            S = weights.preprocess.crop
            result(f"{args.out}: {_describe(weights)}")
            result(f"takes pictures (N, {S}, {S}, 3) uint8 RGB, gives logits and probabilities")
            return 0
    args.working = True
    export_safetensors(weights, args.out)
    result(f"{args.out}: {_describe(weights)}")
    if trained_head(weights)[0] in HEADS:
        _write_loader(Path(args.out).with_name("load_in_pytorch.py"))
    else:
        say("note: it has no head of tinyft's, so no Python file was written that loads it")
    return 0


def _write_loader(path: Path) -> None:
    """The Python file that makes PyTorch's network of an exported one. Who changed it keeps it."""
    from tinyft.bundled import bundled
    from tinyft.weights import replacing

    source = bundled(f"weights/{path.name}").read_bytes()
    if path.exists() and not (path.is_file() and path.read_bytes() == source):
        say(f"note: {path} was changed, and stays as it is; delete it, and it is written anew")
        return
    with replacing(path) as temporary:
        temporary.write_bytes(source)
    result(f"{path}: loads it in PyTorch, with torchvision and safetensors")


def verify_file(args: argparse.Namespace) -> int:
    """Reading checks all of it: whoever gets here with the weights has a good file."""
    from tinyft.weights import detect_format, file_sha256, load_weights

    if not Path(args.source).is_file():
        meant = did_you_mean(args.source, beside(args.source))
        raise RequestError(f"{args.source} is no file; expected one of weights{meant}")
    kind, digest = detect_format(args.source), file_sha256(args.source)
    args.working = True
    with naming(args.source):
        weights = load_weights(args.source)
    if args.json:
        json_result({"format": kind, "arch": weights.arch, "tensors": len(weights.arrays),
                     "classes": weights.num_classes, "sha256": digest,
                     "content_sha256": weights.metadata.get("content_sha256")})  # fmt: skip
        return 0
    checked = "matches the content" if kind == "tinyft" else "is in no file of this format"
    result(f"{args.source}: {_describe(weights)}; every number is finite")
    result(f"format {kind}; the content's hash {checked}")
    _show_report(weights)
    result(f"sha256 {digest}")
    return 0


def _check_out(args: argparse.Namespace, suffixes: tuple[str, ...], what: str) -> None:
    """Raises: RequestError for another suffix, no such folder, a folder, or the source itself"""
    out = Path(args.out)
    if out.suffix.lower() not in suffixes:
        names = " or ".join(suffixes)
        raise RequestError(f"{what}, so its name should end in {names}; got {args.out}")
    expect_replaceable("OUT", args.out, suffixes)
    if out.exists() and Path(args.source).exists() and out.samefile(args.source):
        raise RequestError(f"{args.out} is the file to be read; choose another name")


def _show_report(weights: Weights) -> None:
    """The names in it come from the file: none of them is to move the cursor or begin a line."""
    for line in weights.report.lines():
        result(one_line(line))


def _describe(weights: Weights) -> str:
    numbers = sum(array.size for array in weights.arrays.values())
    classes = counted(weights.num_classes, "class") if weights.num_classes else "no classifier"
    return f"{weights.arch}, {len(weights.arrays)} tensors, {numbers:,} numbers, {classes}"
