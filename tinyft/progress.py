"""Shows how far long work is: the library counts, a display shows it, where somebody opened one.

    with working("reading pictures", 216) as work:      # anywhere in the package
        work.advance(16)
    for batch in tracked(batches, "judging", 216, size=len): ...     # the same around a loop
    with showing(sys.stderr): ...                       # the command line, or Learner.execute

Without `showing` nothing is printed. On a terminal each work that takes longer than a second has a
bar; elsewhere there is a line every 30 s.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from tinyft.display import duration

if TYPE_CHECKING:
    from rich.progress import TaskID

Item = TypeVar("Item")

SECONDS_BEFORE_BAR, SECONDS_BETWEEN_LINES = 1.0, 30.0
by_default = True  # whether training started from Python shows itself; may be exchanged


class Work:
    """Something that takes `total` steps, of which `done` were made before it began."""

    def __init__(self, what: str, total: int, unit: str = "pictures", done: int = 0) -> None:
        self.what, self.total, self.unit, self.done, self.note = what, total, unit, done, ""
        self.counted_from, self.since = done, time.monotonic()
        self.is_first = True
        self.display = shown()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count steps that were made; `note` is what is to be known of them."""
        self.done, self.note = self.done + count, note or self.note
        if self.is_first:  # it may have compiled kernels, which the others find ready
            self.first_took, self.is_first = count, False
            self.first_ended = time.monotonic()
        if self.display:
            self.display.advanced(self)

    def left(self) -> str:
        """ "12 s left" """
        if self.done >= self.total:
            return "done"
        steps, since = self.done - self.counted_from, self.since
        if not self.is_first and steps > self.first_took:
            steps, since = steps - self.first_took, self.first_ended
        if steps == 0:
            return "..."
        return f"{duration((time.monotonic() - since) / steps * (self.total - self.done))} left"

    def __str__(self) -> str:
        """ "head alone: 12 of 117 steps; 8 s left; loss 0.4577" """
        counts = f"{self.what}: {self.done} of {self.total} {self.unit}; {self.left()}"
        return f"{counts}; {self.note}" if self.note else counts


@contextlib.contextmanager
def working(what: str, total: int, unit: str = "pictures", done: int = 0) -> Iterator[Work]:
    """Work that is in progress within this block."""
    work = Work(what, total, unit, done)
    display = work.display
    if display:
        display.begin(work)
    try:
        yield work
    finally:
        if display and work in display.works:  # a generator may outlive the display
            display.end(work)


def tracked(
    items: Iterable[Item],
    what: str,
    total: int,
    unit: str = "pictures",
    size: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Item]:
    """Yield the items; each that was worked on counts for `size(item)` of the total."""
    with working(what, total, unit) as work:
        for item in items:
            yield item
            work.advance(size(item))


# ---------------------------------------------------------------------------------------- displays

_shown: ContextVar[Display | None] = ContextVar("display", default=None)


def shown() -> Display | None:
    """The display that is open in this thread."""
    return _shown.get()


@contextlib.contextmanager
def showing(stream: TextIO, *, bars: bool | None = None) -> Iterator[Display]:
    """A display of all work within this block: with bars, by default if the stream has a place for
    them.
    """
    display = (Bars if (is_terminal(stream) if bars is None else bars) else Display)(stream)
    token = _shown.set(display)
    try:
        yield display
    finally:
        _shown.reset(token)
        display.close()


def showing_training(progress: bool | None) -> contextlib.AbstractContextManager[Display | None]:
    """Return what `progress` asks for: a display on stdout, or none; None is `by_default`."""
    wanted = by_default if progress is None else progress
    return showing(sys.stdout) if wanted else contextlib.nullcontext()


def is_terminal(*streams: TextIO) -> bool:
    """Say if bars and colours are welcome on all of the streams."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not plain and all(stream.isatty() for stream in streams)


class Display:
    """Lines, for what is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.works: list[Work] = []
        self.compiling: Work | None = None
        self.last_line = time.monotonic()

    def begin(self, work: Work) -> None:
        self.works.append(work)

    def advanced(self, work: Work) -> None:
        if self.compiling and work is not self.compiling:  # what needed the kernels has them
            self.end(self.compiling)
            self.compiling = None
        if time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.line(f"  {work}")

    def end(self, work: Work) -> None:
        self.works.remove(work)

    def compile(self, kernels: int, most: int) -> None:
        """Show that the compiling of another kernel begins; before it there were so many."""
        if self.compiling is None:
            self.compiling = Work("compiling", most, "kernels or so", kernels)
            self.begin(self.compiling)
        elif self.compiling.done < most:
            self.compiling.advance()

    def line(self, text: str) -> None:
        """Print a line. That nobody reads it is no reason to stop."""
        self.last_line = time.monotonic()
        with contextlib.suppress(OSError, ValueError):
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Everything has been said."""


class Unheeded:
    """A stream that somebody else writes to, and that nobody needs to read."""

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


class Bars(Display):
    """A bar for each work in progress, below the lines; none outlives its work."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        super().__init__(stream)
        self.progress = Progress(
            BarColumn(bar_width=10, table_column=Column(no_wrap=True)),
            TextColumn("{task.description}", markup=False),
            console=Console(file=Unheeded(stream)),  # type: ignore[arg-type]  # it writes
            transient=True,
        )
        self.tasks: dict[Work, TaskID] = {}
        self.timers: dict[Work, threading.Timer] = {}
        self.lock = threading.Lock()

    def begin(self, work: Work) -> None:
        super().begin(work)
        self.timers[work] = timer = threading.Timer(SECONDS_BEFORE_BAR, self._show, [work])
        timer.daemon = True
        timer.start()

    def _show(self, work: Work) -> None:
        with self.lock:
            if work in self.works:
                self.progress.start()
                self.tasks[work] = self.progress.add_task(str(work), total=work.total)
        self._update(work)

    def advanced(self, work: Work) -> None:
        self.last_line = time.monotonic()  # the bar says it
        super().advanced(work)
        self._update(work)

    def _update(self, work: Work) -> None:
        if work in self.tasks:
            self.progress.update(self.tasks[work], description=str(work), completed=work.done)

    def end(self, work: Work) -> None:
        with self.lock:
            super().end(work)
            self.timers.pop(work).cancel()
            if work in self.tasks:
                self.progress.remove_task(self.tasks.pop(work))
            if not self.tasks:
                self.progress.stop()

    def line(self, text: str) -> None:
        if self.tasks:
            self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            super().line(text)

    def close(self) -> None:
        for work in [*self.works]:
            self.end(work)
