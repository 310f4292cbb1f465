"""`tinyft plan`: what `finetune` with the same options would do."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tinyft.cli.opening import describe_backend, make_learner, make_plan
from tinyft.cli.options import PAGES, Parser, add_training_options, expect_replaceable
from tinyft.cli.output import result, say, write
from tinyft.display import counted

if TYPE_CHECKING:
    from tinyft.finetune import Plan

HELP = "show what finetune would do, without doing it"
EXAMPLE = "tinyft plan photos/ --weights resnet18.pth --epochs 5"


def add_options(parser: Parser) -> None:
    add_training_options(parser)
    parser.add_argument(
        "--explain", action="store_true", help="each phase, why, and which file does it"
    )
    parser.add_argument(
        "--html", metavar="FILE", help="write a page: rates as curves, a first batch"
    )
    parser.add_argument("--table", action="store_true", help="each rate, and what freezing means")


def run(args: argparse.Namespace) -> int:
    from tinyft.finetune.in_words import explain, story

    expect_replaceable("--html", args.html, PAGES)
    learner = make_learner(args)
    plan = make_plan(args, learner)
    asked = [make for make, wanted in ((explain, args.explain), (str, args.table)) if wanted]
    result("\n\n".join(make(plan) for make in asked or [story]))
    if args.html:
        write(args.html, _page(plan, story(plan)))
    result(describe_backend(learner.device))
    args.working = True
    result(str(learner.forecast(plan)))
    if not asked:
        say("--explain says why, --table shows every rate")
    return 0


def _page(plan: Plan, story: str) -> str:
    from tinyft.inspection.html import escape, page

    title = f"{plan.subject.arch}, {counted(plan.epochs, 'epoch')}: the plan"
    return page(title, f"<h1>{escape(title)}</h1><pre>{escape(story)}</pre>{plan._repr_html_()}")
