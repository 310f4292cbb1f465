"""`tinyft plan`: what `finetune` with the same options would do."""

from __future__ import annotations

import argparse

from tinyft.cli.opening import describe_backend, make_learner, make_plan
from tinyft.cli.options import Parser, add_training_options
from tinyft.cli.output import result, say

HELP = "show what finetune would do, without doing it"
EXAMPLE = "tinyft plan photos/ --weights resnet18.pth --epochs 5"


def add_options(parser: Parser) -> None:
    add_training_options(parser)
    parser.add_argument(
        "--explain", action="store_true", help="each phase, why, and which file does it"
    )
    parser.add_argument("--table", action="store_true", help="each rate, and what freezing means")


def run(args: argparse.Namespace) -> int:
    from tinyft.finetune.in_words import explain, story

    learner = make_learner(args)
    plan = make_plan(args, learner)
    asked = [make for make, wanted in ((explain, args.explain), (str, args.table)) if wanted]
    result("\n\n".join(make(plan) for make in asked or [story]))
    result(describe_backend(learner.device))
    args.working = True
    result(str(learner.forecast(plan)))
    if not asked:
        say("--explain says why, --table shows every rate")
    return 0
