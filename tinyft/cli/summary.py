"""`tinyft summary`: a network's layers, what comes out of each, and their parameters."""

from __future__ import annotations

import argparse

from tinyft.cli.options import Parser, whole
from tinyft.cli.output import result

HELP = "list a network's layers, their output shapes and parameters"
EXAMPLE = "tinyft summary resnet50 --size 224"


def add_options(parser: Parser) -> None:
    parser.add_argument("arch", metavar="ARCH", help="resnet18 ... resnet152, cifar_resnet20 ...")
    parser.add_argument("--size", type=whole(1), metavar="PIXELS", help="side of the input")


def run(args: argparse.Namespace) -> int:
    from tinyft.nn import build

    shape = (args.size, args.size, 3) if args.size else None
    result(str(build(args.arch, seed=None).summary(shape)))
    return 0
