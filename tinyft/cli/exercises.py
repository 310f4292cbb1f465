"""`tinyft exercises`: write what a library has inside, and have it judged."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyft.bundled import bundled
from tinyft.cli.failures import RequestError
from tinyft.cli.options import Parser, add_command, whole
from tinyft.cli.output import one_line, result
from tinyft.display import aligned, did_you_mean

if TYPE_CHECKING:
    from tinyft.learn.exercises import Exercise

HELP = "write a gradient, an optimizer, a schedule yourself, and have it checked line by line"
EXAMPLE = """\
tinyft exercises list
tinyft exercises start relu     (then complete relu.py, and:)
tinyft exercises check relu"""


def add_options(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, run: Any, help: str, example: str) -> Parser:
        text = f"tinyft exercises {name} {example}".rstrip()
        below = add_command(actions, name, run, help=help, example=text)
        if name != "list":
            below.add_argument("name", metavar="NAME", help="one of `tinyft exercises list`")
        return below

    action("list", list_all, "list the exercises, in reading order, and how long each takes", "")
    action("start", start, "write NAME.py, with something missing, into the current folder", "relu")
    action("check", check, "compare what your NAME.py computes with what tinyft does", "relu")
    below = action("hint", hint, "give a hint, and then the next", "relu 2")
    below.add_argument("number", metavar="N", nargs="?", type=whole(1), default=1, help="(1)")


def _all() -> dict[str, Exercise]:
    from tinyft.learn.exercises import exercises

    return exercises(bundled("exercises"))


def _find(name: str) -> Exercise:
    known = _all()
    name = name.removesuffix(".py")
    if name not in known:
        meant = did_you_mean(name, known) or "; `tinyft exercises list` shows them"
        raise RequestError(f"there is no exercise {name!r}{meant}")
    return known[name]


def list_all(args: argparse.Namespace) -> int:
    rows = [(e.name, e.title, "(begun)" * _file(e).exists()) for e in _all().values()]
    for line in aligned(rows):
        result(line)
    result(f"\nbegin with: tinyft exercises start {rows[0][0]}")
    return 0


def start(args: argparse.Namespace) -> int:
    exercise = _find(args.name)
    try:
        exercise.start(_file(exercise))
    except FileExistsError:
        raise RequestError(
            f"{_file(exercise)} is here already, and stays as it is; check it, or go to another "
            "folder"
        ) from None
    result(f"written: {_file(exercise)}. Read it, complete it, and then:")
    result(f"  tinyft exercises check {exercise.name}")
    return 0


def check(args: argparse.Namespace) -> int:
    exercise = _find(args.name)
    name, path = exercise.name, _file(exercise)
    if not path.is_file():
        raise RequestError(f"{path} is not here; write it with tinyft exercises start {name}")
    args.working = True
    judgement = exercise.judge(path)
    for line in judgement.lines:
        result(line)
    if not judgement.solved:
        result(f"{name}: not yet; if you are stuck: tinyft exercises hint {name}")
        return 1
    later = [*_all()][[*_all()].index(name) + 1 :]
    result(f"{name}: solved" + (f"; next: tinyft exercises start {later[0]}" if later else ""))
    return 0


def hint(args: argparse.Namespace) -> int:
    exercise = _find(args.name)
    hints, number = exercise.hints, args.number
    if number > len(hints):
        raise RequestError(f"{exercise.name} has {len(hints)} hints, and no hint {number}")
    result(f"hint {number} of {len(hints)}: {one_line(hints[number - 1])}")
    if "docs/" in hints[number - 1]:
        result(f"({bundled('docs')} holds what docs/ names)")
    if number < len(hints):
        result(f"the next: tinyft exercises hint {exercise.name} {number + 1}")
    return 0


def _file(exercise: Exercise) -> Path:
    return Path(f"{exercise.name}.py")
