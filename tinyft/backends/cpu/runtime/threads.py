"""A pool of threads for kernels that release the GIL.

    run(kernel, *arguments)            kernel(share, *arguments) in every thread

A kernel takes items of its work from `share` until none is left; see work_stealing.py.

**Spinning.** Waking a sleeping thread takes 20 microseconds or more, and a training step runs some
hundreds of kernels. So an idle worker spins for the next kernel before it sleeps: 8 microseconds
per call instead of 41 (AMD Zen 4, 2 threads). It spins longer than Python takes from one kernel to
the next, and yields the core every few microseconds: against 0.1 ms without yielding, a step of
`resnet10s` gains 8 %, beside another busy program 31 %, with 4 threads on 2 cores 61 % (Xeon).

**The GIL** must be free when a thread asks for it, or the system puts the thread to sleep after
all. So a worker announces that it is done, and waits, in *one* kernel: whoever sees the flag finds
the GIL free. And when a job comes, a worker holds back until the thread before it has taken an
item: by then all threads before it compute without the GIL. This took a call of an empty kernel
from 54 to 7 microseconds (Intel Xeon, 2 threads), and a step of `resnet10s` from 38.6 to 36.4 ms.

**A user's own threads** may call kernels at the same time. One of them gets the pool; the others
compute in their own thread. A forked child starts a pool of its own. **A signal handler** that
computes may interrupt a kernel's call whose workers still compute: it finds the pool taken and
computes alone, in scratch memory of its own. Nothing waits for what it interrupts.
"""

from __future__ import annotations

import collections
import os
import threading
import time
from collections.abc import Callable

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.cache import helper, kernel
from tinyft.backends.cpu.codegen.vectors import atomic_announce, atomic_load, cpu_pause, give_way
from tinyft.backends.cpu.runtime import workspace
from tinyft.backends.cpu.runtime.work_stealing import (
    APART,
    GIVE_WAY,
    HERE,
    TAKEN,
    make_shares,
    reset,
    whole_share,
)
from tinyft.errors import DeviceError

SPIN = 20000  # turns of waiting before a thread goes to sleep: 0.2 to 0.8 ms
HOLD_BACK = 200  # turns for which a worker lets others go first: a kernel may take no items
MOST_PER_CORE = 16  # threads


@helper
def spin(flags, index, value, turns):
    """Wait until flags[index] >= value; 0 if that did not happen within so many turns."""
    for turn in range(turns):
        if atomic_load(flags, index) >= value:
            return 1
        cpu_pause()
        if turn % GIVE_WAY == GIVE_WAY - 1:
            give_way()
    return 0


@kernel
def wait_until(flags, index, value, turns):
    """`spin`, as Python calls it."""
    return spin(flags, index, value, turns)


@kernel
def announce(flags, index):
    """flags[index] += 1, once everything computed before is visible to other threads."""
    atomic_announce(flags, index)


JOB, DONE, ASLEEP = 0, APART, 2 * APART  # places in a pool's flags; one ASLEEP per thread follows


@kernel
def announce_job(flags, shares, size):
    """Announce the next job to a pool of `size` threads; return how many of them sleep."""
    reset(shares, size)
    flags[DONE] = 0
    atomic_announce(flags, JOB)
    sleeping = 0
    for thread in range(1, size):
        sleeping += atomic_load(flags, ASLEEP + APART * thread)
    return sleeping


@kernel
def finish_and_wait(flags, finished, number, shares, thread, turns):
    """Between two jobs of a worker: announce that one is `finished`, if one is, and spin until job
    `number` is there; 0 if that did not happen within so many turns.
    """
    if finished:
        atomic_announce(flags, DONE)
    if not spin(flags, JOB, number, turns):
        return 0
    for _ in range(HOLD_BACK):
        if atomic_load(shares, APART * (thread - 1) + TAKEN) > 0:
            break
        cpu_pause()
    return 1


class Pool:
    """`size` threads; the caller of `run` is the first of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.shares = make_shares(size)
        self.flags = np.zeros((2 + size) * APART, np.int64)
        self.job: tuple | None = None
        self.errors: list[BaseException] = []
        # A worker sleeps by waiting for its lock, which is taken, until somebody releases it. (A
        # Ctrl-C within an Event, which is written in Python, can leave a lock taken for ever.)
        self.wake = [threading.Lock() for _ in range(size)]
        for lock in self.wake:
            lock.acquire()
        # Compile the kernels above before two threads need them at once.
        flags = np.zeros(3 * APART, np.int64)
        announce(flags, ASLEEP)
        announce_job(flags, flags, 1)
        wait_until(flags, ASLEEP, 0, 1)
        finish_and_wait(flags, True, 0, flags, 1, 1)
        for thread in range(1, size):
            threading.Thread(target=self._work, args=(thread,), daemon=True).start()

    def run(self, function: Callable, floats: int, arguments: tuple) -> None:
        """Call `function` in every thread, with so many floats of scratch memory (none if 0), and
        return when all have ended.
        """
        self.job = function, floats, arguments
        announced, finished = self.flags[JOB], False
        try:
            if announce_job(self.flags, self.shares[0], self.size):
                self._wake_sleeping()
            function(self.shares[0], *_scratch(floats), *arguments)
            finished = wait_until(self.flags, DONE, self.size - 1, SPIN)
        except BaseException as error:
            if self.flags[JOB] == announced:  # a Ctrl-C before any worker saw the job
                self.job = None
                raise
            self._wake_sleeping()
            self._fail(error)
        while not finished:
            finished = self._wait_longer()
        self.job = None  # keeps no array alive
        if self.errors:
            errors, self.errors = self.errors, []
            raise errors[0]

    def _fail(self, error: BaseException) -> None:
        """Keep what was raised instead of a kernel, and count this thread at its barrier."""
        announce(self.shares[0], HERE)
        self.errors.append(error)

    def _wait_longer(self) -> bool:
        """True if the workers have finished. A Ctrl-C waits, too: they still write into arrays."""
        try:
            time.sleep(0)
            return bool(wait_until(self.flags, DONE, self.size - 1, SPIN))
        except BaseException as error:
            self.errors.append(error)
            return False

    def close(self) -> None:
        """Let the workers end."""
        self.job = None
        announce_job(self.flags, self.shares[0], self.size)
        self._wake_sleeping()

    def _wake_sleeping(self) -> None:
        for thread in range(1, self.size):
            if self.flags[ASLEEP + APART * thread] and self.wake[thread].locked():
                self.wake[thread].release()

    def _work(self, thread: int) -> None:
        flags, shares, sleeping, jobs = self.flags, self.shares, ASLEEP + APART * thread, 0
        while True:
            finished, jobs = jobs > 0, jobs + 1
            if not finish_and_wait(flags, finished, jobs, shares[0], thread, SPIN):
                self._sleep(thread, sleeping, jobs)
            if self.job is None:
                return
            function, floats, arguments = self.job
            try:
                function(shares[thread], *_scratch(floats), *arguments)
            except BaseException as error:  # raised again in the thread that called `run`
                self._fail(error)
            del function, arguments

    def _sleep(self, thread: int, sleeping: int, jobs: int) -> None:
        """Sleep until job number `jobs` is there. The flag is set before the last look, and the
        caller looks at it after it has put the job there, so one of the two notices.
        """
        announce(self.flags, sleeping)
        while not wait_until(self.flags, JOB, jobs, 1):
            self.wake[thread].acquire()
        self.flags[sleeping] = 0


def try_out() -> None:
    """Compile and run one small kernel, the first that a pool runs.

    Raises: whatever compiling ends with in a Numba that has changed
    """
    announce(np.zeros(1, np.int64), 0)


# ------------------------------------------------------------------------------------ the one pool


class _State:
    """The pool, once there is one, and who wants it: the first of them has it.

    No lock: from Python 3.14 on a Ctrl-C can come between a lock's `__enter__` and the block, and
    leave it taken for ever. It never comes between `try:` and the call behind it, nor between
    `finally:` and its first call: Python looks for signals when a call has ended.
    """

    def __init__(self) -> None:
        self.wanted = 0  # threads asked for by set_num_threads; 0: not yet
        self.start_again()

    def start_again(self) -> None:
        """In a forked child, which has none of the parent's threads, only their flags."""
        self.users: collections.deque[object] = collections.deque()
        self.pool: Pool | None = None


_state = _State()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_state.start_again)

# Called with each kernel that starts, while a step is traced.
listeners: list[Callable[[Callable], None]] = []


def run(function: Callable, *arguments) -> None:
    """Call `function(share, *arguments)` in every thread of the pool, until all are done.

    Raises: what a thread raised
    """
    run_with_scratch(0, function, *arguments)


def run_alone(size: int, function: Callable, *arguments) -> None:
    """As `run_with_scratch`, in this thread only."""
    for listener in listeners:
        listener(function)
    function(whole_share(), *_scratch(size), *arguments)


def run_with_scratch(size: int, function: Callable, *arguments) -> None:
    """As `run`, but `function(share, work, *arguments)`: each thread gets `size` floats of its
    own, and no `work` if that is 0.
    """
    for listener in listeners:
        listener(function)
    me = object()
    try:
        _state.users.append(me)
        if _state.users[0] is me:
            try:
                pool = _wanted_pool()
                if pool is not None:
                    pool.run(function, size, arguments)
                    return
            finally:
                if _state.pool is not None and _state.pool.job is not None:
                    _state.pool = None  # a second Ctrl-C: its workers still compute, and keep it
    finally:
        _state.users.remove(me)
    function(whole_share(), *_scratch(size), *arguments)


def _scratch(floats: int) -> list[Array]:
    """The memory that a kernel is given with its share: so many floats, or none."""
    return [workspace.scratch("work", floats)] if floats else []


def get_num_threads() -> int:
    """Return how many threads compute: as many as set_num_threads said, else TINYFT_NUM_THREADS,
    else this process's cores.
    """
    if not _state.wanted:
        _state.wanted = _default_threads()
    return _state.wanted


def set_num_threads(count: int) -> None:
    """Compute with so many threads from now on. Results do not depend on it.

    Raises: ValueError
    """
    most = most_threads()
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
        raise ValueError(
            f"the number of threads must be a whole number from 1 to {most}; got {count!r}"
        )
    _state.wanted = count  # the next kernel has a pool of that size made


def most_threads() -> int:
    """All of them wait for the last one at the end of every kernel: with 1000 nothing moves."""
    return MOST_PER_CORE * (os.cpu_count() or 1)


def _wanted_pool() -> Pool | None:
    """The pool, with as many threads as are wanted now; None if that is one. For its user alone."""
    size, pool = _state.wanted or get_num_threads(), _state.pool
    if pool is not None and pool.size != size:
        _state.pool = None
        pool.close()
    if _state.pool is None and size > 1:
        _state.pool = Pool(size)
    return _state.pool


def _default_threads() -> int:
    text = os.environ.get("TINYFT_NUM_THREADS", "").strip()
    if text:
        most = most_threads()
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise DeviceError(
                f"TINYFT_NUM_THREADS must be a whole number from 1 to {most}; got {text!r}"
            )
        return int(text)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
