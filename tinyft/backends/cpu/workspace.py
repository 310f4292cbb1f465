"""Memory for results: lent, and taken back by itself when no array refers to it any more.

A training step asks for the same sizes as the step before. Fresh memory costs a page fault per
page on its first touch, which can take longer than computing what is written there; memory that
was used before costs nothing. So `empty` lends pieces of a pool:

    out = workspace.empty((16, 56, 56, 64))     # like np.empty
    del out                                     # back in the pool, unless a view of it lives on

**When is a piece free?** A result may be held by a user, an observer or a backward closure, as
itself or as a view of a view. NumPy bases every view on the array at the bottom of the chain, and
that one (`owner` below, one per lending) dies with the last view: its finaliser returns the piece.
A finaliser on anything higher would fire while views of it are still read.

**How is memory divided?** In few large segments, with a list of the holes in each: a request takes
the smallest hole that is large enough, and what comes back is merged with the holes beside it. A
training step frees activations of one size while it asks for gradients of another, so what counts
is how much memory was ever touched, over how much was lent at once:

                                              one list per size    holes that merge
    ResNet-18, batch 16, 224 pixels (339 MiB)       1.62                 1.02
    ResNet-50, batch 8, 224 pixels (687 MiB)        1.23                 1.02
    ResNet-20, batch 128, 32 pixels (190 MiB)       1.20                 1.00

**How much may lie idle?** After every 4096 lendings (several steps of the deepest ResNet) the pool
looks at what was lent at once lately, and if it holds a quarter more it gives all holes back to the
system: a phase with small pictures does not keep the memory of one with large ones for long.

**Finalisers run anywhere**: in any thread, inside any allocation, even within this file. They
append to a deque, which is atomic, and tidy up only if nobody else is doing that.

Next: tinyft/backends/cpu/batch_norm.py
"""

from __future__ import annotations

import bisect
import contextlib
import math
import mmap
import os
import threading
import weakref
from collections import deque
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

SMALL = 64 << 10  # bytes below which malloc is as good: it reuses small pieces without page faults
GRAIN = 4096  # bytes that lent sizes are rounded up to: no two arrays share a page
HUGE_PAGE = 2 << 20  # bytes of a huge page on x86-64, and on aarch64 with 4 KiB pages
SEGMENT = 64 << 20  # bytes of the first segment; each further one doubles what there is
SLACK = 1.25  # the pool may hold this much, over what was lent at once lately
WINDOW = 4096  # lendings between two looks at that


class Statistics(NamedTuple):
    """Bytes that are lent, bytes touched that are not, the most that was ever lent at once; how
    often memory was lent, mapped from the system and given back to it.
    """

    lent: int
    idle: int
    peak_lent: int
    lendings: int
    mapped: int
    given_back: int


class Segment:
    """One piece of address space; the system provides a page of it when it is first touched."""

    def __init__(self, size: int) -> None:
        # Private: with shared memory (the default of mmap) a forked child would write into ours,
        # and Linux gives it no huge pages.
        flags = {}
        if hasattr(mmap, "MAP_PRIVATE"):
            flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
        self.memory = mmap.mmap(-1, size + HUGE_PAGE, **flags)
        self.first = -np.frombuffer(self.memory, np.uint8).ctypes.data % HUGE_PAGE
        self.size = size
        self.touched = 0  # bytes from the start, beyond which nothing was ever lent
        self.starts = [0]  # of the holes, ascending ...
        self.ends = [size]  # ... and where each ends
        self._advise("MADV_HUGEPAGE", 0, size)

    def take(self, index: int, size: int) -> int:
        """Cut `size` bytes off the front of a hole and return where they are."""
        start = self.starts[index]
        self.starts[index] += size
        if self.starts[index] == self.ends[index]:
            del self.starts[index], self.ends[index]
        self.touched = max(self.touched, start + size)
        return start

    def put_back(self, start: int, size: int) -> None:
        """Make a hole of them again, one with the holes that it meets."""
        end = start + size
        index = bisect.bisect(self.starts, start)
        if index < len(self.starts) and self.starts[index] == end:
            end = self.ends[index]
            del self.starts[index], self.ends[index]
        if index and self.ends[index - 1] == start:
            self.ends[index - 1] = end
        else:
            self.starts.insert(index, start)
            self.ends.insert(index, end)

    def give_back(self) -> None:
        """Let the system have the pages of all holes."""
        for start, end in zip(self.starts, self.ends, strict=True):
            if start < self.touched:
                self._advise("MADV_DONTNEED", start, min(end, self.touched) - start)
        if self.ends and self.ends[-1] == self.size:
            self.touched = min(self.touched, self.starts[-1])

    def _advise(self, advice: str, start: int, size: int) -> None:
        """Tell the system, where it can be told (not on Windows; an old kernel may refuse)."""
        if hasattr(mmap, advice):
            with contextlib.suppress(OSError):
                self.memory.madvise(getattr(mmap, advice), self.first + start, size)


class Pool:
    """The segments, and the account of what is lent."""

    def __init__(self) -> None:
        self.coming_back: deque[tuple[Segment, int, int]] = deque()  # left by finalisers
        self.lent = self.peak_ever = self.lendings = self.mapped = self.given_back = 0
        self.peaks = [0, 0]  # most bytes lent at once, in the last window and in this one
        self.start_again()

    def start_again(self) -> None:
        """Leave all segments to those who hold arrays in them. In a forked child, where another
        thread of the parent may have been half-way through the lists.
        """
        self.lock = threading.Lock()
        self.segments: list[Segment] = []

    def lend(self, nbytes: int) -> tuple[Segment, int, int]:
        """Segment, start and size of a piece with at least that many bytes."""
        size = -(-nbytes // GRAIN) * GRAIN
        with self.lock:
            if self.coming_back:
                self._settle()
            segment, hole = self._smallest_hole(size) or (self._new_segment(size), 0)
            start = segment.take(hole, size)
            self.lent += size
            self.lendings += 1
            self.peak_ever = max(self.peak_ever, self.lent)
            self.peaks[1] = max(self.peaks[1], self.lent)
            if self.lendings % WINDOW == 0:
                self._look_back()
            return segment, start, size

    def take_back(self, segment: Segment, start: int, size: int) -> None:
        """The finaliser. It must not wait: this thread may be the one that holds the lock."""
        self.coming_back.append((segment, start, size))
        if self.lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self.lock.release()

    def release(self) -> None:
        """Give all memory that is not lent back to the system."""
        with self.lock:
            self._settle()
            self._give_back()

    def statistics(self) -> Statistics:
        """The account, as of now."""
        with self.lock:
            self._settle()
            idle = self._held() - self.lent
            counts = self.lendings, self.mapped, self.given_back
            return Statistics(self.lent, idle, self.peak_ever, *counts)

    # ------------------------------------------------------------- the rest runs under the lock

    def _settle(self) -> None:
        """Sort in what finalisers left."""
        while self.coming_back:
            segment, start, size = self.coming_back.popleft()
            segment.put_back(start, size)
            self.lent -= size

    def _smallest_hole(self, size: int) -> tuple[Segment, int] | None:
        """The hole where least is left over; a segment's open end only if no other hole will do."""
        best, least = None, math.inf
        for segment in self.segments:
            for index, (start, end) in enumerate(zip(segment.starts, segment.ends, strict=True)):
                room = math.inf if end == segment.size else end - start
                if end - start >= size and (best is None or room < least):
                    best, least = (segment, index), room
        return best

    def _new_segment(self, size: int) -> Segment:
        """As large as all others together, so that there are few; if need be as small as asked."""
        wanted = max(size, SEGMENT, sum(segment.size for segment in self.segments))
        try:
            segment = Segment(wanted)
        except (OSError, ValueError, OverflowError):
            self._give_back()
            try:
                segment = Segment(size)
            except (OSError, ValueError, OverflowError) as error:
                raise MemoryError(f"no memory for an array of {size} bytes: {error}") from None
        self.segments.append(segment)
        self.mapped += 1
        return segment

    def _held(self) -> int:
        return sum(segment.touched for segment in self.segments)

    def _look_back(self) -> None:
        if self._held() > SLACK * max(self.peaks):
            self._give_back()
        self.peaks = [self.peaks[1], self.lent]

    def _give_back(self) -> None:
        for segment in self.segments:
            segment.give_back()
        self.segments = [s for s in self.segments if s.starts != [0] or s.ends != [s.size]]
        self.given_back += 1


# What is lent: a reference to each owner, by its identity, and the owner's piece. A
# `weakref.finalize` would do the same, with four calls of Python for each of these.
_lendings: dict[int, tuple[weakref.ref, Segment, int, int]] = {}
_pool = Pool()


def _end(reference: weakref.ref) -> None:
    """The finaliser of an owner."""
    _, segment, start, size = _lendings.pop(id(reference))
    _pool.take_back(segment, start, size)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.start_again)


def empty(shape: tuple[int, ...], dtype: np.dtype | type = np.float32) -> Array:
    """An uninitialised C-contiguous array; aligned to a page if it has 64 KiB or more.

    Raises: MemoryError
    """
    dtype = np.dtype(dtype)
    count = math.prod(shape)
    if count * dtype.itemsize < SMALL:
        return np.empty(shape, dtype)
    segment, start, size = _pool.lend(count * dtype.itemsize)
    owner = np.frombuffer(segment.memory, dtype, count, segment.first + start)
    reference = weakref.ref(owner, _end)
    _lendings[id(reference)] = reference, segment, start, size
    return owner.reshape(shape)  # a view, always: its base, and that of its views, is `owner`


def release() -> None:
    """Give all memory that is not lent back to the system."""
    _pool.release()


def statistics() -> Statistics:
    """What the pool holds and did."""
    return _pool.statistics()
