"""Errors and curves of `tinyft bench --accuracy`: that they are measured as it says."""

import numpy as np
import pytest

import tinyft as ft
from tinyft import backends
from tinyft.backends.cpu.conv.table import winograd_is_on
from tinyft.bench import accuracy as bench_accuracy
from tinyft.bench import measure as bench

without_torch = pytest.mark.skipif(not bench.installed("torch"), reason="PyTorch is not installed")
OPTIONS = {"arch": "cifar_resnet20", "weights": None}


@pytest.fixture
def data():
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(32) % 2
    valid = pictures[:4], labels[:4]
    settings = {"size": 32, "batch_size": 8, "augment": None, "workers": 0}
    return ft.ImageArrays((pictures, labels), valid, **settings)


@pytest.fixture
def calls(data):
    learner = ft.vision_learner(data, device="cpu", **OPTIONS)
    learner.unfreeze()
    return bench_accuracy.kernel_calls(learner, next(bench_accuracy.photos(learner, 0)))


def test_ratios_are_to_the_better_layout_of_each_layer():
    def error(winograd, direct, nchw, channels_last):
        values = {"winograd": winograd, "direct": direct}
        values |= {"nchw": nchw, "channels_last": channels_last}
        return {name: {"largest": value, "norm": 2 * value} for name, value in values.items()}

    errors = [error(4, 1, 2, 8), error(9, 3, 6, 3), error(1, 1, 1, 1)]
    found = bench_accuracy.ratios(errors)
    assert found["winograd"]["largest"] == {"worst": 3, "median": 2}
    assert found["direct"]["norm"] == {"worst": 1, "median": 1}
    assert found["pytorch"]["largest"] == {"worst": 4, "median": 2}
    assert found["winograd_to_other"]["largest"] == {"worst": 1.5, "median": 1}
    assert bench_accuracy.ratios([error(0, 1, 0, 1)])["winograd"]["norm"]["worst"] == 1
    assert bench_accuracy.ratios([error(0, 1, 0, 1)])["direct"]["norm"]["worst"] == np.inf


def test_distances_are_parts_of_the_result():
    found = bench_accuracy.relative_errors(np.array([3.0, 4.5]), np.array([3.0, 4.0]))
    assert found == {"largest": 0.5 / 4, "norm": 0.5 / 5}


def test_curves_apart():
    losses = {"nchw": [1.0, 2.0], "channels_last": [1.5, 2.0], "winograd": [1.0, 1.75]}
    losses["direct"] = [2.0, 2.0]
    found = bench_accuracy.apart(losses)
    assert found == {"pytorch": 0.5, "winograd": 0.25, "direct": 0.5}
    losses["float64"] = [1.0, 2.25]
    found = bench_accuracy.from_exact(losses)
    assert found == {"nchw": 0.25, "channels_last": 0.5, "winograd": 0.5, "direct": 1.0}


def test_curves_of_two_seeds():
    first = {"nchw": [1.0, 2.0], "channels_last": [1.5, 2.0]}
    second = {"nchw": [1.25, 2.0], "channels_last": [1.5, 2.75]}
    assert bench_accuracy.between_seeds([first, second, first]) == 0.75
    assert bench_accuracy.between_seeds([first]) == 0


def test_seeds_have_other_photos(data):
    learner = ft.vision_learner(data, device="cpu", **OPTIONS)
    firsts = [next(bench_accuracy.photos(learner, seed)).ids.tolist() for seed in (0, 1, 0)]
    assert firsts[0] == firsts[2] != firsts[1]
    many = bench_accuracy.photos(learner, 0)
    assert sorted(i for _ in range(4) for i in next(many).ids) == list(range(32))
    assert len(next(many).ids) == 8  # of the next epoch


@pytest.mark.slow
def test_the_kernels_of_a_step(calls):
    kernels = [call.kernel for call in calls]
    assert kernels.count("batch_norm_train") == kernels.count("batch_norm_train_grad") == 21
    assert kernels.count("conv2d_weight_grad") == 19  # the shortcuts' choice of pixels is fixed
    assert kernels.count("conv2d") == 21
    assert kernels.count("conv2d_input_grad") == 20  # nobody wants that of the pictures
    assert {bench_accuracy.kind(call) for call in calls} == {
        "convolution 3x3",
        "convolution 3x3, stride 2",
        "convolution 1x1, stride 2",
        "batch norm",
        "batch norm of rows",
    }


@pytest.mark.slow
def test_errors_are_against_float64_with_winograd_and_without(calls):
    call = next(c for c in calls if c.kernel == "conv2d" and c.arguments[0][0].shape[-1] == 64)
    (x, weight, *_), window, result = call.arguments
    reference = backends.get("reference")
    options = {name: window[name] for name in ("stride", "padding")}
    exact = reference.conv2d(x.astype(np.float64), weight.astype(np.float64), None, **options)
    (errors,) = bench_accuracy.errors_of(call, {"exact": [exact], "zero": [0 * exact]})
    assert errors["exact"] == {"largest": 0, "norm": 0}
    assert errors["zero"] == {"largest": 1, "norm": 1}
    assert errors["winograd"] == bench_accuracy.relative_errors(result, exact)
    assert 0 < errors["direct"]["norm"] < errors["winograd"]["norm"] < 1e-5
    assert winograd_is_on()


@without_torch
@pytest.mark.parametrize("layout", bench_accuracy.LAYOUTS)
def test_pytorch_computes_the_same_kernels(calls, layout):
    from tinyft.bench.pytorch import TorchKernels

    kernels = TorchKernels(layout)
    for call in calls:
        for errors in bench_accuracy.errors_of(call, {layout: kernels.compute(call)}):
            assert errors[layout]["largest"] < 1e-4, (call.kernel, bench_accuracy.kind(call))


@without_torch
def test_layers(data):
    rows = bench_accuracy.layers(data, OPTIONS, seeds=2)
    counts = {(row["kind"], row["pass"]): row["count"] for row in rows}
    assert counts["convolution 3x3", "weight gradient"] == 2 * 17
    assert counts["batch norm", "bias gradient"] == 2 * 19
    # 10 as a bound: a tiny network's errors are a few roundings, and PyTorch's sometimes none
    assert all(row["ratios"]["direct"]["norm"]["worst"] < 10 for row in rows)


@without_torch
def test_curves(data):
    losses = bench_accuracy.curves(data, OPTIONS, seed=1, steps=6)
    assert set(losses) == {"winograd", "direct", "nchw", "channels_last", "float64"}
    assert all(len(curve) == 6 for curve in losses.values())
    assert max(bench_accuracy.apart(losses).values()) < 1e-2
    assert losses["winograd"] != losses["direct"]
    assert losses["float64"] != losses["nchw"]
    assert max(bench_accuracy.from_exact(losses).values()) < 1e-2
    first = losses["float64"][0]
    assert first != float(np.float32(first))
    assert losses["nchw"][0] != bench_accuracy.curves(data, OPTIONS, 2, 1)["nchw"][0]
