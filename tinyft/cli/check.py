"""`tinyft check`: what a folder of pictures would do to training, on one page."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tinyft.cli.failures import RequestError, naming
from tinyft.cli.opening import SAMPLE, open_folder
from tinyft.cli.options import (
    LABELS,
    PAGES,
    Parser,
    add_backend,
    add_json,
    add_labels,
    expect_replaceable,
    fraction,
    given,
    whole,
)
from tinyft.cli.output import answer, one_line

HELP = "look through pictures before training: copies, wrong labels, broken files, on one page"
EXAMPLE = """\
tinyft check photos/
tinyft check photos/ --weights resnet18 --out photos.html"""


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("dir", metavar="DIR", nargs="?", help="CLASS/*.jpg, or train/ and valid/ (sample photos)")
    add("--out", metavar="FILE", help="the page (DIR-check.html in the current folder)")
    what = "a weights file, a published name, or none: labels are not compared (a small network "
    add("--weights", metavar="FILE|NAME|none", help=f"{what}that comes with tinyft)")
    add("--arch", metavar="NAME", help="resnet18 ... resnet152, with its published weights")
    add("--size", type=whole(8), metavar="PIXELS", help="side of the input (the weights file's)")
    add("--seed", type=whole(0), metavar="N", help="of the split, if DIR has none (0)")
    add("--valid-fraction", type=fraction, metavar="X", help="set aside if DIR has no split (0.2)")
    add_labels(parser)
    add_backend(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from tinyft.bundled import bundled
    from tinyft.inspection.dataset.looking import check

    folder = args.dir or str(bundled(SAMPLE))
    name = Path(folder).resolve().name or "pictures"
    out = Path(args.out or f"{name}-check.html")
    expect_replaceable("--out", str(out), PAGES)
    if not os.access(out.parent, os.W_OK):
        raise RequestError(f"{out.parent}: the page cannot be written there; name it with --out")
    options = given(args, ("arch", "size", "seed", "valid_fraction"))
    if args.weights == "none":
        options["compare_labels"] = False
    elif args.weights:
        options["weights"] = args.weights
    data = folder
    if args.labels or args.label_regex:
        splitting = given(args, (*LABELS, "seed", "valid_fraction"))
        data = open_folder(folder, on_error="skip", **splitting)
    with naming(args.weights or ""):
        checked = check(data, device=args.backend or "auto", **options)
    args.working = True
    checked.save(out)
    lines = [*str(checked).splitlines(), f"{out}: all of it, with pictures"]
    answer(args, "\n".join(map(one_line, lines)), {**checked.to_dict(), "page": str(out)})
    return 0
