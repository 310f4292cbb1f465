"""`tinyft inspect RUN --step K --why` and `--what-if`: why a step changed the loss, and what other
steps would have done.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from tinyft.cli.failures import RequestError
from tinyft.cli.output import json_result, result
from tinyft.cli.parser import Parser

if TYPE_CHECKING:
    from tinyft.inspection.step.moment import Moment
    from tinyft.inspection.step.what_if import WhatIf
    from tinyft.inspection.step.why import Explanation, Jump


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("--why", action="store_true", help="why the loss of the step's pictures changed")
    add("--what-if", action="store_true", help="what other rates, or freezing, would have done")


def asked(args: argparse.Namespace) -> bool:
    """Whether one of the two questions was asked. They have no page and no graph.

    Raises: RequestError beside options of the trace
    """
    if not (args.why or args.what_if):
        return False
    if args.node or args.html or args.dot:
        raise RequestError(
            "--why and --what-if answer in text or JSON; --node, --html and --dot show the trace; "
            "ask for one or the other"
        )
    return True


def answer(args: argparse.Namespace, moment: Moment, previous: float | None) -> int:
    """Answer what was asked. `previous` is the loss recorded for the step before, if known."""
    from tinyft.inspection.step.what_if import what_if
    from tinyft.inspection.step.why import explain_step, jump

    texts, found = [], {"where": moment.where, "ids": moment.batch.ids.tolist()}
    if args.why:
        explanation, looks = explain_step(moment), jump(moment, previous)
        texts += [str(explanation), str(looks)]
        found |= {"why": plain_explanation(explanation), "jump": plain_jump(looks)}
    if args.what_if:
        outcomes = what_if(moment)
        texts.append(str(outcomes))
        found["what_if"] = plain_outcomes(outcomes)
    if args.json:
        json_result(found)
    else:
        result("\n\n".join(texts))
    return 0


def plain_explanation(found: Explanation) -> dict[str, Any]:
    """An explanation as JSON holds it."""
    parts = ("predicted", "curvature", "in_training", "dropout", "batch_norm", "statistics",
             "in_evaluation")  # fmt: skip
    pairs = zip(found.before["training"].each, found.after["training"].each, strict=True)
    losses = [[float(before), float(after)] for before, after in pairs]
    return {
        **{part: float(getattr(found, part)) for part in parts},
        "losses": {m: [found.before[m].loss, found.after[m].loss] for m in found.before},
        "groups": [dataclasses.asdict(group) for group in found.groups],
        "pictures": dict(zip(found.names, losses, strict=True)),
    }


def plain_jump(found: Jump) -> dict[str, Any]:
    """The four looks as JSON holds them."""
    described = dataclasses.asdict(found)
    del described["where"], described["pictures"]
    return described


def plain_outcomes(found: WhatIf) -> list[dict[str, Any]]:
    """The outcomes as JSON holds them."""
    return [
        dataclasses.asdict(o) | {"training": list(o.training), "evaluation": list(o.evaluation)}
        for o in found.outcomes
    ]
