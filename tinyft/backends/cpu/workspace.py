"""Memory for results: lent, and taken back by itself when no array refers to it any more.

A training step asks for the same sizes as the step before. Fresh memory costs a page fault per
4 KiB on its first touch, which can take longer than computing what is written there; memory that
was used before costs nothing. So `empty` hands out blocks of a pool:

    out = workspace.empty((16, 56, 56, 64))     # like np.empty
    del out                                     # back in the pool, unless a view of it lives on

**When is a block free?** A result may be held by a user, an observer or a backward closure, as
itself or as a view of a view. NumPy bases every view on the array at the bottom of the chain, and
that one (`owner` below, one per lending) dies with the last view: its finaliser returns the block.
A finaliser on anything higher would fire while views of it are still read.

**How much may lie idle?** Idle blocks make a peak higher when a step of other sizes follows.
The pool remembers how much was lent at once lately (over the last 4096 to 8192 lendings, several
steps of the deepest ResNet) and never holds more than a little above that: before it takes
new memory, and from time to time, the blocks that were unused for longest go back to the system.

**Finalisers run anywhere**: in any thread, inside any allocation, even within this file. They
append to a deque, which is atomic, and tidy up only if nobody else is doing that.

Next: tinyft/backends/cpu/batch_norm.py
"""

from __future__ import annotations

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
HUGE_PAGE = 2 << 20  # bytes of a huge page on x86-64, and on aarch64 with 4 KiB pages
FIT = 1.25  # a block may be this much larger than asked: the last batch of an epoch is smaller
SLACK = 1.25  # blocks of all sizes together, over what was ever lent at once (measured: 1.05-1.2)
WINDOW = 4096  # lendings per period of the memory of what was lent at once


class Statistics(NamedTuple):
    """What the pool holds (bytes) and did (counts)."""

    lent: int
    idle: int
    peak_lent: int
    mapped: int
    reused: int
    returned: int


class Block:
    """One piece of memory from the system, aligned to its page size, large ones to huge pages."""

    __slots__ = ("idle_since", "memory", "offset", "size")

    def __init__(self, size: int) -> None:
        # Private: with shared memory (the default of mmap) a forked child would write into ours,
        # and Linux gives it no huge pages.
        private = {}
        if hasattr(mmap, "MAP_PRIVATE"):
            private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
        huge = size >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE")
        self.size = size
        self.idle_since = 0
        self.memory = mmap.mmap(-1, size + HUGE_PAGE if huge else size, **private)
        self.offset = 0
        if huge:
            address = np.frombuffer(self.memory, np.uint8).ctypes.data
            self.offset = -address % HUGE_PAGE
            self._ask_for_huge_pages()

    def _ask_for_huge_pages(self) -> None:
        """Only for the whole ones inside, so that no page reaches beyond the end."""
        try:
            whole = self.size - self.size % HUGE_PAGE
            self.memory.madvise(mmap.MADV_HUGEPAGE, self.offset, whole)
        except OSError:
            pass  # a kernel without them: ordinary pages do


class Pool:
    """The blocks that are idle, and the account of all."""

    def __init__(self) -> None:
        self.coming_back: deque[Block] = deque()  # from finalisers, not yet sorted in
        self.forget()

    def forget(self) -> None:
        """Start empty. In a forked child too: another thread may have held the lock just then."""
        self.lock = threading.Lock()
        self.idle: dict[int, list[Block]] = {}  # size -> blocks, the last one used last
        self.idle_bytes = self.lent_bytes = 0
        self.peaks = [0, 0]  # most bytes lent at once, in the last period and in this one
        self.peak_ever = self.lendings = self.mapped = self.returned = 0

    def lend(self, nbytes: int) -> Block:
        """An idle block that fits, else a new one."""
        size = -(-nbytes // SMALL) * SMALL
        with self.lock:
            self._settle()
            block = self._take_idle(size)
            if block is None:
                self._trim(self._allowed(self.lent_bytes + size) - size)
                block = self._new_block(size)
            self._count(block)
            return block

    def take_back(self, block: Block) -> None:
        """The finaliser. It must not wait: this thread may be the one that holds the lock."""
        self.coming_back.append(block)
        if self.lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self.lock.release()

    def release(self) -> None:
        """Give all idle memory back to the system."""
        with self.lock:
            self._settle()
            self._trim(0)

    def statistics(self) -> Statistics:
        """The account, as of now."""
        with self.lock:
            self._settle()
            reused = self.lendings - self.mapped
            return Statistics(
                self.lent_bytes,
                self.idle_bytes,
                self.peak_ever,
                self.mapped,
                reused,
                self.returned,
            )

    # ------------------------------------------------------ the rest runs with the lock held

    def _settle(self) -> None:
        """Sort in what finalisers left."""
        while self.coming_back:
            block = self.coming_back.popleft()
            block.idle_since = self.lendings
            self.idle.setdefault(block.size, []).append(block)
            self.lent_bytes -= block.size
            self.idle_bytes += block.size

    def _take_idle(self, size: int) -> Block | None:
        """The smallest idle block from `size` up to a quarter more, the one used last."""
        if size not in self.idle:
            fitting = [s for s in self.idle if size <= s <= size * FIT]
            if not fitting:
                return None
            size = min(fitting)
        block = self._pop(size, -1)
        return block

    def _pop(self, size: int, index: int) -> Block:
        blocks = self.idle[size]
        block = blocks.pop(index)
        if not blocks:
            del self.idle[size]
        self.idle_bytes -= size
        return block

    def _new_block(self, size: int) -> Block:
        try:
            block = Block(size)
        except (OSError, ValueError, OverflowError):
            self._trim(0)
            try:
                block = Block(size)
            except (OSError, ValueError, OverflowError) as error:
                raise MemoryError(f"no memory for an array of {size} bytes: {error}") from None
        self.mapped += 1
        return block

    def _count(self, block: Block) -> None:
        self.lendings += 1
        self.lent_bytes += block.size
        self.peak_ever = max(self.peak_ever, self.lent_bytes)
        self.peaks[1] = max(self.peaks[1], self.lent_bytes)
        if self.lendings % WINDOW == 0:
            self._trim(self._allowed(self.lent_bytes) - self.lent_bytes)
            self.peaks = [self.peaks[1], self.lent_bytes]

    def _allowed(self, lent: int) -> int:
        """Bytes that the pool may hold, lent and idle together, when `lent` are lent."""
        return int(SLACK * max(lent, *self.peaks))

    def _trim(self, most_held: int) -> None:
        """Give back the blocks idle for longest until the pool holds no more than that."""
        while self.idle and self.lent_bytes + self.idle_bytes > most_held:
            oldest = min(self.idle, key=lambda size: self.idle[size][0].idle_since)
            self._pop(oldest, 0)  # nothing refers to it now, so its memory is unmapped
            self.returned += 1


_pool = Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.forget)


def empty(shape: tuple[int, ...], dtype: np.dtype | type = np.float32) -> Array:
    """An uninitialised C-contiguous array, aligned to 64 bytes if it has 64 KiB or more.

    Raises: MemoryError
    """
    dtype = np.dtype(dtype)
    count = math.prod(shape)
    if count * dtype.itemsize < SMALL:
        return np.empty(shape, dtype)
    block = _pool.lend(count * dtype.itemsize)
    owner = np.frombuffer(block.memory, dtype, count, block.offset)
    weakref.finalize(owner, _pool.take_back, block).atexit = False
    return owner.reshape(shape)  # a view, always: its base, and that of its views, is `owner`


def release() -> None:
    """Give all idle memory back to the system."""
    _pool.release()


def statistics() -> Statistics:
    """What the pool holds and did."""
    return _pool.statistics()
