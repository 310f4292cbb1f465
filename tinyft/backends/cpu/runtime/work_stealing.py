"""Work stealing: which item of a kernel's work a thread takes next.

A kernel cuts its work into items whose number and extent depend on the shape alone. Which thread
computes an item does not change what it computes, so results have the same bits for any number of
threads.

    item = next_item(share, count)
    while item < count:
        ...
        item = next_item(share, count)

**Two passes.** A kernel that needs sums over everything before it can go on makes two passes, with
a barrier between them instead of a return to Python:

    item = next_item(share, count)              # the first pass
    ...
    barrier(share)                              # everybody's sums can be read from here on
    item = next_item(share, count, AGAIN)       # the second
    ...

**Shares.** Each thread begins with a share of its own (of two threads the first with the first
half) and steals from the others' when it has finished. Items follow the pictures, so a thread finds
in its own caches what it computed in the layer before; so it does in the next step, in memory that
is used again. That matters where cores do not share all caches: two cores of an AMD Zen 5 exchange
a line in 55 ns within a complex of cores, otherwise in 220, and a virtual machine's processors may
be either. Milliseconds, two threads, against one counter for all threads:

                                    two complexes        one complex
                                    counter  shares    counter  shares
    stem, (16, 224, 224, 3)           18.5      9.0       9.9      9.2
    its weight gradient               11.7     10.5      10.6     10.5
    ResNet-18, inference              82       67        69.6     67.6
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.cache import helper
from tinyft.backends.cpu.codegen.vectors import (
    atomic_announce,
    atomic_load,
    atomic_next,
    cpu_pause,
    give_way,
)

APART = 8  # int64 numbers of a cache line: what different threads count lies on different lines
TAKEN, AGAIN, HERE, THREAD, THREADS = range(5)  # places in a line
GIVE_WAY = 100  # turns of waiting between two offers of the core to others


def make_shares(threads: int) -> list[Array]:
    """A share for each thread, int64: how many items of it were TAKEN, and taken AGAIN in a second
    pass; in the first thread's how many threads are HERE, at the barrier; whose share it is, and
    how many there are. APART elements further on is the next thread's.
    """
    numbers = np.zeros((threads + 1) * APART, np.int64)
    start = -numbers.ctypes.data // numbers.itemsize % APART  # of a cache line
    lines = numbers[start : start + threads * APART]
    lines[THREAD::APART], lines[THREADS::APART] = np.arange(threads), threads
    return [lines[thread * APART :] for thread in range(threads)]


def whole_share() -> Array:
    """The share of a thread that computes alone."""
    return np.array([0, 0, 0, 0, 1], np.int64)


@helper
def reset(shares, threads):
    """Nothing is taken, and nobody at the barrier; `shares` is the first thread's."""
    for thread in range(threads):
        shares[APART * thread + TAKEN] = 0
        shares[APART * thread + AGAIN] = 0
    shares[HERE] = 0


@helper
def next_item(share, count, taken=TAKEN):
    """The next of `count` items for this thread: of its own share, then of the others'; `count` if
    none is left.
    """
    thread, threads = share[THREAD], share[THREADS]
    for i in range(threads):
        owner = (thread + i) % threads
        item = count * owner // threads + atomic_next(share, (owner - thread) * APART + taken)
        if item < count * (owner + 1) // threads:
            return item
    return count


@helper
def next_start(share, step, size, taken=TAKEN):
    """The same for items of `step` out of `size` numbers or rows: where the next begins; `size` or
    more if none is left.
    """
    return next_item(share, (size + step - 1) // step, taken) * step


@helper
def barrier(share):
    """Wait until all threads are here. A thread that fails before counts as here (threads.py)."""
    here, turn = HERE - share[THREAD] * APART, 0
    atomic_announce(share, here)
    while atomic_load(share, here) < share[THREADS]:
        cpu_pause()
        turn += 1
        if turn % GIVE_WAY == 0:
            give_way()
