"""`tinyft plan`: what `finetune` with the same options would do."""

from __future__ import annotations

import argparse

from tinyft.cli.opening import describe_backend, make_learner, make_plan
from tinyft.cli.options import Parser, add_training_options
from tinyft.cli.output import result

HELP = "show what finetune would do, without doing it"
EXAMPLE = "tinyft plan photos/ --weights resnet18.pth --epochs 5"


def add_options(parser: Parser) -> None:
    add_training_options(parser)
    parser.add_argument(
        "--explain", action="store_true", help="in words: each phase, why, and which file does it"
    )


def run(args: argparse.Namespace) -> int:
    from tinyft.finetune.in_words import explain

    learner = make_learner(args)
    plan = make_plan(args, learner)
    result(explain(plan) if args.explain else str(plan))
    result(describe_backend(learner.device))
    args.working = True
    result(str(learner.forecast(plan)))
    return 0
