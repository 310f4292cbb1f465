"""The convolution kernels beyond the contract: TF32, wide tiles, partial sums, planted faults."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.backends.gpu import standin
from tinyft import backends
from tinyft.backends.gpu import conv2d as module
from tinyft.backends.gpu import memory

pytestmark = pytest.mark.slow


# (N, H, W, C), F, kernel, stride, padding
LAYERS = {
    "3x3": ((2, 9, 7, 8), 12, 3, 1, 1),
    "3x3 stride 2": ((1, 14, 11, 20), 68, 3, 2, 1),
    "1x1 stride 2": ((3, 8, 8, 24), 20, 1, 2, 0),
    "7x7 of a stem": ((1, 17, 15, 3), 64, 7, 2, 3),
    "1x1": ((2, 7, 5, 36), 40, 1, 1, 0),
    "2x2 stride 3": ((2, 8, 9, 3), 4, 2, 3, 0),
}


def draw(x_shape, F, kernel, stride, padding):
    rng = np.random.default_rng(0)
    P, Q = ((n + 2 * padding - kernel) // stride + 1 for n in x_shape[1:3])
    shapes = x_shape, (F, x_shape[3], kernel, kernel), (x_shape[0], P, Q, F)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def passes(backend, x, weight, dout, stride, padding):
    """Forward and both gradients, from and to the host."""
    window = {"stride": stride, "padding": padding}
    x, weight, dout = map(backend.upload, (x, weight, dout))
    results = (
        backend.conv2d(x, weight, **window),
        backend.conv2d_input_grad(dout, weight, x.shape, **window),
        backend.conv2d_weight_grad(dout, x, weight.shape, **window),
    )
    return [backends.host(result) for result in results]


def worst(results, exact):
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(results, exact, strict=True))


@pytest.mark.parametrize("layer", LAYERS)
def test_tf32_rounds_the_factors_and_nothing_else(gpu, monkeypatch, layer):
    *shapes, stride, padding = LAYERS[layer]
    arrays = draw(*shapes, stride, padding)
    monkeypatch.setattr(gpu, "precision", "tf32")
    found = passes(gpu, *arrays, stride, padding)
    reference = backends.get("reference")
    rounded = [standin.tf32(a).astype(np.float64) for a in arrays]
    assert worst(found, passes(reference, *rounded, stride, padding)) < 3e-6
    exact = passes(reference, *(a.astype(np.float64) for a in arrays), stride, padding)
    assert 1e-5 < worst(found, exact) < 2e-3


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_many_blocks_and_partial_sums(gpu, monkeypatch, precision):
    """Wide tiles, and a sum over rows in several parts: chosen for large layers only, so small
    numbers stand for what is enough.
    """
    monkeypatch.setattr(gpu, "precision", precision)
    monkeypatch.setattr(module, "FEWEST_ROWS", 32)
    monkeypatch.setattr(module, "ENOUGH_BLOCKS", 1)
    layer = (2, 9, 8, 8), 128, 3, 1, 1
    arrays = draw(*layer)
    defines, _, width = gpu.tile_for(np.dtype("float32"), 144, 128)
    assert ("-DBN=128" in defines) == (width == 128) == (precision == "tf32")
    alone = passes(gpu, *arrays, 1, 1)
    monkeypatch.setattr(module, "ENOUGH_BLOCKS", 8)
    standin.launches.clear()
    in_parts = passes(gpu, *arrays, 1, 1)
    assert "add_partial" in standin.launches
    exact = passes(backends.get("reference"), *(a.astype(np.float64) for a in arrays), 1, 1)
    for found in (alone, in_parts):
        assert worst(found, exact) < (3e-6 if precision == "fp32" else 2e-3)


def test_an_array_may_have_other_strides(gpu):
    """Views of arrays on the device; a network's weights are such."""
    x, weight, dout = draw(*LAYERS["3x3"])
    window = {"stride": 1, "padding": 1}
    expected = backends.host(gpu.conv2d(gpu.upload(x), gpu.upload(weight), **window))
    wide = gpu.upload(np.repeat(x, 2, axis=3))
    in_order = gpu.upload(np.ascontiguousarray(weight.transpose(2, 3, 1, 0))).transpose(3, 2, 0, 1)
    found = gpu.conv2d(wide[..., ::2], in_order, **window)
    np.testing.assert_array_equal(backends.host(found), expected)
    shifted = gpu.upload(np.append(np.float32(0), x.ravel()))[1:].reshape(x.shape)
    assert shifted.flags.c_contiguous and shifted.data.ptr % 16
    np.testing.assert_array_equal(backends.host(gpu.conv2d(shifted, in_order, **window)), expected)
    np.testing.assert_array_equal(
        backends.host(gpu.conv2d_weight_grad(gpu.upload(dout), shifted, weight.shape, **window)),
        backends.host(
            gpu.conv2d_weight_grad(gpu.upload(dout), gpu.upload(x), weight.shape, **window)
        ),
    )


# ----------------------------------------------------------------------------------- planted faults

AFTER_THE_LOOP = "\n    }\n    piece.each([&](int i, int j, real value) {\n        int %s ="
BARRIER = "        __syncthreads();" + AFTER_THE_LOOP
# One mistake each: the file, the source as it is, and the source with the mistake. What has to
# notice is the comparison with the reference, or with the threads in reverse order.
FAULTS = {
    "gather without its barrier": ("conv2d", BARRIER % "m", AFTER_THE_LOOP % "m"),
    "weight_grad without its barrier": ("conv2d", BARRIER % "k", AFTER_THE_LOOP % "k"),
    "one buffer instead of two": ("conv2d", "now ^= 1", "now ^= 0"),
    "a bound off by one": ("conv2d", "h < 0 || w < 0", "h < -1 || w < 0"),
    "the other bound off by one": ("conv2d", "h >= p.H || w >= p.W", "h > p.H || w >= p.W"),
    "a last row too few": ("conv2d", "m >= M || f", "m >= M - 1 || f"),
    "the carry forgotten": ("conv2d", "{ t.s = 0; t.r++; }", "t.s = 0;"),
    "a picture too late": ("conv2d", "p.P * p.step; v.n++;", "p.P * p.step;"),
    "not turned round": ("elementwise", "place = R * S - 1 - i", "place = i"),
    "a share left out": ("elementwise", "z < shares", "z < shares - 1"),
    "fragments of a exchanged": (
        "conv2d", "e % 2 * 8) * ax + (k + e / 2 * 4)", "e / 2 * 8) * ax + (k + e % 2 * 4)",
    ),
    "fragments of b exchanged": ("conv2d", "(k + e * 4) * bk", "(k + 4 - e * 4) * bk"),
    "results of a fragment exchanged": (
        "conv2d", "g + e / 2 * 8, 8 * j + 2 * t + e % 2", "g + e % 2 * 8, 8 * j + 2 * t + e / 2",
    ),
}  # fmt: skip
QUICK = ("gather without its barrier", "the other bound off by one", "fragments of a exchanged")
EACH = [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FAULTS]


@pytest.mark.parametrize("fault", EACH)
def test_a_planted_fault_is_found(gpu, tmp_path, fault):
    file, right, wrong = FAULTS[fault]
    for path in Path(module.__file__).parent.glob("*.cu"):
        source = path.read_text()
        if path.stem == file:
            assert right in source
            source = source.replace(right, wrong)
        (tmp_path / path.name).write_text(source)
    precision = "tf32" if "fragment" in fault else "fp32"
    command = [sys.executable, "-m", "tests.backends.gpu.test_conv2d", str(tmp_path), precision]
    root = Path(__file__).resolve().parents[3]
    # A fault may read out of bounds and die, so it runs in a process of its own.
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode != 0, f"{fault} was not noticed"
    assert "Traceback" not in done.stderr, done.stderr


def find_faults(folder, precision):
    """1 if the kernels in that folder compute something wrong, or something else in reverse."""
    memory.FOLDER = Path(folder)
    module.FEWEST_ROWS = 32
    standin.OPTIMISE = "-O0"  # compiled to run once
    with standin.installed():
        gpu = backends.get("gpu")
        gpu.precision = precision
        for *shapes, stride, padding in (LAYERS["3x3"], LAYERS["3x3 stride 2"]):
            arrays = draw(*shapes, stride, padding)
            exact = passes(backends.get("reference"), *arrays, stride, padding)
            for reverse in ("", "1"):
                os.environ.update({"REVERSE": "1"} if reverse else {})
                error = worst(passes(gpu, *arrays, stride, padding), exact)
                os.environ.pop("REVERSE", None)
                if not (math.isfinite(error) and error < (2e-3 if precision == "tf32" else 1e-5)):
                    return 1
    return 0


if __name__ == "__main__":
    sys.exit(find_faults(*sys.argv[1:]))
