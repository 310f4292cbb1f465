"""`tinyft lr-find`: try learning rates on a few batches and suggest one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tinyft.cli.opening import describe_backend, make_learner
from tinyft.cli.options import Parser, add_json, add_network_options, whole
from tinyft.cli.output import json_result, result, say
from tinyft.display import PROSE, counted, terminal_width

if TYPE_CHECKING:
    from tinyft.finetune import LrFinding

HELP = "try learning rates from tiny to huge and suggest one"
EXAMPLE = "tinyft lr-find photos/ --weights resnet18.pth"

ROWS = 20  # of the printed curve
LONGEST, BESIDE = 40, 20  # columns of a bar, and of the numbers before it


def add_options(parser: Parser) -> None:
    add_network_options(parser)
    parser.add_argument(
        "--steps",
        type=whole(10),
        default=100,
        metavar="N",
        help="how many rates to try; few tell little (100)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from tinyft.finetune.planning import subject_of

    learner = make_learner(args)
    say("\n".join(subject_of(learner).lines()[:2]))
    say(f"{counted(args.steps, 'step')} with a growing rate; {describe_backend(learner.device)}")
    args.working = True
    finding = learner.lr_find(num_it=args.steps)
    if args.json:
        curve = {"lr": finding.lrs, "loss": finding.losses, "smooth_loss": finding.smooth_losses}
        json_result({"suggestions": finding.suggestions, **curve})
        return 0
    result("\n".join(curve_lines(finding)))
    result(f"\nsuggestions, each by its own rule ({len(finding.lrs)} steps were made):")
    result(str(finding))
    best = next(iter(finding.suggestions.values()))
    say(f"next: tinyft finetune with the same options and --lr {best.lr:.1e}")
    return 0


def curve_lines(finding: LrFinding) -> list[str]:
    """Draw the curve as text: rate, smoothed loss and a bar, every few steps.

    The longest bar is that of the highest loss before the lowest: behind it the loss explodes,
    and beside such bars all others would look alike.
    """
    losses = finding.smooth_losses
    lowest = losses.min()
    fall = losses[: losses.argmin() + 1].max() - lowest or 1.0
    longest = min(LONGEST, (terminal_width() or PROSE) - BESIDE)
    lines = ["lr        loss"]
    for i in range(0, len(losses), max(1, len(losses) // ROWS)):
        bar = "#" * round(longest * min(1.0, (losses[i] - lowest) / fall))
        lines.append(f"{finding.lrs[i]:.2e}  {losses[i]:<8.4f}  {bar}".rstrip())
    return lines
