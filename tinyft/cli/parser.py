"""Parsing: errors in one line, numbers that are checked while they are parsed."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and that takes no abbreviated options: they
    would change their meaning when an option is added.
    """

    def __init__(self, **options: Any):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; `{self.prog} --help` shows an example\n")


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], *, help: str, example: str
) -> Parser:
    """A command's parser, with the options that all commands have."""
    parser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example:\n  {example}",
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.set_defaults(run=run, prog=parser.prog)
    return parser


def add_json(parser: Parser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON, the last line of stdout"
    )


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Parses a whole number that is not less than `least`, nor more than `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            limits = f">= {least}" if most is None else f"from {least} to {most:,}"
            raise argparse.ArgumentTypeError(f"expected a whole number {limits}, got {text!r}")
        return value

    return parse


def positive(text: str) -> float:
    """Parses a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def fraction(text: str) -> float:
    """Parses a number above 0 and below 1."""
    value = positive(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return value


def device(text: str) -> str:
    """Parses the name of a backend, or of a GPU."""
    if not re.fullmatch(r"auto|cpu|reference|gpu(:\d+)?", text):
        raise argparse.ArgumentTypeError(
            f"expected auto, cpu, reference, gpu or gpu:1 (the second), got {text!r}"
        )
    return text
