"""`tinyft bench`: what it prints, what it refuses. How fast anything is, is not tested."""

import json

import pytest

from tinyft import bench, bench_processes
from tinyft.backends.cpu import threads

TINY = ("bench", "--arch", "cifar_resnet20", "--batch-size", "2", "--size", "32", "--rounds", "1")


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    count = threads.get_num_threads()
    yield
    threads.set_num_threads(count)


def without_others(monkeypatch):
    monkeypatch.setattr(bench, "installed", lambda package: False)


def test_without_pytorch(tinyft, monkeypatch):
    without_others(monkeypatch)
    done = tinyft(*TINY, "--threads", "1")
    assert done.code == 0, done.err
    assert "threads on each side: 1; tinyft " in done.out
    assert "note: to compare with PyTorch, install it beside tinyft: pip install torch" in done.out
    assert "note: medians of fewer than 5 rounds say little" in done.out
    for mode in ("training step (forward", "inference (batch norms folded)"):
        assert f"cifar_resnet20, batch 2, 32 px: {mode}" in done.out
    assert "PyTorch, NCHW" not in done.out
    assert "measuring training of cifar_resnet20" in done.err


def test_json(tinyft):
    done = tinyft(*TINY, "--alone", "--json")
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    found = json.loads(done.out)
    assert set(found) == {"threads", "machine", "versions", "rounds", "cases"}
    assert set(found["machine"]) == {"cores", "load_average", "busy"}
    assert {"tinyft", "numpy", "numba", "python", "processor"} <= set(found["versions"])
    (case,) = found["cases"]
    assert (case["arch"], case["batch_size"], case["size"]) == ("cifar_resnet20", 2, 32)
    for mode in bench.MODES:
        assert set(case[mode]) == {"sides", "ratios", "differences", "others"}
        side = case[mode]["sides"]["tinyft"]
        assert [side["median"]] == [side["min"]] == side["seconds"]
        assert case[mode]["ratios"] == {}


def test_the_lines_of_a_comparison(tinyft, monkeypatch):
    def measure_case(case, mode, **options):
        names = ["tinyft", *bench.RIVALS["pytorch"]]
        times = {name: [0.1 * number] for number, name in enumerate(names, 1)}
        sides = bench.summarise(times)
        differences = {"pytorch_nchw": 0.1 if mode == "training" else 1e-6}
        found = {"sides": sides, "ratios": bench.ratios(sides), "differences": differences}
        return found | {"others": 0.5}

    monkeypatch.setattr(bench, "measure_case", measure_case)
    out = tinyft("bench", "--all").out
    assert "PyTorch, channels_last             300.0 ms   300.0 ms" in out
    assert "2.00 times as fast as PyTorch's better layout (2.00 by minima)" in out
    assert "note: other programs took 50 % of the processors meanwhile" in out
    assert out.count("note: the losses differ") == len(bench.CASES)
    for title in map(str, bench.CASES):
        assert f"{title}: training" in out


PEAKS = {"tinyft": 60 << 20, "pytorch_nchw": 90 << 20, "pytorch_channels_last": 80 << 20}


@pytest.mark.parametrize("torch", [False, True])
def test_memory_and_start(tinyft, monkeypatch, torch):
    monkeypatch.setattr(bench, "versions", lambda: {"processor": "x"})
    monkeypatch.setattr(bench, "installed", lambda package: torch)
    monkeypatch.setattr(bench_processes, "run_child", lambda side, *_, **__: (PEAKS[side], 1.5))
    done = tinyft(*TINY, "--memory", "--cold")
    assert done.code == 0, done.err
    assert "tinyft                                60 MiB" in done.out
    assert ("0.75 of PyTorch's smaller one" in done.out) == torch
    assert "1.50 s with nothing compiled before" in done.out
    (case,) = json.loads(tinyft(*TINY, "--memory", "--cold", "--json").out)["processes"]
    assert case["memory"]["bytes"] == (PEAKS if torch else {"tinyft": 60 << 20})
    assert case["memory"]["ratio"] == (0.75 if torch else None)
    assert case["start"] == {"cold": 1.5, "warm": 1.5}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--arch", "resnet19"), "--arch must be one of resnet18"),
        (("--all", "--size", "64"), "--all has its own networks and sizes"),
        (("--batch-size", "1"), "expected a whole number >= 2, got '1'"),
        (("--rounds", "0"), "expected a whole number >= 1, got '0'"),
    ],
)
def test_requests_that_are_wrong(tinyft, arguments, words):
    done = tinyft("bench", *arguments)
    assert done.code == 2
    assert words in done.error


def test_sides_that_do_not_agree_are_a_failure(tinyft, monkeypatch):
    sides = {"tinyft": lambda: 1.0, "pytorch_nchw": lambda: 2.0}
    monkeypatch.setattr(bench, "_sides", lambda *_: sides.items())
    done = tinyft(*TINY)
    assert done.code == 1
    assert "pytorch_nchw computes something else" in done.error
