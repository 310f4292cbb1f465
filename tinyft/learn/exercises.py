"""Exercises: a file with something missing, and the judgement of what a reader wrote there.

Each is one file of the folder `exercises/`, in reading order. Above a line of dashes stands what a
reader gets, text included; below it `HINTS`, and `check(yours)`, which yields what is to be
compared: (name, the reader's array, tinyft's), perhaps with a dict of arrays that may be a missing
factor; or for a question (letter, the reader's answer, the right one, why it is right, where to
look).
"""

from __future__ import annotations

import runpy
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tinyft.testing.compare import compare_arrays

NOT_COPIED = "\n\n# ------------------------------------------- below:"


@dataclass(frozen=True)
class Exercise:
    """One exercise: its file, and what its text says of it."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem.partition("_")[2]

    @property
    def template(self) -> str:
        """What a reader gets."""
        return self.path.read_text(encoding="utf-8").partition(NOT_COPIED)[0].rstrip() + "\n"

    @property
    def title(self) -> str:
        """What it is about, and how long it takes: "which gradients ... (5 minutes)"."""
        return self.template.partition('"""')[2].partition("\n")[0].partition(": ")[2]

    @property
    def hints(self) -> list[str]:
        """From a nudge to nearly the answer."""
        return _run(self.path).HINTS

    def start(self, path: Path) -> None:
        """Write the file that is to be completed. Raises: FileExistsError, never over another"""
        with path.open("x", encoding="utf-8") as file:
            file.write(self.template)

    def judge(self, path: Path) -> Judgement:
        """Compare what a reader's file computes, one thing after the other."""
        lines: list[str] = []
        missing: list[str] = []
        solved = True
        try:
            for row in _run(self.path).check(_run(path)):
                line, right = _question(*row) if len(row) == 5 else _compared(*row)
                if right is None:
                    missing.append(row[0])
                else:
                    lines.append(line)
                    solved &= right
        except (Exception, SystemExit) as error:
            solved = False
            if not missing:  # else the error may be of what is missing
                checked = isinstance(error, AssertionError) and str(error)  # says what is wrong
                lines += checked.splitlines() if checked else [_told(error, path)]
        if missing:
            more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
            lines.append(f"not written yet: {'; '.join(missing[:4])}{more}")
        return Judgement(lines, solved and not missing)


@dataclass(frozen=True)
class Judgement:
    """What was compared, a line each, and whether all of it is right."""

    lines: list[str]
    solved: bool


def exercises(folder: Path) -> dict[str, Exercise]:
    """Every exercise of the folder by its name, in reading order."""
    return {e.name: e for e in map(Exercise, sorted(folder.glob("[0-9]*.py")))}


def _run(path: Path) -> Any:
    """What a file defines."""
    return SimpleNamespace(**runpy.run_path(str(path)))


def _compared(
    name: str, yours: Any, right: Any, known: dict[str, Any] | None = None
) -> tuple[str, bool | None]:
    """A line, and whether it is right; None for what is not written yet."""
    comparison = compare_arrays(name, yours, right, known)
    return str(comparison), None if comparison.verdict == "not written yet" else bool(comparison)


def _question(letter: str, answer: str, right: str, why: str, look: str) -> tuple[str, bool | None]:
    if answer == "?":
        return "", None
    if str(answer).strip().lower() == right:
        return f"{letter}: right; {why}", True
    return f"{letter}: {answer} is not what happens; {look}", False


def _told(error: BaseException, path: Path) -> str:
    """The error, and the line of the reader's file that it came from."""
    if isinstance(error, AttributeError) and isinstance(error.obj, SimpleNamespace):
        return f"{path} defines no {error.name}"
    if isinstance(error, SyntaxError):
        where = error.lineno
    else:
        frames = traceback.extract_tb(error.__traceback__)
        where = next((f.lineno for f in frames[::-1] if f.filename == str(path)), None)
    # the type is called 'ellipsis', its one value Ellipsis
    unwritten = " (a line that it builds on still is ...)" if "llipsis" in str(error) else ""
    line = f", line {where}" if where else ""
    return f"{path}{line}: {type(error).__name__}: {error}{unwritten}"
