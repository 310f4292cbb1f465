"""Memory for results: an arena with a free list, from which `empty` lends; and scratch memory.

A training step asks for the same sizes as the step before. Fresh memory costs a page fault per page
on its first touch, which can take longer than computing what is written there. So:

    out = workspace.empty((16, 56, 56, 64))     # like np.empty
    del out                                     # back in the arena, unless a view of it lives on

**When is a piece free?** NumPy bases every view, and view of a view, on the array at the bottom of
the chain, which is the one that was lent. So it dies with its last view, and its finaliser returns
the piece.

**Best fit, coalescing.** A request takes the smallest hole (free block) that is large enough, or
else the open end of a segment, and what comes back is merged with the holes beside it. A step frees
activations of one size while it asks for gradients of another, so what counts is how much memory
was ever touched, over how much was lent at once:

                                              one list per size    holes that merge
    ResNet-18, batch 16, 224 pixels (339 MiB)       1.62                 1.04
    ResNet-50, batch 8, 224 pixels (691 MiB)        1.23                 1.01
    ResNet-20, batch 128, 32 pixels (190 MiB)       1.20                 1.00

**How much may lie idle?** After every 4096 lendings (several steps of the deepest ResNet), an arena
that holds a quarter more than was lent at once lately gives all holes back to the system.

**Finalisers run anywhere**: in any thread, inside any allocation, even within this file. They only
append to a deque, by a function in C, so that no Ctrl-C comes within; the next request makes holes
of what lies there. **Signal handlers** may compute: one that interrupts a change of the lists gets
memory beside them.
"""

from __future__ import annotations

import bisect
import contextlib
import math
import mmap
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

LARGE = 256 << 10  # bytes from which scratch memory gets huge pages
ALIGNMENT = 64  # bytes of a cache line: no register load then straddles two
SMALL = 64 << 10  # bytes below which malloc is as good: it reuses small pieces without page faults
GRAIN = max(4096, mmap.PAGESIZE)  # bytes that sizes are rounded up to: no arrays share a page
HUGE_PAGE = 2 << 20  # bytes of a huge page on x86-64, and on aarch64 with 4 KiB pages
SEGMENT = 64 << 20  # bytes of the first segment; each further one doubles what there is
SLACK = 1.25  # the pool may hold this much, over what was lent at once lately
WINDOW = 4096  # lendings between two looks at that


class Statistics(NamedTuple):
    """Bytes lent, and touched but not lent; how often memory was lent, mapped, and given back to
    the system.
    """

    lent: int
    idle: int
    lendings: int
    mapped: int
    given_back: int


class Segment:
    """One stretch of addresses; the system provides a page of it when it is first touched."""

    def __init__(self, size: int) -> None:
        """Raises: MemoryError"""
        # Private: with shared memory (the default of mmap) a forked child would write into ours,
        # and Linux gives it no huge pages.
        flags: dict[str, Any] = {}
        if hasattr(mmap, "MAP_PRIVATE"):
            flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
        try:
            self.memory = mmap.mmap(-1, size + HUGE_PAGE, **flags)
        except (OSError, ValueError, OverflowError) as error:
            raise MemoryError(f"no memory for {size} bytes: {error}") from None
        self.address = np.frombuffer(self.memory, np.uint8).ctypes.data  # of its first byte
        self.start = -(-self.address // HUGE_PAGE) * HUGE_PAGE
        self.end = self.start + size
        self.open = self.start  # nothing is lent from here on, ...
        self.touched = self.start  # ... and nothing ever was from here on
        self._advise("MADV_HUGEPAGE", self.start, self.end)

    def give_back(self, start: int, end: int) -> None:
        """Let the system have the pages from `start` to `end`."""
        if start < end:
            self._advise("MADV_DONTNEED", start, end)

    def _advise(self, advice: str, start: int, end: int) -> None:
        """Tell the system, where it can be told (not on Windows; an old kernel may refuse)."""
        if hasattr(mmap, advice):
            with contextlib.suppress(OSError):
                self.memory.madvise(getattr(mmap, advice), start - self.address, end - start)


Piece = tuple[int, int, Segment]  # what is lent: its addresses from, and up to, and whose they are
Hole = tuple[int, int, int, Segment]  # what came back between pieces: its size, and the same


class MemoryPool:
    """The arena: its segments, the holes in them, and the account of what is lent."""

    def __init__(self) -> None:
        self.coming_back: deque[weakref.ref] = deque()  # left by finalisers
        self.lendings = self.mapped = self.given_back = 0
        self.start_again()

    def start_again(self) -> None:
        """In a forked child, where another thread of the parent may have held the lock."""
        self.lock = threading.RLock()
        self.changing = False
        self.forget()

    def forget(self) -> None:
        """Leave all segments to those who hold arrays in them: a fork, Ctrl-C or what else a signal
        handler raised came half-way through a change of the lists.
        """
        self.lent = 0
        self.peaks = [0, 0]  # most bytes lent at once, in the last window and in this one
        self.segments: list[Segment] = []
        self.holes: list[Hole] = []  # the smallest first
        self.starting_at: dict[int, Hole] = {}  # the same ones, by the address where they start ...
        self.ending_at: dict[int, Hole] = {}  # ... and by that where they end

    def lend(self, nbytes: int) -> Piece:
        """A piece with at least that many bytes."""
        size = -(-nbytes // GRAIN) * GRAIN
        return self._change(self._lend, size) or _piece_apart(size)

    def release(self) -> None:
        """Give all memory that is not lent back to the system."""
        self._change(self._give_all_back)

    def statistics(self) -> Statistics:
        """The account, as of now."""
        self._change(self._settle)
        idle = self._held() - self.lent
        return Statistics(self.lent, idle, self.lendings, self.mapped, self.given_back)

    def _change(self, change: Callable[..., Piece | None], *arguments: int) -> Piece | None:
        """change(*arguments), one thread at a time; None within another change of this thread,
        which a signal handler interrupted.
        """
        with self.lock:
            if self.changing:
                return None
            self.changing = True
            try:
                return change(*arguments)
            except MemoryError:
                raise  # comes before the lists change
            except BaseException:
                self.forget()
                raise
            finally:
                self.changing = False

    # ------------------------------------------------------------- the rest runs within `_change`

    def _lend(self, size: int) -> Piece:
        if self.coming_back:
            self._settle()
        fits = self.holes and self.holes[-1][0] >= size
        piece = self._fill_hole(size) if fits else self._cut_open_end(size)
        self.lent += size
        self.lendings += 1
        if self.lent > self.peaks[1]:
            self.peaks[1] = self.lent
        if self.lendings % WINDOW == 0:
            if self._held() > SLACK * max(self.peaks):
                self._give_back()
            self.peaks = [self.peaks[1], self.lent]
        return piece

    def _give_all_back(self) -> None:
        self._settle()
        self._give_back()

    def _settle(self) -> None:
        """Make holes of what finalisers left, each one with the holes that it meets."""
        while self.coming_back:
            _, piece = _lendings.pop(id(self.coming_back.popleft()), (None, None))
            if piece is None:  # a Ctrl-C came before it was noted
                continue
            start, end, segment = piece
            if segment not in self.segments:  # from before all was forgotten, or a piece apart
                continue
            self.lent -= end - start
            before, behind = self.ending_at.get(start), self.starting_at.get(end)
            if before:
                start = before[1]
                self._remove(before)
            if behind:
                end = behind[2]
                self._remove(behind)
            if end == segment.open:
                segment.open = start
            else:
                self._insert(start, end, segment)

    def _insert(self, start: int, end: int, segment: Segment) -> None:
        hole = self.starting_at[start] = self.ending_at[end] = end - start, start, end, segment
        bisect.insort(self.holes, hole)

    def _remove(self, hole: Hole) -> None:
        _, start, end, _ = hole
        del self.starting_at[start], self.ending_at[end]
        del self.holes[bisect.bisect_left(self.holes, hole)]

    def _fill_hole(self, size: int) -> Piece:
        """The front of the hole where least is left over; one is large enough."""
        _, start, end, segment = self.holes.pop(bisect.bisect_left(self.holes, (size,)))
        del self.starting_at[start], self.ending_at[end]
        if start + size < end:
            self._insert(start + size, end, segment)
        return start, start + size, segment

    def _cut_open_end(self, size: int) -> Piece:
        """The front of the first segment's open end that is large enough."""
        for segment in self.segments:
            if segment.open + size <= segment.end:
                break
        else:
            segment = self._new_segment(size)
        start, segment.open = segment.open, segment.open + size
        if segment.open > segment.touched:
            segment.touched = segment.open
        return start, segment.open, segment

    def _new_segment(self, size: int) -> Segment:
        """As large as all others together, so that there are few; if need be as small as asked."""
        wanted = max(size, SEGMENT, sum(s.end - s.start for s in self.segments))
        try:
            segment = Segment(wanted)
        except MemoryError:
            self._give_back()
            segment = Segment(size)
        self.segments.append(segment)
        self.mapped += 1
        return segment

    def _held(self) -> int:
        return sum(segment.touched - segment.start for segment in self.segments)

    def _give_back(self) -> None:
        for _, start, end, segment in self.holes:
            segment.give_back(start, end)
        for segment in self.segments:
            segment.give_back(segment.open, segment.touched)
            segment.touched = segment.open
        self.segments = [segment for segment in self.segments if segment.open > segment.start]
        self.given_back += 1


def _piece_apart(size: int) -> Piece:
    """A segment of its own, which goes back to the system with its array."""
    segment = Segment(size)
    return segment.start, segment.end, segment


# What is lent: a reference to each owner, by its identity, and the owner's piece. A
# `weakref.finalize` would do the same, with five calls of Python instead of none.
_lendings: dict[int, tuple[weakref.ref, Piece]] = {}
_pool = MemoryPool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.start_again)


def empty(shape: tuple[int, ...], dtype: np.dtype | type = np.float32) -> Array:
    """An uninitialised C-contiguous array; aligned to a page if it has 64 KiB or more.

    Raises: MemoryError
    """
    dtype = np.dtype(dtype)
    count = math.prod(shape)
    if count * dtype.itemsize < SMALL or min(shape) < 0:  # the latter raises
        return np.empty(shape, dtype)
    piece = start, _, segment = _pool.lend(count * dtype.itemsize)
    array = np.ndarray(shape, dtype, segment.memory, start - segment.address)
    reference = weakref.ref(array, _pool.coming_back.append)
    _lendings[id(reference)] = reference, piece
    return array


def aligned_empty(size: int) -> Array:
    """A flat array of `size` floats that starts at a cache line; a large one lies in huge pages
    where the system has them, since kernels walk through it in 36 places at once. It is the base of
    all its views.

    Raises: MemoryError
    """
    nbytes = 4 * size
    if nbytes >= LARGE:
        pages = -(-nbytes // HUGE_PAGE)
        segment = Segment(pages * HUGE_PAGE)
        return np.frombuffer(segment.memory, np.float32, size, segment.start - segment.address)
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return np.frombuffer(raw.data, np.float32, size, start)


_scratch = threading.local()


def scratch(name: str, size: int) -> Array:
    """A flat buffer of at least `size` floats that nobody else has while anything refers to it.

    One per name and calling thread, kept for the next call and grown when it must: fresh memory
    would cost a page fault per 4 KiB. Its content is what the last call left. It never leaves a
    kernel's call; but a signal handler may interrupt that, and then gets another one.
    """
    buffers = _scratch.__dict__
    buffer = buffers.get(name)
    if buffer is None or buffer.size < size or sys.getrefcount(buffer) > UNUSED:
        buffer = buffers[name] = aligned_empty(size)
    return buffer


def _references_of_unused() -> int:
    """Count references as `scratch` does, to what lies in a dictionary only."""
    kept = {"work": object()}
    value = kept.get("work")
    return sys.getrefcount(value)


UNUSED = _references_of_unused()

release, statistics = _pool.release, _pool.statistics  # as functions of the module
