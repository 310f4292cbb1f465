"""`tinyft tour`: TOUR.md in the terminal, the source of each stop beside its live numbers."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING

from tinyft.bundled import bundled
from tinyft.cli.failures import RequestError
from tinyft.cli.options import Parser, whole
from tinyft.cli.output import result, say
from tinyft.display import aligned, fitted, paragraph, terminal_width

if TYPE_CHECKING:
    from tinyft.finetune import Learner
    from tinyft.learn.tour import Stop

NARROWEST = 56  # columns of source beside numbers; with fewer they stand above it
HELP = "follow one training step through the source, with the numbers of a step made just now"
EXAMPLE = """\
tinyft tour
tinyft tour --stop 5
tinyft tour > tour.txt"""


def add_options(parser: Parser) -> None:
    parser.add_argument("--stop", type=whole(1), metavar="N", help="show this stop alone")


def run(args: argparse.Namespace) -> int:
    from tinyft.learn.tour import Step, stops

    tour = stops(bundled("TOUR.md").read_text(encoding="utf-8"))
    if args.stop and args.stop > len(tour):
        raise RequestError(f"there is no stop {args.stop}; the tour has {len(tour)}")
    say("making one step of the bundled network on sixteen of the bundled photos")
    step = Step(bundled_learner())
    for stop in [tour[args.stop - 1]] if args.stop else tour:
        for line in screen(stop, aligned(step.rows(stop.number))):
            result(line)
        last = stop.number == len(tour)
        if args.stop and not last:
            result(f"next: tinyft tour --stop {stop.number + 1}")
        elif not last and not _goes_on():
            break
    return 0


def bundled_learner() -> Learner:
    """The network that travels with tinyft, on the photos that do, in plain NumPy: the same numbers
    everywhere, and nothing to compile.
    """
    from tinyft.data import ImageFolder
    from tinyft.finetune import vision_learner

    data = ImageFolder(bundled("examples/animals8"), size=64, seed=0, augment=None)
    return vision_learner(data, "resnet10s", seed=0, device="reference")


def _goes_on() -> bool:
    """Ask a person; a pipe gets everything."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    try:
        return input("-- Enter: the next stop, q: end -- ").strip().lower() not in ("q", "quit")
    except EOFError:
        return False


def screen(stop: Stop, numbers: list[str]) -> Iterator[str]:
    """The lines of one stop: its words, then numbers and source, side by side where they fit."""
    yield f"\n{stop.number}. {stop.title}\n"
    yield from _words(stop.words)
    source: list[str] = []
    for place, lines in stop.source():
        source += [place, *(f"  {line}".rstrip() for line in lines), ""]
    numbers = [line for row in numbers for line in row.split("\n")]
    left = (terminal_width() or 0) - 3 - max(map(len, numbers))
    if left >= NARROWEST:
        source = [part for line in source for part in fitted(line, left).split("\n")]
        left = max(map(len, source))
        for ours, live in zip_longest(source, numbers, fillvalue=""):
            yield f"{ours:{left}}   {live}".rstrip()
    else:
        yield from [*numbers, "", *source]


def _words(text: str) -> Iterator[str]:
    """Markdown as paragraphs that fit, without pictures and the addresses of links."""
    text = re.sub(r"!\[([^]]*)\]\([^)]*/([^)]*)\)", "", text)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\*\*|`", "", text)
    for block in filter(None, map(str.strip, text.split("\n\n"))):
        for item in re.split(r"\n(?=\d+\. )", block):
            yield paragraph(" ".join(item.split()), rest="   " * item[0].isdigit())
        yield ""
