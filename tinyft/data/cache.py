"""A memory of decoded pictures, within a budget of bytes.

Decoding a photograph costs more than augmenting it, and every epoch needs it again. So the
picture at working size stays in memory, for training and validation alike. When the budget is
full, the pictures that came first stay: an epoch visits each once, so throwing the oldest out
would always throw out the next one needed.

Next: tinyft/data/prefetch.py
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np

LARGEST_DEFAULT = 2**30  # about 4,000 pictures of 256x340


class PictureCache:
    """Pictures by key, made when first asked for; safe to use from several threads."""

    def __init__(self, budget: int) -> None:
        """Units: bytes; 0 remembers nothing."""
        self.budget = budget
        self.used = 0
        self._settings: Hashable = None
        self._pictures: dict[Hashable, np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, settings: Hashable, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The picture `key` under `settings`; other settings forget all pictures of the old ones.

        The array is shared and read-only. Two threads that miss at once both make it; it is equal.
        """
        with self._lock:
            if settings != self._settings:
                self._settings, self._pictures, self.used = settings, {}, 0
            found = self._pictures.get(key)
        if found is not None:
            return found
        picture = make().view()
        picture.flags.writeable = False
        self._keep(settings, key, picture)
        return picture

    def bytes_of(self, count: int) -> int:
        """What it will hold once `count` pictures were asked for, judged by those that it has."""
        with self._lock:
            mean = self.used / max(len(self._pictures), 1)
            return min(self.budget, round(mean * count))

    def _keep(self, settings: Hashable, key: Hashable, picture: np.ndarray) -> None:
        with self._lock:
            fits = self.used + picture.nbytes <= self.budget
            if fits and settings == self._settings and key not in self._pictures:
                self._pictures[key] = picture
                self.used += picture.nbytes


def default_budget() -> int:
    """A quarter of the memory that is free now, at most 1 GiB. Units: bytes."""
    return min(LARGEST_DEFAULT, _free_memory() // 4)


def _free_memory() -> int:
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
