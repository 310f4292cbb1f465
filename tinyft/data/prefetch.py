"""Work done in threads, a few batches ahead of whoever consumes them.

Threads, not processes: Pillow's decoder and our resampling loop release Python's lock, and
nothing needs to be copied between processes. Order and content do not depend on the threads: each
task fills its own row.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
Job = tuple[Result, list[Callable[[], None]]]

BATCHES_AHEAD = 3


def ahead(jobs: Iterable[Job], workers: int, depth: int = BATCHES_AHEAD) -> Iterator[Result]:
    """Yields the result of each job, in order, when all of the job's tasks have run.

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
    try:
        for result, tasks in jobs:
            waiting.append((result, [pool.submit(task) for task in tasks]))
            if len(waiting) > depth:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _finished(result: Result, futures: list) -> Result:
    for future in futures:
        future.result()
    return result


def default_workers() -> int:
    """Two threads keep up with any step we measured; a machine with one core has one."""
    if hasattr(os, "sched_getaffinity"):
        return min(2, len(os.sched_getaffinity(0)))
    return min(2, os.cpu_count() or 1)
