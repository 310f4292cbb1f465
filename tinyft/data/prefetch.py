"""Keeps the training step from waiting: pictures are decoded once, batches are made ahead of it.

Decoding a photograph costs more than augmenting it, and every epoch needs it again. So the
picture at working size stays in memory, for training and validation alike (`PictureCache`), and
`ahead` runs what is left in threads. Threads, not processes: Pillow's decoder and our resampling
loop release Python's lock, and nothing needs to be copied between processes.
"""

from __future__ import annotations

import collections
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

Result = TypeVar("Result")
Job = tuple[Result, Sequence[Callable[[], None]]]

BATCHES_AHEAD = 3
LARGEST_DEFAULT = 2**30  # bytes, about 4,000 pictures of 256x340


class PictureCache:
    """Remembers pictures of "train" and "valid", made when first asked for; safe to use from
    several threads, and from a signal handler that interrupts one of them.

    When the budget is full, the pictures that came first stay: an epoch visits each once, so
    throwing the oldest out would always throw out the next one needed.
    """

    def __init__(self, budget: int) -> None:
        """Units: bytes; 0 remembers nothing."""
        self.budget = budget
        self._lock = threading.RLock()
        self._changing = False
        self._forget_all()

    def __reduce__(self) -> tuple[type[PictureCache], tuple[int]]:
        """Give whoever copies its owner, by copy.deepcopy or pickle, an empty one."""
        return PictureCache, (self.budget,)

    def get(
        self, part: str, index: int, settings: Hashable, make: Callable[[], np.ndarray]
    ) -> np.ndarray:
        """Return picture `index` of a part under `settings`; other settings forget the part's
        pictures.

        The array is shared and read-only. Two threads that miss at once both make it; it is equal.
        """
        kept = self._change(self._find, part, index, settings)
        if kept is not None:
            return kept
        picture = make().view()
        picture.flags.writeable = False
        self._change(self._keep, part, index, settings, picture)
        return picture

    def bytes_of(self, count: int) -> int:
        """Estimate what it will hold once `count` pictures were asked for, by those it has."""
        mean = self.used / max(len(self._pictures), 1)
        return min(self.budget, round(mean * count))

    def _change(self, change: Callable[..., np.ndarray | None], *arguments) -> np.ndarray | None:
        """Return change(*arguments) when no other thread is at it; None within another change of
        this thread, which a signal handler interrupted: its picture is made and not remembered.
        """
        with self._lock:
            if self._changing:
                return None
            self._changing = True
            try:
                return change(*arguments)
            except BaseException:  # Ctrl-C half-way
                self._forget_all()
                raise
            finally:
                self._changing = False

    def _forget_all(self) -> None:
        self.used: int = 0
        self._settings: dict[str, Hashable] = {}  # of each part
        self._pictures: dict[tuple[str, int], np.ndarray] = {}

    def _find(self, part: str, index: int, settings: Hashable) -> np.ndarray | None:
        if settings != self._settings.get(part):
            for key in [key for key in self._pictures if key[0] == part]:
                self.used -= self._pictures.pop(key).nbytes
            self._settings[part] = settings
        return self._pictures.get((part, index))

    def _keep(self, part: str, index: int, settings: Hashable, picture: np.ndarray) -> None:
        fits = self.used + picture.nbytes <= self.budget
        wanted = settings == self._settings.get(part) and (part, index) not in self._pictures
        if fits and wanted:
            self._pictures[part, index] = picture
            self.used += picture.nbytes


def default_budget() -> int:
    """Return a quarter of the memory that is free now, at most 1 GiB. Units: bytes."""
    return min(LARGEST_DEFAULT, free_memory() // 4)


def free_memory() -> int:
    """Return what this process may still take of the machine and its container. Units: bytes."""
    return min(free_on_machine(), free_in_container())


def free_on_machine() -> int:
    """Return the bytes that this machine could still give; half of all where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return LARGEST_DEFAULT  # Windows does not say; a quarter of it is a modest budget


def free_in_container(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return what is left of the limit of the control group, of either version, that a container
    sees as its own. The system's page cache counts as free, since it would be given up.
    """
    left = [sys.maxsize]
    for limit, used, kept in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            free = int((root / limit).read_text()) - int((root / used).read_text())
            lines = (root / limit).with_name("memory.stat").read_text().splitlines()
            given_up = [int(n) for name, n in map(str.split, lines) if name == kept]
            left.append(max(free + sum(given_up), 0))
    return min(left)


def ahead(
    jobs: Iterable[Job[Result]], workers: int, depth: int = BATCHES_AHEAD
) -> Generator[Result, None, None]:
    """Yield the result of each job, in order, when all of the job's tasks have run.

    At most `depth` jobs beside the yielded one are under way. A task's exception is raised at its
    job's turn. Closing the generator, or an exception in the consumer, drops the tasks that have
    not begun and waits for the few that have. `workers=0` runs everything in the calling thread.
    """
    if workers == 0:
        for result, tasks in jobs:
            for task in tasks:
                task()
            yield result
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="tinyft-data")
    waiting: collections.deque = collections.deque()

    def finished() -> Result:
        result, futures = waiting.popleft()
        for future in futures:
            future.result()
        return result

    try:
        for result, tasks in jobs:
            waiting.append((result, [pool.submit(task) for task in tasks]))
            if len(waiting) > depth:
                yield finished()
        while waiting:
            yield finished()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def default_workers() -> int:
    """Return two, which keep up with any step we measured; one on a machine with one core."""
    if hasattr(os, "sched_getaffinity"):
        return min(2, len(os.sched_getaffinity(0)))
    return min(2, os.cpu_count() or 1)
