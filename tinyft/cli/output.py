"""Printing: results to stdout, all else to stderr; the progress of a run as a bar where there is a
terminal, as plain lines elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import re
import sys
import time
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from tinyft.display import first_few

if TYPE_CHECKING:
    from tinyft.finetune import Learner, Plan, StepRecord

SECONDS_BETWEEN_LINES = 30.0  # of the plain display, within an epoch

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
    """One line of JSON on stdout. Records become objects, arrays lists, NaN and infinity null."""
    result(json.dumps(_plain(value), allow_nan=False))


def answer(args: argparse.Namespace, text: str, value: Any) -> None:
    """The result in words, or with --json its value."""
    if args.json:
        json_result(value)
    elif text:
        result(text)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
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


# -------------------------------------------------------------------------------- progress of a run


def has_terminal() -> bool:
    """Say if bars and colours are welcome."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not plain and sys.stdout.isatty() and sys.stderr.isatty()


@contextlib.contextmanager
def progress(plan: Plan, start: int) -> Iterator[PlainDisplay]:
    """An observer of a run that begins with step `start` of the plan."""
    if not has_terminal():
        yield PlainDisplay(plan, start)
        return
    shown_bar = BarDisplay(plan, start)
    with shown_bar.progress:
        yield shown_bar


class PlainDisplay:
    """A line after each epoch and phase, and now and then one in between."""

    def __init__(self, plan: Plan, start: int):
        self.plan, self.done, self.start = plan, start, start
        self.began = self.last_line = time.monotonic()

    def begin(self, learner: Learner, plan: Plan) -> None:
        self.began = self.last_line = time.monotonic()

    def after_step(self, learner: Learner, record: StepRecord) -> None:
        self.done += 1
        if self.done == self.start + 1:
            self.first_ended = time.monotonic()
        if record.validation:
            self.line(self._epoch(record))
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self._between(record)
        if record.proof:
            self.line(_proof(record))

    def end(self, learner: Learner) -> None:
        """Everything has been said."""

    def line(self, text: str) -> None:
        self.last_line = time.monotonic()
        say(text)

    def time_left(self) -> str:
        steps, since = self.done - self.start, self.began
        if steps > 1:  # the first may have compiled kernels, which the others find ready
            steps, since = steps - 1, self.first_ended
        left = (time.monotonic() - since) / steps * (self.plan.steps - self.done)
        return f"{duration(left)} left" if self.done < self.plan.steps else "done"

    def _epoch(self, record: StepRecord) -> str:
        validation = record.validation
        return (
            f"epoch {record.epoch + 1} of {self.plan.epochs} ({record.phase}): "
            f"loss {record.smooth_loss:.4f}, valid loss {validation.loss:.4f}, "
            f"accuracy {percent(validation.accuracy)}; {self.time_left()}"
        )

    def _between(self, record: StepRecord) -> None:
        self.line(
            f"  step {self.done} of {self.plan.steps}: loss {record.smooth_loss:.4f}; "
            f"{self.time_left()}"
        )


class BarDisplay(PlainDisplay):
    """The same lines above a bar that shows every step."""

    def __init__(self, plan: Plan, start: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        super().__init__(plan, start)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(file=Unheeded(sys.stderr)),
        )
        self.task = self.progress.add_task(
            plan.phases[0].name, total=plan.steps, completed=start, figures=""
        )
        self.accuracy = self.loss = ""

    def after_step(self, learner: Learner, record: StepRecord) -> None:
        super().after_step(learner, record)
        if record.validation:
            self.accuracy = f", accuracy {percent(record.validation.accuracy)}"
        if record.is_fetched:  # else the last one that was: a bar is not worth waiting for
            self.loss = f"loss {record.smooth_loss:.4f}"
        self.progress.update(
            self.task,
            description=record.phase,
            completed=self.done,
            figures=f"{self.loss}{self.accuracy}, {self.time_left()}",
        )

    def line(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def _between(self, record: StepRecord) -> None:
        """The bar says it."""


def _proof(record: StepRecord) -> str:
    """Tell which tensors the phase left as they were, by the hashes of their bits."""
    names = record.proof.identical
    total = len(names) + len(record.proof.moved)
    if not names:
        return f"{record.phase}: all {total} tensors changed, as planned"
    return one_line(
        f"{record.phase}: proved unchanged, {len(names)} of {total} tensors: {first_few(names, 2)}"
    )
