"""How much of a training step is spent outside the kernels: `tinyft bench --overhead`.

While it is measured, the functions of the CPU backend that start a kernel are exchanged for ones
that also look at the clock. All other time is the engine's: the tape, checks of shapes, buffers,
the optimizer's walk, NumPy. What a kernel needs to wake its threads and to wait for the last one
counts as the kernel's.

Nothing of this is there unless it is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from tinyft import backends
from tinyft.bench.cases import Case, our_side

PACKAGE = "tinyft.backends.cpu"
# of backends/cpu/runtime/threads.py: all kernels pass through one
STARTERS = ("run", "run_with_scratch", "run_alone")


class KernelClock:
    """The seconds that passed within kernels, and how many calls they were."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0
        self.inside = False  # a kernel that another one starts is part of it

    def timed(self, start: Callable) -> Callable:
        """Stand in for a function that starts a kernel. What this does before and behind a call
        counts as the engine's, so it is little.
        """

        @functools.wraps(start)
        def call(*arguments: Any) -> Any:
            if self.inside:
                return start(*arguments)
            self.inside, started = True, time.perf_counter()
            try:
                return start(*arguments)
            finally:
                self.seconds += time.perf_counter() - started
                self.calls += 1
                self.inside = False

        return call

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within this block kernels are timed."""
        before = list(_names_of_starters())
        stand_ins = {start: self.timed(start) for _, _, start in before}
        for module, name, start in before:
            setattr(module, name, stand_ins[start])
        try:
            yield
        finally:
            for module, name, start in before:
                setattr(module, name, start)


def _names_of_starters() -> Iterator[tuple[Any, str, Callable]]:
    """Every name of the backend under which one is called: (module, name, function)."""
    from tinyft.backends.cpu.runtime import threads

    starters = [getattr(threads, name) for name in STARTERS]
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(f"{PACKAGE}."):
            for name, value in list(vars(module).items()):
                if any(value is start for start in starters):
                    yield module, name, value


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Medians of a training step's seconds, of those within kernels, of the share outside, and how
    many kernels a step starts.
    """
    with backends.use("cpu"):
        step = our_side(case, "training", device="cpu")
        for _ in range(2):  # the first compiles, the second has all buffers
            step()
        steps, within = [], []
        for _ in range(rounds):
            clock = KernelClock()
            with clock.watching():
                started = time.perf_counter()
                step()
                steps.append(time.perf_counter() - started)
            within.append(clock.seconds)
    outside = [1 - kernels / whole for kernels, whole in zip(within, steps, strict=True)]
    return {
        "step": median(steps),
        "kernels": median(within),
        "outside": median(outside),
        "outside_min": min(outside),
        "calls": clock.calls,
    }
