"""Which item of a kernel's work a thread takes next.

A kernel cuts its work into items whose number and extent depend on the shape alone. Which thread
computes an item does not change what it computes, so results have the same bits for any number of
threads.

    item = next_item(share, count)
    while item < count:
        ...
        item = next_item(share, count)

**Two passes.** What needs sums over everything before it can go on makes two passes in one kernel,
and Python need not wake up between them:

    item = next_item(share, count)              # the first pass
    ...
    meet(share)                                 # everybody's sums can be read from here on
    item = next_item(share, count, AGAIN)       # the second
    ...

**Shares.** The items are dealt out: of two threads the first begins with the first half, the second
with the other. Who has finished helps the others, so a slow core takes fewer. Items follow the
pictures, so a thread meets in each layer what it computed in the layer before, and finds it in its
own caches; so it does in the next step, in memory that is used again.

That decides where cores do not share all caches. Two cores of an AMD Zen 5 exchange a line in 55 ns
if they belong to the same complex of cores, otherwise in 220, and the two processors of a virtual
machine may be either, and change. Milliseconds, two threads; before, a thread took the next item of
all:
                                    two complexes        one complex
                                    before   shares    before   shares
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
    """One for each thread, int64: how many items of it were taken, and taken again in a second
    pass; in the first thread's how many threads are `here`; whose it is, and how many there are.
    APART numbers further on are those of the next thread.
    """
    numbers = np.zeros((threads + 1) * APART, np.int64)
    start = -numbers.ctypes.data // numbers.itemsize % APART  # of a cache line
    lines = numbers[start : start + threads * APART]
    lines[THREAD::APART], lines[THREADS::APART] = np.arange(threads), threads
    return [lines[thread * APART :] for thread in range(threads)]


def make_whole() -> Array:
    """The share of a thread that computes alone."""
    return np.array([0, 0, 0, 0, 1], np.int64)


@helper
def begin_anew(shares, threads):
    """Nothing is taken, and nobody here; `shares` is the first thread's."""
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
def meet(share):
    """Wait until all threads are here. A thread that fails before counts as here (threads.py)."""
    here, turn = HERE - share[THREAD] * APART, 0
    atomic_announce(share, here)
    while atomic_load(share, here) < share[THREADS]:
        cpu_pause()
        turn += 1
        if turn % GIVE_WAY == 0:
            give_way()
