"""How fast a training step and inference are, beside PyTorch and ONNX Runtime where they are
installed.

All sides compute the same: same weights, same pictures, float32, same number of threads. They take
turns in one process, so that a machine that is slow for a while is slow for each. Before each
measured call its side runs once unmeasured, and before that nothing runs for PAUSE seconds: threads
of another side may still spin, and would take half of the machine.

Medians say what to expect, minima what the machine can do when nothing disturbs it.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyft import backends, ops
from tinyft.bench.cases import LR, MOMENTUM, Case, Side, batch
from tinyft.engine.tape import no_grad
from tinyft.engine.tensor import Tensor
from tinyft.errors import TinyftError
from tinyft.finetune.groups import Group
from tinyft.finetune.optim import SGD
from tinyft.nn import build, fold

OURS = "tinyft"
PAUSE = 0.3  # s; OpenMP's threads spin for some 10 to 200 ms after their last work
DIFFERENCE = 1e-3  # of the largest value; float32 in another order of summation stays below 1e-4
BUSY = 0.25  # waiting or running programs per core, before there is any of ours

# What is compared with: the best side of each line counts.
RIVALS = {
    "pytorch": ("pytorch_nchw", "pytorch_channels_last"),
    "pytorch_folded": ("pytorch_nchw_folded", "pytorch_channels_last_folded"),
    "onnxruntime": ("onnxruntime",),
}


def our_side(case: Case, mode: str, *, device: str = "auto", frozen: bool = False) -> Side:
    """A training step (forward, loss, backward, SGD with momentum) of everything, or of the last
    layer if the others are `frozen`; or inference with folded batch norms.
    """
    network = build(case.arch, seed=0).to(device)
    pictures, labels = batch(case)
    x = Tensor.wrap(backends.place(pictures, device))
    if mode == "inference":
        folded = fold(network)

        def infer() -> np.ndarray:
            with no_grad():
                return folded(x).data

        return infer
    parameters = dict(network.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad = name.startswith("fc.") or not frozen
    group = Group("all", parameters, {}, frozenset(), lr=LR, momentum=MOMENTUM, weight_decay=0.0)
    optimizer = SGD([group], momentum=MOMENTUM)

    def step() -> np.ndarray:
        optimizer.zero_grad()
        loss = ops.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()
        return loss.data

    return step


# --------------------------------------------------------------------------------------- measuring


def measure(sides: dict[str, Side], rounds: int, pause: float = PAUSE) -> dict[str, list[float]]:
    """The seconds of each side's calls, one per round; every second round goes backwards."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            time.sleep(pause)
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
    """How many times our time each rival takes, its best side, by medians and by minima."""
    found = {}
    for rival, names in RIVALS.items():
        measured = [sides[name] for name in names if name in sides]
        if measured:
            found[rival] = {
                statistic: min(side[statistic] for side in measured) / sides[OURS][statistic]
                for statistic in ("median", "min")
            }
    return found


def differences(sides: dict[str, Side]) -> dict[str, float]:
    """Between our first result and each other's, as a part of our largest value. It is also the
    call in which a side compiles and allocates.
    """
    results = {name: np.array(side(), np.float64) for name, side in sides.items()}
    ours = results.pop(OURS)
    largest = np.abs(ours).max()
    return {name: float(np.abs(x - ours).max() / largest) for name, x in results.items()}


def check(found: dict[str, float]) -> None:
    """Raises: TinyftError if a side does not compute what we do

    For inference only: a batch norm over a few values, as small maps and batches have in training,
    amplifies rounding without limit (float64 agrees to 1e-10 where float32 losses differ by 7 %).
    """
    for name, difference in found.items():
        if not difference <= DIFFERENCE:
            raise TinyftError(f"{name} computes something else: results differ by {difference:.2g}")


def measure_case(
    case: Case, mode: str, *, rounds: int, threads: int, alone: bool = False
) -> dict[str, Any]:
    """A mode's times, ratios and differences, and what other programs took meanwhile."""
    sides = dict(_sides(case, mode, threads, alone))
    differing = differences(sides)
    if mode == "inference":
        check(differing)
    before = Clock.read()
    summary = summarise(measure(sides, rounds))
    others = before.others(Clock.read())
    return {
        "sides": summary,
        "ratios": ratios(summary),
        "differences": differing,
        "others": others,
    }


def _sides(case: Case, mode: str, threads: int, alone: bool) -> Iterator[tuple[str, Side]]:
    yield OURS, our_side(case, mode)
    if not alone and installed("torch"):
        from tinyft.bench.pytorch import side as bench_torch

        yield from bench_torch.sides(case, mode, threads)
    if not alone and installed("onnxruntime") and mode == "inference":
        from tinyft.bench.onnx_side import onnx_side

        yield "onnxruntime", onnx_side(case, threads)


# ------------------------------------------------------------------------------------- the machine


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def versions() -> dict[str, str]:
    """What the numbers depend on besides the machine, and the processor."""
    from tinyft.finetune.run.folder import versions as ours

    others = [name for name in ("torch", "onnxruntime") if installed(name)]
    return ours() | {name: importlib.import_module(name).__version__ for name in others}


def load() -> dict[str, Any]:
    """How busy the machine is; the load is that of the last minute, None where nobody counts it."""
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
