"""Lets an object show itself: a table in a terminal, and in a notebook what is drawn far above.

Every notebook (Jupyter, VS Code, Colab, marimo) asks an object for `_repr_html_`. The engine should
answer, and should not know how to draw a table. So its classes are `Displayed`, which is all that
they know of it; what draws is put into `renderer` by the top of the package (tinyft/__init__.py),
which sees every layer, and until then the answer is the text that `print` shows.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row: columns of equal width, without blanks at the ends."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def first_few(names: Sequence[str], most: int = 4) -> str:
    """ "cougar, dalmatian, dolphin, nautilus and 4 more" """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(number: int, noun: str) -> str:
    """ "1 epoch", "2 epochs" """
    return f"{number} {noun}" + ("" if number == 1 else "s")


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
