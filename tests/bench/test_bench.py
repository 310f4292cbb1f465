"""What `tinyft bench` makes of times, and that all sides compute the same. No test of speed."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tinyft.backends.cpu.conv import bf16
from tinyft.backends.reference import peak_bytes_of_process
from tinyft.bench import cases
from tinyft.bench import measure as bench
from tinyft.bench.cases import Case
from tinyft.engine.tensor import Tensor
from tinyft.errors import TinyftError
from tinyft.nn import build

TINY = Case("cifar_resnet20", 2, 32)


# ------------------------------------------------------------------------------------- statistics


def test_medians_and_minima():
    found = bench.summarise({"tinyft": [3.0, 1.0, 2.0, 9.0]})
    assert found == {"tinyft": {"median": 2.5, "min": 1.0, "seconds": [3.0, 1.0, 2.0, 9.0]}}


def test_a_ratio_is_to_the_best_side_of_each_rival():
    times = {
        "tinyft": [1.0, 2.0, 4.0],
        "pytorch_nchw": [5.0, 6.0, 7.0],
        "pytorch_channels_last": [3.0, 8.0, 9.0],  # best by minima, not by medians
        "onnxruntime": [1.0, 1.0, 1.0],
    }
    assert bench.ratios(bench.summarise(times)) == {
        "pytorch": {"median": 3.0, "min": 3.0},
        "onnxruntime": {"median": 0.5, "min": 1.0},
    }
    assert bench.ratios(bench.summarise({"tinyft": [1.0]})) == {}


def test_sides_take_turns_and_each_runs_once_unmeasured_before_it_is_measured():
    calls = []
    sides = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = bench.measure(sides, rounds=3, pause=0)
    assert "".join(calls) == "aabbcc" + "ccbbaa" + "aabbcc"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_the_part_of_other_programs():
    before = bench.Clock(wall=0.0, own=0.0, busy=0.0)
    cores = bench.os.cpu_count() or 1
    assert before.others(bench.Clock(10.0, 5.0, 5.0 + 2.5 * cores)) == pytest.approx(0.25)
    assert before.others(bench.Clock(10.0, 5.0, 4.9)) == 0.0  # ticks are coarse
    assert before.others(bench.Clock(10.0, 5.0, None)) is None


def test_a_busy_machine(monkeypatch):
    monkeypatch.setattr(bench.os, "cpu_count", lambda: 4)
    for average, busy in ((0.9, False), (1.1, True)):
        monkeypatch.setattr(bench.os, "getloadavg", lambda a=average: (a, 9, 9), raising=False)
        assert bench.load() == {"cores": 4, "load_average": average, "busy": busy}


# ------------------------------------------------------------------------------- the same results


def test_differences_are_parts_of_the_largest_value():
    ours = np.array([1.0, -2.0])
    sides = {"tinyft": lambda: ours, "near": lambda: ours + 1e-4, "far": lambda: ours + 0.5}
    found = bench.differences(sides)
    assert found == {"near": pytest.approx(0.5e-4), "far": pytest.approx(0.25)}
    bench.check({"near": found["near"]})
    for wrong in (found["far"], np.nan):
        with pytest.raises(TinyftError, match="other computes something else"):
            bench.check({"near": found["near"], "other": wrong})


@pytest.mark.slow
def test_our_sides():
    infer, step = cases.our_side(TINY, "inference"), cases.our_side(TINY, "training")
    expected = build(TINY.arch, seed=0).eval()(Tensor(cases.batch(TINY)[0])).data
    np.testing.assert_allclose(infer(), expected, rtol=1e-4, atol=1e-4)
    losses = [float(step()) for _ in range(4)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("arch", ["cifar_resnet20", "resnet18", "resnet50"])
def test_pytorch_and_onnx_runtime_compute_the_same(arch):
    case = Case(arch, 8, 64)  # of fewer, batch norms amplify rounding
    if not (bench.installed("torch") or bench.installed("onnxruntime")):
        pytest.skip("neither PyTorch nor ONNX Runtime is installed")
    for mode in cases.MODES:
        found = bench.differences(dict(bench.sides_of(case, mode, 1, alone=False)))
        assert all(difference < 1e-4 for difference in found.values()), found


@pytest.mark.slow
@pytest.mark.skipif(bf16.why_not() is not None, reason=bf16.why_not() or "works")
def test_in_bf16_our_side_computes_something_else_and_pytorchs_joins_in():
    case = Case("resnet50", 4, 64)
    sides = dict(bench.sides_of(case, "inference", 1, alone=False, backend="cpu:bf16"))
    sides["float32"] = cases.our_side(case, "inference")
    found = bench.differences(sides)
    assert bench.DIFFERENCE < found["float32"] < bench.BF16_DIFFERENCE
    bench.check(found, bench.BF16_DIFFERENCE)
    in_bf16 = {*bench.RIVALS["pytorch_bf16"], *bench.RIVALS["pytorch_bf16_folded"]}
    assert in_bf16 <= set(sides) or not bench.installed("torch")


# -------------------------------------------------------------------------------------- processes


@pytest.mark.slow
def test_the_peak_of_a_process_and_its_seconds():
    peak, seconds = bench.run_child("tinyft", TINY, 1, 1)
    assert 10 << 20 < peak < 4 << 30
    assert seconds > 0
    assert 10 << 20 < peak_bytes_of_process() < 100 << 30


@pytest.mark.slow
def test_the_parents_memory_is_not_the_childs():
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells them apart")
    before, _ = bench.run_child("tinyft", TINY, 1, 1)
    held = np.ones(before + (256 << 20), np.uint8)
    meanwhile, _ = bench.run_child("tinyft", TINY, 1, 1)
    assert meanwhile < held.size


@pytest.mark.slow
def test_a_process_that_fails():
    with pytest.raises(TinyftError, match=r"process of tinyft ended with 1: ValueError: .*resnet0"):
        bench.run_child("tinyft", Case("resnet0", 2, 32), 1, 1)


def test_memory_and_start_from_what_the_processes_say(monkeypatch):
    runs = []

    def run_child(side, case, threads, steps, **environment):
        runs.append((side, steps, environment))
        peaks = {
            "tinyft": 60,
            "pytorch_nchw": 100,
            "pytorch_channels_last": 80,
        }
        return peaks[side], float(10 - len(runs))

    monkeypatch.setattr(bench, "run_child", run_child)
    assert bench.memory(TINY, 1, alone=False)["ratio"] == 0.75
    assert bench.memory(TINY, 1, alone=True) == {"bytes": {"tinyft": 60}, "ratio": None}
    runs.clear()
    assert bench.start(TINY, 2) == {"cold": 9.0, "warm": 6.0}
    assert len({environment["NUMBA_CACHE_DIR"] for _, _, environment in runs}) == 1


@pytest.mark.slow
def test_pytorch_is_not_imported_without_need():
    code = "import sys; from tinyft.bench import cases, measure; print('torch' in sys.modules)"
    done = bench.subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.stdout.strip() == b"False"
