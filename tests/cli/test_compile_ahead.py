"""The second process of a first start: it compiles what a training step needs, and ends with it."""

import subprocess
import sys

import pytest

from tinyft import compile_ahead, compile_gradients
from tinyft.backends.cpu.codegen import cache as compile_cache
from tinyft.backends.cpu.runtime import threads
from tinyft.bench.cases import Case
from tinyft.bench.common import our_side

CASE = "cpu", "cifar_resnet20", 2, 32


@pytest.fixture
def helpers(monkeypatch):
    """The processes that are started."""
    started, popen = [], subprocess.Popen

    def start(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return started


@pytest.fixture
def empty_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    compile_cache.folder.cache_clear()
    yield compile_cache.folder()
    compile_cache.folder.cache_clear()


def test_the_helper_compiles_and_ends_with_the_block(empty_folder, helpers, monkeypatch):
    monkeypatch.setattr(threads, "get_num_threads", lambda: 2)
    with compile_ahead.helped(*CASE):
        (helper,) = helpers
        for _ in range(1000):
            if any("differentiate_by_batch" in file.name for file in empty_folder.iterdir()):
                break
            with pytest.raises(subprocess.TimeoutExpired):  # it is at work
                helper.wait(0.1)
    assert helper.returncode is not None
    assert any("differentiate_by_batch" in file.name for file in empty_folder.iterdir())


def test_no_helper_without_need(empty_folder, helpers, monkeypatch):
    monkeypatch.setattr(threads, "get_num_threads", lambda: 2)
    with compile_ahead.helped("reference", *CASE[1:]):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(threads, "get_num_threads", lambda: 1)
        with compile_ahead.helped(*CASE):
            pass
    with monkeypatch.context() as patch:
        patch.setattr(compile_cache, "folder", lambda: None)
        with compile_ahead.helped(*CASE):
            pass
    last = "tinyft.backends.cpu.memory_bound.row_kernels.differentiate_by_batch"
    (empty_folder / f"{last}-0.bin").write_bytes(b"")
    with compile_ahead.helped(*CASE):
        pass
    assert helpers == []


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr("sys.executable", ""),
        lambda patch: patch.setattr("sys.executable", None),
        lambda patch: patch.setattr("sys.frozen", True, raising=False),
        lambda patch: patch.setenv(compile_ahead.MARK, "1"),
    ],
    ids=["no Python", "embedded", "frozen", "a helper"],
)
def test_a_program_that_cannot_start_itself_does_without(
    empty_folder, helpers, monkeypatch, change
):
    monkeypatch.setattr(threads, "get_num_threads", lambda: 2)
    change(monkeypatch)
    with compile_ahead.helped(*CASE):
        pass
    assert helpers == []


def test_it_ends_with_the_process_that_started_it(empty_folder):
    """Killed, too: then its stdin ends."""
    command = [sys.executable, "-c", compile_ahead.CHILD, "resnet18", "16", "64", *sys.path]
    helper = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):  # it is at work
        helper.wait(2)
    helper.stdin.close()
    assert helper.wait(3) == 0


def test_it_imports_nothing_from_the_current_folder(tmp_path, monkeypatch):
    """`python -c` would, and a folder of pictures may hold a random.py."""
    for module in ("json", "random", "platformdirs"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", compile_ahead.CHILD, "resnet0", "2", "32", *sys.path]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stderr=pipe, text=True) as helper:
        said = helper.stderr.read()
    assert "got 'resnet0'" in said
    assert "imported" not in said


def test_what_a_killed_helper_left_is_removed(empty_folder):
    left, another = empty_folder / "unfinished-12-abc", empty_folder / "unfinished-123-abc"
    left.touch()
    another.touch()
    compile_cache.remove_unfinished(12)
    assert not left.exists()
    assert another.exists()


@pytest.mark.parametrize(
    "case",
    [
        Case("resnet18", 2, 64),
        Case("resnet50", 2, 64),
        Case("cifar_resnet20", 2, 32),
    ],
    ids=str,
)
def test_it_calls_the_kernels_of_a_backward_pass(case):
    from tinyft.backends.cpu.runtime.threads import listeners

    def started(work):
        names = set()
        listeners.append(lambda function: names.add(function.__qualname__))
        try:
            work()
        finally:
            listeners.pop()
        return {name for name in names if "<locals>" not in name}

    step = started(our_side(case, "training"))
    what = case.arch, case.batch_size, case.size
    ahead = started(lambda: compile_gradients.call_gradients(*what, "momentum"))
    assert "adam" in started(lambda: compile_gradients.call_gradients(*what, "adam"))
    forward = {
        "average_pictures",
        "convolve_lines",
        "largest_of_windows",
        "multiply_windows",
        "multiply_rows",
        "multiply_rows_in_place",
        "normalise_by_batch",
        "pack_panels",
        "transform_stem_filters",
    }
    # of the classifier's bias, which a head lacks; of a shortcut without parameters
    other = {"sum_rows", "clear"}
    assert step - ahead <= forward | other
