"""How much source one training step crosses: every file, function and line that runs is counted.

    python -m pytest tests/docs/test_reading_size.py -s        prints the tables

Counted are the distinct lines that Python executes in one step of a ResNet-18 on pictures already
in memory, by `sys.settrace`: tinyft's, and also those of NumPy and of the standard library that
are written in Python. Everything was imported before, by an earlier step of another network. The
kernels are the reference backend's, so the count goes down to the arithmetic.

Compiled kernels are invisible to a trace. For the CPU backend, the source lines of each kernel
that was compiled or loaded are added to those that Python executes.
"""

import gc
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

import tinyft as ft
from tinyft.data import Batch
from tinyft.finetune.groups import Group
from tinyft.seeds import generator

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reading.md"

MOST_FILES, MOST_LINES = 18, 700
# A learner's step has more to say: schedules, three groups, dropout, a record of the step.
MOST_LEARNER_FILES, MOST_LEARNER_LINES = 27, 700

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
LABELS = np.array([0, 1, 0, 1])


class Count:
    """What ran: lines and functions by file."""

    def __init__(self):
        self.lines = defaultdict(set)
        self.functions = defaultdict(set)

    def __call__(self, frame, event, argument):
        code = frame.f_code
        if code.co_filename == __file__:
            return None
        self.functions[code.co_filename].add((code.co_firstlineno, code.co_name))
        return self.line

    def line(self, frame, event, argument):
        if event == "line":
            self.lines[frame.f_code.co_filename].add(frame.f_lineno)
        return self.line

    @property
    def n_files(self):
        return len(self.functions)

    @property
    def n_lines(self):
        return sum(map(len, self.lines.values()))

    def __str__(self):
        functions = sum(map(len, self.functions.values()))
        rows = [f"{self.n_files} files, {functions} functions, {self.n_lines} lines"]
        for file in sorted(self.functions, key=lambda file: -len(self.lines[file])):
            name = "/".join(Path(file).parts[-3:])
            rows.append(f"{len(self.lines[file]):5} {len(self.functions[file]):4}  {name}")
        return "\n".join(rows)


def traced(step):
    count = Count()
    before = sys.gettrace()
    gc.disable()  # others may have asked to be called by it
    sys.settrace(count)
    try:
        step()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def plain_step(pictures=PICTURES):
    """Network, loss, backward, Adam: what every library calls a training step."""
    model = ft.resnet18(num_classes=2)
    optimizer = ft.Adam([Group("all", dict(model.named_parameters()), {}, frozenset())])
    x = ft.Tensor(pictures.astype(np.float32) / 255)

    def step():
        loss = ft.ops.cross_entropy(model(x), LABELS)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def learner_step(pictures=PICTURES, device="reference"):
    """The same with fastai's head, layer groups and a record, on pictures as bytes."""
    pair = pictures, LABELS
    data = ft.ImageArrays(pair, pair, size=pictures.shape[1], batch_size=4, augment=None)
    learner = ft.vision_learner(data, "resnet18", weights=None, device=device)
    learner.unfreeze()
    batch = Batch(*pair, np.arange(4))
    return lambda: learner.train_step(batch, "everything")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "most_files", "most_lines"),
    [
        (plain_step, MOST_FILES, MOST_LINES),
        (learner_step, MOST_LEARNER_FILES, MOST_LEARNER_LINES),
    ],
)
def test_a_step_is_short_enough_to_be_read(make, most_files, most_lines):
    small = PICTURES[:, ::2, ::2]  # the same lines, in a quarter of the time
    with ft.backends.use("reference"):
        make(small)()
        count = traced(make(small))
    print(f"\n{make.__name__}, reference backend: {count}")
    assert count.n_files <= most_files
    assert count.n_lines <= most_lines
    # a count that misses the kernels or the engine would be flattering
    files = {Path(file).name for file in count.functions}
    assert {"tensor.py", "reference.py", "convolution.py", "normalisation.py", "optim.py"} <= files
    assert count.n_lines > 300
    if make is plain_step:
        counted = re.search(r"It executes (\d+) lines in (\d+) files", PAGE.read_text())
        lines, files = map(int, counted.groups())
        assert abs(count.n_files - files) <= 1  # NumPy 2.0 has another file on the way
        assert abs(count.n_lines - lines) <= 30  # some are Python's and NumPy's, of any version


def kernels_that_ran():
    """The compiled functions of the CPU backend that have machine code, and all that they call."""
    from numba.core.dispatcher import Dispatcher
    from numba.core.extending import _Intrinsic

    def used_by(function):
        code = function.__code__
        inside = [code, *(c for c in code.co_consts if hasattr(c, "co_names"))]
        names = {name for c in inside for name in c.co_names}
        values = [function.__globals__.get(name) for name in names]
        values += [cell.cell_contents for cell in function.__closure__ or ()]
        for value in values:
            if isinstance(value, Dispatcher):
                yield value.py_func
            elif isinstance(value, _Intrinsic):
                yield value._defn

    modules = [m for name, m in sys.modules.items() if name.startswith("tinyft.backends.cpu")]
    todo = [
        value.py_func
        for module in modules
        for value in vars(module).values()
        if isinstance(value, Dispatcher) and value.overloads
    ]
    found = {}
    while todo:
        function = todo.pop()
        code = function.__code__
        if code not in found:
            found[code] = function
            todo += used_by(function)
    return found


def lines_of(code):
    """The lines of a function's body, and of functions inside it."""
    lines = {line for _, _, line in code.co_lines() if line and line != code.co_firstlineno}
    return lines.union(*(lines_of(c) for c in code.co_consts if hasattr(c, "co_lines")))


def count_with_fast_kernels(make):
    with ft.backends.use("cpu"):
        make()()
        count = traced(make())
    for code in kernels_that_ran():
        count.functions[code.co_filename].add((code.co_firstlineno, code.co_name))
        count.lines[code.co_filename] |= lines_of(code)
    return count


@pytest.mark.slow
@pytest.mark.parametrize("make", ["plain_step", "lambda: learner_step(device='auto')"])
def test_the_fast_kernels_are_counted_beside_it(make):
    """In a process of its own: other tests compile kernels that a step does not run."""
    code = f"from tests.docs.test_reading_size import *\nprint(count_with_fast_kernels({make}))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    print(f"\n{make}, CPU backend, kernels by their source: {done.stdout}")
    files, _, lines = map(int, re.findall(r"\d+", done.stdout.splitlines()[0]))
    assert lines > 1000
    if make == "plain_step":
        said = re.search(r"some (\d+) lines in (\d+) files", PAGE.read_text())
        assert abs(lines - int(said[1])) <= 100  # other CPUs run other kernels
        assert abs(files - int(said[2])) <= 2


def test_the_count_sees_each_line_once():
    def twice():
        for _ in range(2):
            generator(0, "split")

    count = traced(twice)
    ours = [lines for file, lines in count.lines.items() if file.endswith("seeds.py")]
    assert [len(lines) for lines in ours] == [2]
