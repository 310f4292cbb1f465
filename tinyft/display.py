"""Lets an object show itself: text that fits the terminal, and in a notebook what is drawn far
above.

Every notebook (Jupyter, VS Code, Colab, marimo) asks an object for `_repr_html_`. The engine should
answer, and should not know how to draw a table. So its classes are `Displayed`, which is all that
they know of it; what draws is put into `renderer` by the top of the package (tinyft/__init__.py),
which sees every layer, and until then the answer is the text that `print` shows.
"""

from __future__ import annotations

import difflib
import html
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

PROSE = 100  # columns of a paragraph, unless a terminal has fewer
NARROWEST = 40  # columns; what a terminal of fewer shows is broken by itself
HANG = "    "  # before what goes on in another line
# What is to be copied: a command up to the end of its line, or what is to be installed.
COMMAND = re.compile(r"(?:^|(?<=: ))tinyft [a-z-]+ .*$|pip install \S+")


def terminal_width(stream: TextIO | None = None) -> int | None:
    """The columns of the terminal that `stream` (default: stdout) is, unless COLUMNS says
    otherwise; None for a file or a pipe, whose lines may have any length.
    """
    try:
        columns = int(os.environ.get("COLUMNS", "0"))
        columns = columns or os.get_terminal_size((stream or sys.stdout).fileno()).columns
    except (OSError, ValueError, AttributeError):
        return None
    return max(columns, NARROWEST) if columns > 0 else None


def paragraph(text: str, *, first: str = "", rest: str = "") -> str:
    """The text in lines that fit, broken between words, which `first` and `rest` begin."""
    width = min(terminal_width() or PROSE, PROSE)
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=rest,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def fitted(text: str, width: int | None) -> str:
    """The text with its lines broken between words where they are longer than `width`. A command
    to be copied stays whole, as does what has no blank: a path, an address.
    """
    return "\n".join(_broken(line, width) for line in text.split("\n")) if width else text


def _broken(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    text = line.lstrip()
    indent = line[: len(line) - len(text)]
    text = COMMAND.sub(lambda command: command[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent + HANG[:2],
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(lines).replace("\0", " ")


def aligned(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """A text for each row: columns of equal width, without blanks at the ends. Where the terminal
    is too narrow for all columns, each row goes on in lines of its own.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room, used = (terminal_width() or sys.maxsize) - len(indent), 0
    parts: list[list[int]] = [[]]
    for column, width in enumerate(widths):
        if parts[-1] and used + width > room:
            parts.append([])
            used = len(HANG)
        parts[-1].append(column)
        used += width + 2
    return ["\n".join(_lines(row, widths, parts, indent)) for row in rows]


def _lines(
    row: Sequence[str], widths: list[int], parts: list[list[int]], indent: str
) -> Iterator[str]:
    for number, part in enumerate(parts):
        line = "  ".join(row[column].ljust(widths[column]) for column in part).rstrip()
        if line or number == 0:
            yield indent + (HANG if number else "") + line


def first_few(names: Sequence[str], most: int = 4) -> str:
    """ "cougar, dalmatian, dolphin, nautilus and 4 more" """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(number: int, noun: str) -> str:
    """ "1 epoch", "2 epochs", "3 classes" """
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}" + ("" if number == 1 else plural)


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """ "; did you mean resnet18?", the names of `known` that are nearest; "" if none is near"""
    near = difflib.get_close_matches(name, list(known), n=most)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def beside(path: str | os.PathLike[str]) -> list[str]:
    """The paths of what lies where `path` was looked for: one of them may have been meant."""
    folder = os.path.dirname(path)
    try:
        names = [] if os.path.lexists(path) else os.listdir(folder or ".")
        return [os.path.join(folder, name) for name in names]
    except (OSError, ValueError):
        return []


def duration(seconds: float) -> str:
    """ "48 s", "3 min 05 s", "2 h 10 min" """
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"


def as_preformatted(value: Any) -> str:
    """The printed text, its columns kept."""
    return f"<pre>{html.escape(str(value))}</pre>"


renderer: Callable[[Any], str] = as_preformatted


class Displayed:
    """A class whose objects a notebook shows as HTML."""

    __slots__ = ()  # a Tensor has no dictionary, and keeps none from here

    def _repr_html_(self) -> str:
        return renderer(self)
