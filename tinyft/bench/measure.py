"""The speed of a training step and of inference, beside PyTorch and ONNX Runtime where they are
installed.

All sides compute the same: same weights, same pictures, float32, same number of threads. With the
backend `cpu:bf16` ours has its 1x1 convolutions in bf16, and PyTorch's autocast joins in. They take
turns in one process, so that a machine that is slow for a while is slow for each. Before each
measured call its side runs once unmeasured, and before that nothing runs for PAUSE seconds: threads
of another side may still spin, and would take half of the machine.

Medians say what to expect, minima what the machine can do when nothing disturbs it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyft import backends
from tinyft.backends.reference import peak_bytes_of_process
from tinyft.bench.cases import OURS, Case, Side, onnx_side, our_side
from tinyft.errors import TinyftError

PAUSE = 0.3  # s; OpenMP's threads spin for some 10 to 200 ms after their last work
DIFFERENCE = 1e-3  # of the largest value; float32 in another order of summation stays below 1e-4
BF16_DIFFERENCE = 0.05  # its factors are wrong by up to 2^-8; 20 to 50 layers make 3e-3 to 1e-2
BUSY = 0.25  # waiting or running programs per core, before there is any of ours
STEPS = 3  # from the second on all buffers exist
WARM_STARTS = 3
# Of backends/cpu/runtime/threads.py: all kernels pass through one.
STARTERS = ("run", "run_with_scratch", "run_alone")

# The child imports what we import: `-c` alone would look into the current folder first.
CHILD = (
    "import sys; sys.path[:] = sys.argv[7:];"
    "from tinyft.bench.measure import child; child(*sys.argv[1:7])"
)

# What is compared with: the best side of each line counts.
RIVALS = {
    "pytorch": ("pytorch_nchw", "pytorch_channels_last"),
    "pytorch_folded": ("pytorch_nchw_folded", "pytorch_channels_last_folded"),
    "pytorch_bf16": ("pytorch_nchw_bf16", "pytorch_channels_last_bf16"),
    "pytorch_bf16_folded": ("pytorch_nchw_bf16_folded", "pytorch_channels_last_bf16_folded"),
    "onnxruntime": ("onnxruntime",),
}


# ----------------------------------------------------------------------------------------- times


def turns(names: Iterable[str], rounds: int, pause: float) -> Iterator[str]:
    """Yield whose turn it is, after a pause; every second round goes backwards."""
    for number in range(rounds):
        for name in list(names)[:: -1 if number % 2 else 1]:
            time.sleep(pause)
            yield name


def measure(sides: dict[str, Side], rounds: int, pause: float = PAUSE) -> dict[str, list[float]]:
    """The seconds of each side's calls, one per round."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for name in turns(sides, rounds, pause):
        sides[name]()
        started = time.perf_counter()
        sides[name]()
        times[name].append(time.perf_counter() - started)
    return times


def summarise(times: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Median and minimum of each side's seconds, beside all of them."""
    return {
        name: {"median": statistics.median(seconds), "min": min(seconds), "seconds": seconds}
        for name, seconds in times.items()
    }


def ratios(sides: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The time of each rival's best side as a multiple of ours, by medians and by minima."""
    multiples = {}
    for rival, names in RIVALS.items():
        measured = [sides[name] for name in names if name in sides]
        if measured:
            multiples[rival] = {
                statistic: min(side[statistic] for side in measured) / sides[OURS][statistic]
                for statistic in ("median", "min")
            }
    return multiples


def error_of(result: np.ndarray, exact: np.ndarray) -> float:
    """The largest error, as a part of the largest exact value."""
    error, largest = np.abs(result - exact).max(initial=0), np.abs(exact).max(initial=0)
    return float(error / largest if largest else error)


def differences(sides: dict[str, Side]) -> dict[str, float]:
    """Compare our first result to each other side's. It is also the call in which a side compiles
    and allocates.
    """
    results = {name: np.asarray(side(), np.float64) for name, side in sides.items()}
    ours = results.pop(OURS)
    return {name: error_of(result, ours) for name, result in results.items()}


def check(differing: dict[str, float], allowed: float = DIFFERENCE) -> None:
    """Refuse sides that do not compute what we do, but for an error that is `allowed`.

    For inference only: a batch norm over a few values, as small maps and batches have in training,
    amplifies rounding without limit (float64 agrees to 1e-10 where float32 losses differ by 7 %).
    Raises: TinyftError
    """
    for name, difference in differing.items():
        if not difference <= allowed:
            raise TinyftError(f"{name} computes something else: results differ by {difference:.2g}")


def measure_case(
    case: Case,
    mode: str,
    *,
    rounds: int,
    threads: int,
    alone: bool = False,
    backend: str = "auto",
) -> dict[str, Any]:
    """Measure times, ratios and differences of a mode, ours computed by `backend`, and the part
    that other programs took meanwhile.
    """
    sides = dict(sides_of(case, mode, threads, alone, backend))
    differing = differences(sides)
    allowed = DIFFERENCE if backend == "auto" else BF16_DIFFERENCE
    if mode == "inference":
        check(differing, allowed)
    before = Clock.read()
    summary = summarise(measure(sides, rounds))
    others = before.others(Clock.read())
    return {
        "sides": summary,
        "ratios": ratios(summary),
        "differences": differing,
        "allowed": allowed,
        "others": others,
    }


def sides_of(
    case: Case, mode: str, threads: int, alone: bool, backend: str = "auto"
) -> Iterator[tuple[str, Side]]:
    """Make our side, computed by `backend`, and those of others that are installed."""
    side = our_side(case, mode)

    def ours() -> Any:
        with backends.use(backend):
            return side()

    yield OURS, ours
    if not alone and installed("torch"):
        from tinyft.bench import pytorch

        yield from pytorch.sides(case, mode, threads, bf16=backend == "cpu:bf16")
    limited = "ONEDNN_MAX_CPU_ISA" in os.environ  # by --isa; ONNX Runtime knows no such setting
    if not (alone or limited) and installed("onnxruntime") and mode == "inference":
        yield "onnxruntime", onnx_side(case, threads)


# ------------------------------------------------ in a new process: peak memory and the first step


def child(side: str, arch: str, batch_size: str, size: str, threads: str, steps: str) -> None:
    """Make training steps of one side in this new process, then print its peak memory in bytes."""
    case = Case(arch, int(batch_size), int(size))
    if side == OURS:
        step = our_side(case, "training")
    else:
        from tinyft.bench import pytorch

        step = dict(pytorch.sides(case, "training", int(threads)))[side]
    for _ in range(int(steps)):
        step()
    print(peak_bytes_of_process(), flush=True)


def run_child(
    side: str, case: Case, threads: int, steps: int, **environment: str
) -> tuple[int, float]:
    """(peak memory in bytes, seconds from the start of the process to the end of its steps)

    Raises: TinyftError with the last line that the process wrote
    """
    numbers = (case.batch_size, case.size, threads, steps)
    command = [sys.executable, "-c", CHILD, side, case.arch, *map(str, numbers), *sys.path]
    environment["TINYFT_NUM_THREADS"] = str(threads)
    started = time.perf_counter()
    with subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout  # piped
        first = process.stdout.readline()  # written at the end of the steps, before Python exits
        seconds = time.perf_counter() - started
        _, errors = process.communicate()
    if process.returncode:
        said = errors.strip().splitlines() or ["no word"]
        raise TinyftError(f"the process of {side} ended with {process.returncode}: {said[-1]}")
    if first.strip() == "None":
        raise TinyftError("this system does not tell a process's peak memory")
    return int(first), seconds


def memory(case: Case, threads: int, *, alone: bool) -> dict[str, Any]:
    """Measure each side's peak memory over some steps in bytes, and ours in parts of the best."""
    run_child(OURS, case, threads, 1)  # compiling takes memory of its own
    names = (OURS,) if alone else (OURS, *RIVALS["pytorch"])
    peaks = {name: run_child(name, case, threads, STEPS)[0] for name in names}
    rivals = [peak for name, peak in peaks.items() if name != OURS]
    return {"bytes": peaks, "ratio": peaks[OURS] / min(rivals) if rivals else None}


def start(case: Case, threads: int) -> dict[str, float]:
    """Measure the seconds from the start of a process to the end of its first training step: with
    nothing compiled before, and the smallest of some with everything compiled.
    """
    with tempfile.TemporaryDirectory(prefix="tinyft-bench-") as folder:
        kept = {"NUMBA_CACHE_DIR": folder, "TINYFT_HOME": folder}
        starts = [run_child(OURS, case, threads, 1, **kept)[1] for _ in range(1 + WARM_STARTS)]
    return {"cold": starts[0], "warm": min(starts[1:])}


# ------------------------------------------------------------------- the time outside kernels
#
# While it is measured, the functions of the CPU backend that start a kernel are exchanged for ones
# that also look at the clock. All other time is the engine's: the tape, checks of shapes, buffers,
# the optimizer's walk, NumPy. What a kernel needs to wake its threads and to wait for the last one
# counts as the kernel's. Nothing of this is there unless it is asked for.


class KernelClock:
    """The seconds that passed within kernels, and how many calls they were."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0
        self.inside = False  # a kernel that another one starts is part of it

    def timed(self, start: Callable[..., Any]) -> Callable[..., Any]:
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
        from tinyft.backends.cpu.runtime import threads

        timed = {getattr(threads, name): self.timed(getattr(threads, name)) for name in STARTERS}
        exchanged = []
        for module_name, module in list(sys.modules.items()):
            if module_name.startswith("tinyft.backends.cpu."):
                for name, value in list(vars(module).items()):
                    if any(value is start for start in timed):
                        exchanged.append((module, name, value))
        try:
            for module, name, start in exchanged:
                setattr(module, name, timed[start])
            yield
        finally:
            for module, name, start in exchanged:
                setattr(module, name, start)


def outside_kernels(case: Case, rounds: int) -> dict[str, Any]:
    """Measure how much of a training step is spent outside kernels: medians of its seconds, of
    those within kernels and of the share outside, and how many kernels a step starts.
    """
    with backends.use("cpu"):
        step = our_side(case, "training", device="cpu")
        for _ in range(2):  # the first compiles, the second has all buffers
            step()
        steps, within, calls = [], [], 0
        for _ in range(rounds):
            clock = KernelClock()
            with clock.watching():
                started = time.perf_counter()
                step()
                steps.append(time.perf_counter() - started)
            within.append(clock.seconds)
            calls = clock.calls
    outside = [1 - kernels / whole for kernels, whole in zip(within, steps, strict=True)]
    return {
        "step": statistics.median(steps),
        "kernels": statistics.median(within),
        "outside": statistics.median(outside),
        "outside_min": min(outside),
        "calls": calls,
    }


# ------------------------------------------------------------------------------------- the machine


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def versions() -> dict[str, str]:
    """The versions that measurements depend on, and the processor."""
    from tinyft.finetune.run.folder import versions as ours

    others = [name for name in ("torch", "onnxruntime") if installed(name)]
    return ours() | {name: importlib.import_module(name).__version__ for name in others}


def load() -> dict[str, Any]:
    """Cores, and the load of the last minute (None where nobody counts it)."""
    cores = os.cpu_count() or 1
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cores": cores,
        "load_average": average,
        "busy": average is not None and average > BUSY * cores,
    }


@dataclass(frozen=True)
class Clock:
    """Seconds that passed, that this process computed, and that all processors did (None where
    the system does not tell).
    """

    wall: float
    own: float
    busy: float | None

    @classmethod
    def read(cls) -> Clock:
        busy = None
        try:
            fields = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
            user, nice, system, _, _, irq, softirq, steal = map(int, fields)  # man 5 proc_stat
            busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError):
            pass
        return cls(time.perf_counter(), time.process_time(), busy)

    def others(self, later: Clock) -> float | None:
        """The part of all processors that other programs had, from 0 to 1."""
        if self.busy is None or later.busy is None:
            return None
        taken = later.busy - self.busy - (later.own - self.own)
        return min(max(taken / (later.wall - self.wall) / (os.cpu_count() or 1), 0.0), 1.0)
