"""A tiny thread pool for kernels that release the GIL.

``run(kernel, *args)`` calls ``kernel(counter, tid, *args)`` once per thread.  The kernels fetch work items
from the shared atomic counter, so a slow core simply takes fewer items.  Which thread computes an item never
changes its result: results are bit-identical for any number of threads.
"""

import mmap
import os
import threading
import time

import numpy as np

from tinyft.backends.cpu.simd import atomic_load, atomic_next, cpu_pause, kernel


SPIN = 4000  # waiting turns (some 50 to 100 microseconds) before a thread goes to sleep


@kernel
def wait_until(flags, i, value, turns):
    """Spin, without the GIL, until flags[i] >= value; 0 if that did not happen in time."""
    for _ in range(turns):
        if atomic_load(flags, i) >= value:
            return 1
        cpu_pause()
    return 0


@kernel
def add_one(flags, i):
    atomic_next(flags, i)


class Pool:
    """The caller is thread 0.  The others spin a little after each job, because the next usually follows at once and
    waking a sleeping thread costs 20 microseconds, then sleep."""

    JOB, DONE, ASLEEP = 0, 16, 32  # places in flags, a cache line apart

    def __init__(self, n):
        self.n = n
        self.counter = np.zeros(64, np.int64)
        self.flags = np.zeros(32 + 16 * n, np.int64)
        self.job = self.error = None
        self.events = [threading.Event() for _ in range(n)]
        wait_until(self.flags, 0, 0, 1)  # compile before any thread needs it
        add_one(self.flags, 1)
        for tid in range(1, n):
            threading.Thread(target=self._loop, args=(tid,), daemon=True).start()

    def _loop(self, tid):
        flags, event, seq, me = self.flags, self.events[tid], 0, self.ASLEEP + 16 * tid
        while True:
            seq += 1
            if not wait_until(flags, self.JOB, seq, SPIN):
                flags[me] = 1
                while flags[self.JOB] < seq:
                    event.wait()
                    event.clear()
                flags[me] = 0
            job = self.job
            if job is None:
                return
            try:
                job[0](self.counter, tid, *job[1])
            except BaseException as e:  # handed to the caller's thread
                self.error = e
            job = None
            add_one(flags, self.DONE)

    def _start(self, job):
        flags = self.flags
        self.counter[0] = flags[self.DONE] = 0
        self.job = job
        flags[self.JOB] += 1
        for tid in range(1, self.n):
            if flags[self.ASLEEP + 16 * tid]:
                self.events[tid].set()

    def run(self, kernel, *args):
        if self.n == 1:
            self.counter[0] = 0
            return kernel(self.counter, 0, *args)
        self._start((kernel, args))
        try:
            kernel(self.counter, 0, *args)
        finally:
            while not wait_until(self.flags, self.DONE, self.n - 1, SPIN):
                time.sleep(0)
        if self.error is not None:
            e, self.error = self.error, None
            raise e

    def close(self):
        self._start(None)


_pool = None


def set_threads(n):
    global _pool
    if _pool is not None and _pool.n != n:
        _pool.close()
        _pool = None
    if _pool is None:
        _pool = Pool(n)


def pool():
    if _pool is None:
        set_threads(int(os.environ.get("TINYFT_NUM_THREADS", os.cpu_count() or 1)))
    return _pool


def run(kernel, *args):
    pool().run(kernel, *args)


def alloc(shape, dtype=np.float32):
    """Zeroed memory in 2 MiB pages where the system grants them (Linux MADV_HUGEPAGE), 2 MiB aligned.

    With ordinary 4 KiB pages, kernels that walk through big arrays in strides spend much of their time on
    address translation, above all inside virtual machines."""
    n = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if n < 1 << 20:
        raw = np.zeros(n + 4096, np.uint8)
        skip = -raw.ctypes.data % 4096
    else:
        m = mmap.mmap(-1, n + (2 << 20) + 4096)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                m.madvise(mmap.MADV_HUGEPAGE)
            except OSError:
                pass
        raw = np.frombuffer(m, np.uint8)
        skip = -raw.ctypes.data % (2 << 20)
    return raw[skip : skip + n].view(dtype).reshape(shape)


_scratch = {}


def scratch(name, size, dtype=np.float32):
    """One reused flat buffer per name (never shrinks): fresh memory would cost a page fault per 4 KiB.

    64-byte aligned, so that a register-wide access never straddles two cache lines."""
    a = _scratch.get((name, dtype))
    if a is None or a.size < size:
        a = alloc(size, dtype)
        _scratch[(name, dtype)] = a
    return a
