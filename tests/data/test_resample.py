"""The plain definition of resampling, and the compiled loop against it."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from tinyft import backends
from tinyft.data import augment, resample
from tinyft.data import fast_resample as resample_kernel
from tinyft.data.resample import average_area, axis, light, mirror, resample_plain, to_bytes


def resample_fast(picture, matrix, size, brightness, contrast):
    lit = partial(light, brightness=brightness, contrast=contrast)
    return resample_kernel.resample_fast(picture, matrix, size, lit)


def test_mirror_by_hand():
    positions = np.array([-1.5, 0.0, 2.0, 3.5, 4.0, 7.0, -4.0])
    assert mirror(positions, 3).tolist() == [1.5, 0.0, 2.0, 2.5, 2.0, 1.0, 2.0]
    assert mirror(positions, 0).tolist() == [0.0] * 7


def test_axis_by_hand():
    assert axis(3).tolist() == [-1.0, 0.0, 1.0]
    assert axis(1).tolist() == [0.0]


def test_average_area_by_hand():
    picture = np.arange(5.0).reshape(5, 1, 1) * np.ones((1, 4, 1))
    out = average_area(picture, 2.0)  # rows 0..2, 2..4 (the middle one twice), columns in pairs
    assert out[:, :, 0].tolist() == [[1.0, 1.0], [3.0, 3.0]]


def test_a_picture_is_reduced_as_fastai_does_unless_the_zoom_uses_its_pixels():
    """Of 600 pixels for 100 every third would do; zoomed in four times, all are wanted."""
    for span, reduction in ((1.0, 3.0), (0.25, 1.0)):
        points = np.linspace(-span, span, 100)[:, None, None] * np.ones((1, 100, 2))
        assert resample.reduction_for((600, 600), points) == reduction
    assert resample.reduction_for((150, 150), np.zeros((100, 100, 2))) == 1


def test_light_by_hand():
    assert light(np.array([0.5]), 0.6, 1.0) == pytest.approx(0.6)
    assert light(np.array([0.2]), 0.5, 2.0) == pytest.approx(0.04 / (0.04 + 0.64))
    ends = light(np.array([0.0, 1.0]), 0.6, 0.8)
    assert ends[0] < 1e-5 and ends[1] > 1 - 1e-5


def test_bytes_are_rounded_half_up():
    assert to_bytes(np.array([0.0, 0.5 / 255, 1.49 / 255, 1.0])).tolist() == [0, 1, 1, 255]


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(1, 1, 1), (1, 1, 5), (1, 9, 4), (9, 1, 4), (2, 3, 5), (37, 37, 32), (40, 53, 37)],
)
@pytest.mark.parametrize("seed", range(4))
def test_compiled_equals_plain(height, width, size, seed, rough):
    """Both round half up; only a value within rounding error of a half may fall to either side."""
    drawn = augment.draw(np.random.default_rng(seed))
    arguments = (augment.transform(drawn), size, drawn.brightness, drawn.contrast)
    plain = resample_plain(rough(height, width), *arguments).astype(int)
    fast = resample_fast(rough(height, width), *arguments)
    assert fast.dtype == np.uint8
    assert np.abs(plain - fast).max() <= 1
    assert (plain != fast).sum() <= max(1, 0.002 * plain.size)


def test_compiled_equals_plain_on_dark_pixels():
    """Below one grey level the lighting curve is steep: the table must follow it."""
    picture = np.zeros((30, 30, 3), np.uint8)
    picture[::2, ::3] = (1, 2, 3)
    drawn = augment.AugmentDraw(angle=7.0, brightness=0.6, contrast=0.8)
    arguments = (augment.transform(drawn), 30, drawn.brightness, drawn.contrast)
    plain = resample_plain(picture, *arguments).astype(int)
    fast = resample_fast(picture, *arguments)
    assert np.abs(plain - fast).max() <= 1 and (plain != fast).mean() < 0.02


@pytest.mark.slow
def test_the_loop_runs_uncompiled_too(rough, monkeypatch):
    matrix = np.array([[0.9, 0.1, 0.3], [-0.1, 0.9, 0.7], [0.0, 0.0, 1.0]])
    curve = np.linspace(0.5, 255.5, 4082, dtype=np.float32)
    out, compiled = np.empty((2, 6, 6, 3), np.uint8)
    resample_kernel._sample_and_light(rough(7, 8), matrix, curve, compiled)
    monkeypatch.setattr(resample_kernel, "_mirror", resample_kernel._mirror.py_func)
    resample_kernel._sample_and_light_source(rough(7, 8), matrix, curve, out)
    np.testing.assert_array_equal(out, compiled)


@pytest.mark.parametrize("matrix", [np.zeros((3, 3)), np.full((3, 3), np.nan), np.eye(3) * 1e300])
def test_no_matrix_can_read_outside_the_picture(matrix, rough):
    out = resample_fast(rough(5, 5), matrix, 4, 0.5, 1.0)
    assert out.shape == (4, 4, 3)


def test_strong_reduction_takes_the_plain_path(rough, monkeypatch):
    monkeypatch.setattr(resample_kernel, "resample_fast", None)
    picture = rough(41, 41)
    out = resample.resample(picture, np.eye(3), 12, 0.5, 1.0)
    np.testing.assert_array_equal(out, resample_plain(picture, np.eye(3), 12, 0.5, 1.0))


def test_without_numba_the_definition_is_used(rough, monkeypatch):
    monkeypatch.setattr(backends, "why_no_numba", lambda: "pip install numba")
    monkeypatch.setattr(resample_kernel, "resample_fast", None)
    np.testing.assert_array_equal(
        resample.resample(rough(9, 9), np.eye(3), 9, 0.5, 1.0), rough(9, 9)
    )


@pytest.mark.slow
def test_importing_the_package_loads_neither_pillow_nor_numba():
    code = "import sys, tinyft.data; print(sorted({'PIL', 'numba'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
