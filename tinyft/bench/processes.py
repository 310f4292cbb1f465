"""What can be measured in a new process only: peak memory, and the time to the first step."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from tinyft.backends.reference import peak_bytes_of_process
from tinyft.bench.cases import Case
from tinyft.bench.common import OURS, RIVALS, our_side
from tinyft.errors import TinyftError

STEPS = 3  # from the second on all buffers exist
WARM_STARTS = 3

# The child imports what we import: `-c` alone would look into the current folder first.
CHILD = (
    "import sys; sys.path[:] = sys.argv[7:];"
    "from tinyft.bench.processes import child; child(*sys.argv[1:7])"
)


def child(side: str, arch: str, batch_size: str, size: str, threads: str, steps: str) -> None:
    """Run by a new process: some training steps of one side, then its peak memory in bytes."""
    case = Case(arch, int(batch_size), int(size))
    if side == OURS:
        step = our_side(case, "training")
    else:
        from tinyft.bench.pytorch import side as bench_torch

        step = dict(bench_torch.sides(case, "training", int(threads)))[side]
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
        first = process.stdout.readline()  # written at the end of the steps, before Python exits
        seconds = time.perf_counter() - started
        _, errors = process.communicate()
    if process.returncode:
        said = errors.strip().splitlines() or ["no word"]
        raise TinyftError(f"the process of {side} ended with {process.returncode}: {said[-1]}")
    if first.strip() == "None":
        raise TinyftError("this system does not tell a process's peak memory")
    return int(first), seconds


def memory(case: Case, threads: int, *, alone: bool) -> dict[str, object]:
    """Peak memory of each side's training steps in bytes, and ours as a part of the best other."""
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
