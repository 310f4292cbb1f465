"""A memory of decoded pictures, within a budget of bytes.

Decoding a photograph costs more than augmenting it, and every epoch needs it again. So the
picture at working size stays in memory, for training and validation alike. When the budget is
full, the pictures that came first stay: an epoch visits each once, so throwing the oldest out
would always throw out the next one needed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np

LARGEST_DEFAULT = 2**30  # about 4,000 pictures of 256x340


class PictureCache:
    """Pictures of some parts, "train" and "valid", made when first asked for; safe to use from
    several threads.
    """

    def __init__(self, budget: int) -> None:
        """Units: bytes; 0 remembers nothing."""
        self.budget = budget
        self.used = 0
        self._settings: dict[str, Hashable] = {}  # of each part
        self._pictures: dict[tuple[str, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        """Whoever copies its owner, by copy.deepcopy or pickle, gets an empty one."""
        return PictureCache, (self.budget,)

    def get(
        self, part: str, index: int, settings: Hashable, make: Callable[[], np.ndarray]
    ) -> np.ndarray:
        """Picture `index` of a part under `settings`; other settings forget the part's pictures.

        The array is shared and read-only. Two threads that miss at once both make it; it is equal.
        """
        with self._lock:
            if settings != self._settings.get(part):
                self._forget(part)
                self._settings[part] = settings
            found = self._pictures.get((part, index))
        if found is not None:
            return found
        picture = make().view()
        picture.flags.writeable = False
        self._keep(part, index, settings, picture)
        return picture

    def bytes_of(self, count: int) -> int:
        """What it will hold once `count` pictures were asked for, judged by those that it has."""
        with self._lock:
            mean = self.used / max(len(self._pictures), 1)
            return min(self.budget, round(mean * count))

    def _keep(self, part: str, index: int, settings: Hashable, picture: np.ndarray) -> None:
        with self._lock:
            fits = self.used + picture.nbytes <= self.budget
            wanted = settings == self._settings[part] and (part, index) not in self._pictures
            if fits and wanted:
                self._pictures[part, index] = picture
                self.used += picture.nbytes

    def _forget(self, part: str) -> None:
        for key in [key for key in self._pictures if key[0] == part]:
            self.used -= self._pictures.pop(key).nbytes


def default_budget() -> int:
    """A quarter of the memory that is free now, at most 1 GiB. Units: bytes."""
    return min(LARGEST_DEFAULT, free_memory() // 4)


def free_memory() -> int:
    """What this process may still take: of the machine, and of its container. Units: bytes"""
    return min(_free_on_machine(), _free_in_container())


def _free_on_machine() -> int:
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


def _free_in_container(root: Path = Path("/sys/fs/cgroup")) -> int:
    """By the limit of the control group that a container sees as its own, of either version. What
    the system keeps of files counts as used there, though it would give it up.
    """
    found = [sys.maxsize]
    for limit, used, kept in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            free = int((root / limit).read_text()) - int((root / used).read_text())
            lines = (root / limit).with_name("memory.stat").read_text().splitlines()
            given_up = [int(n) for name, n in map(str.split, lines) if name == kept]
            found.append(max(free + sum(given_up), 0))
    return min(found)
