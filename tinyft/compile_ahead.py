"""A first start compiles kernels: a second process takes a part of them.

Compiling holds a lock, so threads cannot share it; processes can, through the folder where kernels
are kept (tinyft/backends/cpu/codegen/cache.py). A first training step meets the kernels of the
forward pass first. Meanwhile a helper calls those of the backward pass, with zeros of the same
shapes: there, a call compiles and does not compute. The step goes through the backward pass from
the last layer to the first, so the helper does it the other way round, and they meet in the middle;
it begins with kernels that the forward pass will want later. What both want at the same time, one
compiles; the step waits for it, the helper goes on to the next.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

# The helper imports what we import: `-c` alone would look into the current folder first. It ends
# when its stdin does, and so when this process ends in any way.
CHILD = (
    "import sys; sys.path[:] = sys.argv[5:];"
    "from tinyft.compile_ahead import child; child(*sys.argv[1:5])"
)
MARK = "TINYFT_COMPILES_AHEAD"  # in a helper's environment: it starts no other


@contextlib.contextmanager
def helped(
    device: str, arch: str, batch_size: int, size: int, optimizer: str = "adam"
) -> Iterator[None]:
    """Within this block a helper compiles the kernels of the backward pass of `arch` and of the
    optimizer (adam, momentum), if this device wants kernels, none of these are kept yet but can be,
    and more than one thread is to compute.
    """
    helper = _start(arch, str(batch_size), str(size), optimizer) if _wanted(device) else None
    try:
        yield
    finally:
        if helper:
            helper.kill()
            helper.wait()
            helper.stdin.close()
            from tinyft.backends.cpu.codegen import cache as compile_cache

            compile_cache.remove_unfinished(helper.pid)


def _wanted(device: str) -> bool:
    from tinyft import backends

    if MARK in os.environ or backends.get(device).name != "cpu":
        return False
    from tinyft.backends.cpu.codegen import cache as compile_cache
    from tinyft.backends.cpu.memory_bound import batch_norm
    from tinyft.backends.cpu.runtime import threads

    if threads.get_num_threads() == 1 or compile_cache.folder() is None:
        return False
    return not compile_cache.is_kept(batch_norm.differentiate_by_batch)


def _start(*arguments: str) -> subprocess.Popen | None:
    """The helper; None where there is no Python to start, or no other program may be started."""
    if not sys.executable or getattr(sys, "frozen", False):
        return None
    with contextlib.suppress(OSError):
        helper = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {MARK: "1", "TINYFT_NUM_THREADS": "1"},  # no pool to wait for
        )
        # It is done long before a run is: waited for here, it leaves no zombie.
        threading.Thread(target=helper.wait, daemon=True).start()
        return helper
    return None


def child(arch: str, batch_size: str, size: str, optimizer: str) -> None:
    """What the helper does."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    from tinyft import backends
    from tinyft.backends.cpu.codegen import routines
    from tinyft.backends.cpu.runtime import threads
    from tinyft.compile_gradients import call_gradients

    backends.get("cpu")  # which tries a kernel out
    routines.load_all()  # which the kernels of both processes call
    threads.only_compile()
    call_gradients(arch, int(batch_size), int(size), optimizer)


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)
