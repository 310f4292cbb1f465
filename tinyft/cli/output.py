"""What is printed where: results to stdout, all else to stderr."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
import unicodedata
from typing import Any, TextIO

# All that str.splitlines breaks at, or a tab, with the spaces around.
_BREAK = re.compile(r" *[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+ *")


def say(text: str) -> None:
    """A line on stderr. That nobody reads it is no reason to stop."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


class Unheeded:
    """A stream that somebody else writes to, with no more care for readers than `say` has."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def result(text: str) -> None:
    """A line on stdout."""
    print(text, flush=True)


def json_result(value: Any) -> None:
    """One line of JSON on stdout. JSON has no NaN and no infinity: they become null."""
    result(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def one_line(text: str) -> str:
    """Text with line breaks and tabs as spaces and other control characters spelt out: a file's
    name may hold any. All other spaces stay, or a command that is printed names another file.
    """
    return "".join(_printable(c) for c in _BREAK.sub(" ", text.strip("\r\n")))


def _printable(character: str) -> str:
    is_space = unicodedata.category(character) == "Zs"  # only the plain one counts as printable
    return character if character.isprintable() or is_space else repr(character)[1:-1]


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def duration(seconds: float) -> str:
    """ "48 s", "3 min 05 s", "2 h 10 min" """
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"
