"""How much of a training step is spent outside the kernels: `tinyft bench --overhead`.

While it is measured, the functions of the CPU backend that start a kernel in all threads, and the
kernels that one thread calls by itself, are exchanged for ones that also look at the clock. All
other time is the engine's: the tape, checks of shapes, buffers, the optimizer's walk, NumPy. What
a kernel needs to wake its threads and to wait for the last one counts as the kernel's.

Nothing of this is there unless it is asked for.

Next: tinyft/bench_processes.py
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
from tinyft.bench import Case, our_side

PACKAGE = "tinyft.backends.cpu"
# of threads.py, and which argument is the kernel
STARTERS = {"run": 0, "run_with_scratch": 1, "run_alone": 1}


class KernelClock:
    """The seconds that passed within kernels, how many calls they were, and the seconds that the
    clock itself took, which belong to neither side.
    """

    def __init__(self) -> None:
        self.seconds, self.calls, self.own_seconds = 0.0, 0, 0.0
        self.inside = False  # one that another one calls is part of it
        self.exchanged: dict[int, Callable] = {}  # by the identity of what stands in its place

    def timed(self, function: Callable, kernel_at: int | None = None) -> Callable:
        """What stands in the place of a kernel, or of a function that starts the kernel which is
        its argument number `kernel_at`: the workers get the kernel itself.
        """

        @functools.wraps(function, updated=())
        def call(*arguments: Any) -> Any:
            entered = time.perf_counter()
            if kernel_at is not None:
                kernel = arguments[kernel_at]
                kernel = self.exchanged.get(id(kernel), kernel)
                arguments = (*arguments[:kernel_at], kernel, *arguments[kernel_at + 1 :])
            if self.inside:
                return function(*arguments)
            self.inside, started = True, time.perf_counter()
            try:
                return function(*arguments)
            finally:
                ended = time.perf_counter()
                self.seconds += ended - started
                self.calls += 1
                self.inside = False
                self.own_seconds += started - entered + time.perf_counter() - ended

        self.exchanged[id(call)] = function
        return call

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within this block kernels are timed. They must be compiled before: what stands in for one
        cannot be compiled into another.
        """
        before = list(_starting_kernels())
        stand_ins = {id(function): self.timed(function, at) for _, _, function, at in before}
        for module, name, function, _ in before:
            setattr(module, name, stand_ins[id(function)])
        try:
            yield
        finally:
            for module, name, function, _ in before:
                setattr(module, name, function)


def _starting_kernels() -> Iterator[tuple[Any, str, Callable, int | None]]:
    """Every name of the backend under which a kernel is called or started: (module, name,
    function, which of its arguments the kernel is).
    """
    from numba.core.dispatcher import Dispatcher

    from tinyft.backends.cpu import threads

    starters = {id(getattr(threads, name)): at for name, at in STARTERS.items()}
    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith(f"{PACKAGE}."):
            continue
        for name, value in list(vars(module).items()):
            # the kernels of threads.py itself wait for others, within the starters
            kernel = isinstance(value, Dispatcher) and module is not threads
            if kernel or id(value) in starters:
                yield module, name, value, starters.get(id(value))


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
                steps.append(time.perf_counter() - started - clock.own_seconds)
            within.append(clock.seconds)
    outside = [1 - kernels / whole for kernels, whole in zip(within, steps, strict=True)]
    return {
        "step": median(steps),
        "kernels": median(within),
        "outside": median(outside),
        "outside_min": min(outside),
        "calls": clock.calls,
    }
