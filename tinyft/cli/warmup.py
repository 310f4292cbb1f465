"""`tinyft warmup`: compile every kernel that training will need, for a quick first step."""

from __future__ import annotations

import argparse
import time

from tinyft.cli.opening import describe_backend
from tinyft.cli.options import Parser, whole
from tinyft.cli.output import result, say
from tinyft.display import duration

HELP = "compile the kernels that training will need, and keep them"
EXAMPLE = "tinyft warmup --arch resnet18"


def add_options(parser: Parser) -> None:
    parser.add_argument(
        "--arch", metavar="NAME", default="resnet18", help="for which network (resnet18)"
    )
    parser.add_argument(
        "--size", type=whole(1), metavar="PIXELS", help="side of the input (the network's)"
    )
    parser.add_argument(
        "--batch-size", type=whole(2), default=16, metavar="N", help="pictures in a batch (16)"
    )


def run(args: argparse.Namespace) -> int:
    """A step and an evaluation of each phase, of random weights on empty pictures."""
    import numpy as np

    from tinyft import backends
    from tinyft.data import ImageArrays
    from tinyft.finetune import vision_learner
    from tinyft.weights import Preprocess

    backends.get("cpu")  # says what is missing
    size = args.size or Preprocess.for_architecture(args.arch).crop
    pictures = np.zeros((args.batch_size, size, size, 3), np.uint8)
    labels = np.arange(args.batch_size) % 2
    data = ImageArrays(
        train=(pictures, labels),
        valid=(pictures, labels),
        classes=["one", "two"],
        size=size,
        batch_size=args.batch_size,
    )
    learner = vision_learner(data, args.arch, weights=None)
    say(f"compiling for {args.arch}; {describe_backend(learner.device)}")
    args.working = True
    started = time.perf_counter()
    for _ in learner.steps(learner.plan(1), norms=True):  # measured, as in a run
        pass
    result(f"ready after {duration(time.perf_counter() - started)}")
    return 0
