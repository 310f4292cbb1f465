"""`tinyft embed`: what a network's body makes of pictures, as numbers in a file of NumPy."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinyft.cli.opening import open_trained
from tinyft.cli.options import Parser, add_backend, expect_replaceable
from tinyft.cli.output import result
from tinyft.cli.predict import cell, pictures_of, readable, skipped
from tinyft.display import counted
from tinyft.progress import tracked

HELP = "write the features of pictures to a .npz file: features (N, F) float32, files (N,)"
EXAMPLE = """\
tinyft embed photos/ features.npz
tinyft embed photos/ features.npz --weights runs/photos-resnet18-1"""


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("dir", metavar="DIR", help="a folder of pictures, or one picture")
    add("out", metavar="OUT.npz", help="the file to write")
    what = "a run's folder, a saved learner, a weights file or a published name (resnet18)"
    add("--weights", metavar="RUN|FILE|NAME", default="resnet18", help=what)
    add(
        "--on-error",
        choices=("raise", "skip"),
        help="stop at unreadable pictures, or leave them out (raise)",
    )
    add_backend(parser)


def run(args: argparse.Namespace) -> int:
    import numpy as np

    from tinyft.finetune.answering import answers, embed
    from tinyft.weights.files import replacing

    expect_replaceable("OUT.npz", args.out, (".npz",))
    skip = args.on_error == "skip"
    files = readable(pictures_of(Path(args.dir)), skip)
    learner = open_trained(args.weights, best=False, device=args.backend or "auto")
    args.working = True
    names: list[str] = []
    parts = [embed(learner, [])]  # their shape, should none be readable
    batches = answers(learner, files, skipped if skip else None)
    for some, _, features in tracked(batches, "embedding", len(files), size=lambda b: len(b[0])):
        names += map(cell, some)
        parts.append(features)
    features = np.concatenate(parts)
    with replacing(args.out) as temporary, open(temporary, "xb") as stream:
        np.savez(stream, features=features, files=np.array(names, np.str_))
    result(f"{counted(len(names), 'picture')}, {features.shape[1]} features each: {args.out}")
    return 0
