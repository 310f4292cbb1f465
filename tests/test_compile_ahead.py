"""The second process of a first start: it compiles what a training step needs, and ends with it."""

import subprocess

import pytest

from tinyft import compile_ahead
from tinyft.backends.cpu import compile_cache, threads
from tinyft.bench import Case, our_side

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
            if any("sum_gradients" in file.name for file in empty_folder.iterdir()):
                break
            with pytest.raises(subprocess.TimeoutExpired):  # it is at work
                helper.wait(0.1)
    assert helper.returncode is not None
    assert any("sum_gradients" in file.name for file in empty_folder.iterdir())


def test_no_helper_without_need(empty_folder, helpers, monkeypatch):
    with compile_ahead.helped("reference", *CASE[1:]):
        pass
    monkeypatch.setattr(threads, "get_num_threads", lambda: 1)
    with compile_ahead.helped(*CASE):
        pass
    monkeypatch.setattr(threads, "get_num_threads", lambda: 2)
    (empty_folder / "some.kernel.bin").write_bytes(b"")
    with compile_ahead.helped(*CASE):
        pass
    assert helpers == []


def test_a_program_that_cannot_start_itself_does_without(empty_folder, helpers, monkeypatch):
    monkeypatch.setattr(threads, "get_num_threads", lambda: 2)
    monkeypatch.setattr("sys.executable", "")
    with compile_ahead.helped(*CASE):
        pass
    assert helpers == []


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
    from tinyft.backends.cpu.threads import listeners

    def started(work):
        names = set()
        listeners.append(lambda function: names.add(function.__qualname__))
        try:
            work()
        finally:
            listeners.pop()
        return {name for name in names if "<locals>" not in name}

    step = started(our_side(case, "training"))
    ahead = started(lambda: compile_ahead.call_gradients(case.arch, case.batch_size, case.size))
    forward = {
        "average_pictures",
        "largest_of_windows",
        "multiply_rows",
        "multiply_rows_in_place",
        "normalise",
        "sum_moments",
    }
    # not Adam's; of the classifier's bias, which a head lacks; of a shortcut without parameters
    other = {"sgd_with_momentum", "sum_rows", "clear"}
    assert step - ahead <= forward | other
