"""`tinyft bench`: what it prints, what it refuses. How fast anything is, is not tested."""

import json

import pytest

from tinyft.backends.cpu.runtime import threads
from tinyft.bench import accuracy as bench_accuracy
from tinyft.bench import cases
from tinyft.bench import frozen as bench_frozen
from tinyft.bench import measure as bench

TINY = ("bench", "--arch", "cifar_resnet20", "--batch-size", "2", "--size", "32", "--rounds", "1")


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    count = threads.get_num_threads()
    yield
    threads.set_num_threads(count)


def without_others(monkeypatch):
    monkeypatch.setattr(bench, "installed", lambda package: False)


@pytest.mark.slow
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
    assert "conv2d_weight_grad  1 by few channels, 16 by Winograd, 4 by implicit GEMM" in done.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--backend", "cpu"), "--backend is gpu, cpu:bf16 or left out"),
        (("--backend", "cpu:bf16", "--memory"), "is for the times of steps and inference"),
        (("--out", "x.json"), "--out needs --backend gpu"),
    ],
)
def test_a_file_and_a_backend_are_for_gpus(tinyft, options, words):
    done = tinyft(*TINY, *options)
    assert done.code == 2 and words in done.error


@pytest.mark.slow
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
    for mode in cases.MODES:
        assert set(case[mode]) == {"sides", "ratios", "differences", "allowed", "others"}
        side = case[mode]["sides"]["tinyft"]
        assert [side["median"]] == [side["min"]] == side["seconds"]
        assert case[mode]["ratios"] == {}
    counts = [sum(by.values()) for by in case["algorithms"].values()]
    assert counts == [21, 20, 21]  # no gradient with respect to the pictures


@pytest.mark.slow
def test_the_lines_of_a_comparison(tinyft, monkeypatch):
    def measure_case(case, mode, **options):
        names = ["tinyft", *bench.RIVALS["pytorch"]]
        times = {name: [0.1 * number] for number, name in enumerate(names, 1)}
        sides = bench.summarise(times)
        differences = {"pytorch_nchw": 0.1 if mode == "training" else 1e-6}
        found = {"sides": sides, "ratios": bench.ratios(sides), "differences": differences}
        return found | {"allowed": 1e-3, "others": 0.5}

    monkeypatch.setattr(bench, "measure_case", measure_case)
    out = tinyft("bench", "--all").out
    assert "PyTorch, channels_last                   300.0 ms   300.0 ms" in out
    assert "2.00 times as fast as PyTorch's better layout (2.00 by minima)" in out
    assert "note: other programs took 50 % of the processors meanwhile" in out
    assert out.count("note: the losses differ") == len(cases.CASES)
    for title in map(str, cases.CASES):
        assert f"{title}: training" in out


PEAKS = {"tinyft": 60 << 20, "pytorch_nchw": 90 << 20, "pytorch_channels_last": 80 << 20}


@pytest.mark.parametrize("torch", [False, True])
def test_memory_and_start(tinyft, monkeypatch, torch):
    monkeypatch.setattr(bench, "versions", lambda: {"processor": "x"})
    monkeypatch.setattr(bench, "installed", lambda package: torch)
    monkeypatch.setattr(bench, "run_child", lambda side, *_, **__: (PEAKS.get(side), 1.5))
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
        (("--arch", "resnet19"), "architecture must be one of resnet18"),
        (("--all", "--size", "64"), "--all has its own networks and sizes"),
        (("--batch-size", "1"), "expected a whole number >= 2, got '1'"),
        (("--rounds", "0"), "expected a whole number >= 1, got '0'"),
        (("--overhead", "--cold"), "only --memory and --cold can be measured together"),
        (("--frozen", ".", "--accuracy", "."), "only --memory and --cold can be measured together"),
        (("--weights", "none"), "--weights is for --frozen and --accuracy"),
        (("--seeds", "2"), "--seeds is for --accuracy"),
        (("--frozen", ".", "--all"), "--all is not for photos; name one network with --arch"),
        (("--frozen", "nowhere", "--weights", "none"), "nowhere is no folder of photos"),
    ],
)
def test_requests_that_are_wrong(tinyft, arguments, words):
    done = tinyft("bench", *arguments)
    assert done.code == 2
    assert words in done.error


@pytest.mark.slow
def test_sides_that_do_not_agree_are_a_failure(tinyft, monkeypatch):
    sides = {"tinyft": lambda: 1.0, "pytorch_nchw": lambda: 2.0}
    monkeypatch.setattr(bench, "sides_of", lambda *_: sides.items())
    done = tinyft(*TINY)
    assert done.code == 1
    assert "pytorch_nchw computes something else" in done.error


MEASURED = {"step": 0.5, "kernels": 0.4, "outside": 0.2, "outside_min": 0.1, "calls": 300}


def test_overhead(tinyft, monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "outside_kernels", lambda *given: asked.append(given) or MEASURED)
    done = tinyft(*TINY, "--overhead")
    assert done.code == 0, done.err
    assert "500.0 ms, 400.0 ms of it in 300 calls of kernels" in done.out
    assert "20.00 % outside (least 10.00 %)" in done.out
    assert asked == [(cases.Case("cifar_resnet20", 2, 32), 1)]
    (case,) = json.loads(tinyft(*TINY, "--overhead", "--json").out)["overhead"]
    assert case == {"arch": "cifar_resnet20", "batch_size": 2, "size": 32} | MEASURED


def test_avx2_is_asked_of_all_sides_in_a_process_of_its_own(tinyft, monkeypatch):
    started = []
    monkeypatch.setattr("subprocess.call", lambda *a, **b: started.append((a, b)))
    monkeypatch.setattr("tinyft.backends.cpu.codegen.simd.host_has", lambda feature: True)
    tinyft(*TINY, "--overhead", "--isa", "avx2")
    [((command,), options)] = started
    assert command[-2:] == ["--isa", "avx2"]
    monkeypatch.setattr("os.environ", options["env"])
    monkeypatch.setattr(bench, "outside_kernels", lambda *given: MEASURED)
    first = tinyft(*TINY, "--overhead", "--isa", "avx2").out.splitlines()[0]
    assert "AVX2 at most, on both sides (NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=" in first
    assert json.loads(tinyft(*TINY, "--overhead", "--isa", "avx2", "--json").out)["isa"] == "avx2"
    assert len(started) == 1


def test_avx2_is_refused_where_the_cpu_lacks_it(tinyft, monkeypatch):
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", dict)
    done = tinyft(*TINY, "--isa", "avx2")
    assert done.code == 2 and "--isa avx2 needs a CPU with AVX2 and FMA" in done.error


# --------------------------------------------------------------------------------- on photos

PHOTOS = ("--weights", "none", "--arch", "cifar_resnet20", "--batch-size", "4")


@pytest.fixture
def photos(draw):
    return draw({"train/cat": 5, "train/dog": 5, "valid/cat": 3}, "photos")


@pytest.mark.slow
def test_frozen_without_pytorch(tinyft, monkeypatch, photos):
    without_others(monkeypatch)
    done = tinyft("bench", "--frozen", photos, *PHOTOS, "--epochs", "2", "--rounds", "1")
    assert done.code == 0, done.err
    for words in ('bn="frozen": the body', "the default: the body"):
        assert f"frozen phase, 2 epochs of 10 pictures; {words}" in done.out
    assert "times as fast" not in done.out


def test_the_lines_of_a_frozen_phase(tinyft, monkeypatch, photos):
    cases = []

    def measure(case, rounds, *, alone):
        cases.append((case, rounds, alone))
        side = {"training": 1.0, "validation": 2.0, "total": 3.0, "accuracy": 0.5}
        sides = {"tinyft": side, "pytorch_channels_last": side | {"total": 12.0}}
        ratios = {"ratio": 4.0, "training_ratio": 3.5}
        return ratios | {"sides": sides, "why": "because", "others": 0.5}

    monkeypatch.setattr(bench, "installed", lambda package: True)
    monkeypatch.setattr(bench, "versions", lambda: {"processor": "x"})
    monkeypatch.setattr(bench_frozen, "measure", measure)
    done = tinyft("bench", "--frozen", photos, *PHOTOS, "--size", "24")
    assert done.code == 0, done.err
    line = "PyTorch, channels_last      1.00 s      2.00 s     12.00 s    50.00 %"
    assert line in done.out
    assert "4.00 times as fast as PyTorch (3.50 without validation):\n  because" in done.out
    assert "note: other programs took 50 %" in done.out
    (frozen, three, alone), (default, *_) = cases
    assert (three, alone, frozen.epochs, frozen.bn, default.bn) == (3, False, 3, "frozen", "fastai")
    assert (frozen.data.augment, frozen.data.size, frozen.data.batch_size) == (None, 24, 4)
    assert frozen.options == {"arch": "cifar_resnet20", "weights": None}


def test_accuracy_needs_pytorch(tinyft, monkeypatch, photos):
    without_others(monkeypatch)
    done = tinyft("bench", "--accuracy", photos, *PHOTOS)
    assert done.code == 2
    assert "--accuracy compares with PyTorch; install it: pip install torch" in done.error


def test_the_lines_of_accuracy(tinyft, monkeypatch, photos):
    def ratio(worst):
        return {measure: {"worst": worst, "median": 1.25} for measure in bench_accuracy.MEASURES}

    ratios = {"winograd": ratio(5.5), "direct": ratio(2.0), "pytorch": ratio(9.0)}
    ratios["winograd_to_other"] = ratio(0.75)
    row = {"kind": "convolution 3x3", "pass": "forward", "count": 7, "ratios": ratios}
    curve = {name: [2.0, 1.0] for name in ("winograd", "direct")} | {"float64": [2.0, 1.5]}

    def curves(data, options, seed, steps):
        return curve | {"nchw": [2.0, 1.0 + 0.5 * seed], "channels_last": [2.0, 1.25]}

    monkeypatch.setattr(bench, "installed", lambda package: True)
    monkeypatch.setattr(bench, "versions", lambda: {"processor": "x"})
    monkeypatch.setattr(bench_accuracy, "layers", lambda data, options, seeds: [row] * seeds)
    monkeypatch.setattr(bench_accuracy, "curves", curves)
    done = tinyft("bench", "--accuracy", photos, *PHOTOS, "--seeds", "2")
    assert done.code == 0, done.err
    numbers = "5.50 (1.25)  2.00 (1.25)   9.00 (1.25)   0.75 (1.25)"
    assert done.out.count(f"convolution 3x3: forward       7  {numbers}") == 4
    assert done.out.count("tinyft: 2 of 2 lines above 5") == 2
    assert done.out.count("Winograd off: no line above 5") == 2
    assert "losses of 30 fine-tuning steps" in done.out
    ours = "tinyft to the nearer one {0}, Winograd off {0}"
    layouts = "PyTorch's layouts to each other 2.5e-01"
    assert f"seed 0 (loss 2.00 to 1.50)\n    {layouts}; {ours.format('0.0e+00')}" in done.out
    assert f"all seeds, the largest\n    {layouts}; {ours.format('2.5e-01')}" in done.out
    exact = "tinyft 5.0e-01, Winograd off 5.0e-01; PyTorch's NCHW 5.0e-01, channels_last 2.5e-01"
    assert done.out.count(f"from float64: {exact}") == 2  # of seed 0 and of all
    assert "further from float64 than both layouts: 1 of 2 seeds" in done.out
    done = tinyft("bench", "--accuracy", photos, *PHOTOS, "--seeds", "1", "--json")
    assert set(json.loads(done.out)["accuracy"]) == {"seeds", "layers", "curves"}
