"""The fast pooling against its definition: the same bits, up to the rounding of a mean."""

import numpy as np
import pytest

from tinyft.backends.cpu import CpuBackend
from tinyft.backends.cpu.memory_bound import pooling
from tinyft.backends.cpu.runtime import threads, workspace
from tinyft.backends.reference import Backend

FAST, REFERENCE = CpuBackend(), Backend()

WINDOWS = [  # shape, kernel, stride, padding
    ((2, 112, 56, 64), 3, 2, 1),
    ((3, 7, 9, 32), 3, 2, 1),
    ((1, 8, 5, 16), 2, 2, 0),
    ((2, 5, 5, 48), 3, 1, 1),
    ((2, 9, 11, 16), 5, 3, 2),
    ((1, 3, 3, 16), 3, 1, 0),
    ((1, 1, 1, 16), 3, 2, 1),
    ((1, 20, 20, 16), 15, 1, 7),
    ((1, 20, 21, 16), 17, 2, 8),  # too large for a byte
    ((2, 6, 6, 16), 2, 5, 0),  # pixels that no window meets
    ((2, 4, 4, 16), 1, 1, 1),  # windows that meet no pixel
    ((2, 7, 6, 3), 3, 2, 1),
    ((2, 7, 6, 37), 2, 1, 1),
]


def picture(shape, levels=5, seed=0):
    """Few different values, so that maxima are often shared."""
    return np.random.default_rng(seed).integers(-levels, 1, shape).astype(np.float32)


def leave_nan(*shapes):
    for shape in shapes:
        workspace.empty(shape).fill(np.nan)


@pytest.mark.parametrize("shape, kernel, stride, padding", WINDOWS)
@pytest.mark.parametrize("special", [None, np.nan, -np.inf, np.inf])
def test_max_pool(shape, kernel, stride, padding, special):
    options = {"kernel": kernel, "stride": stride, "padding": padding}
    x = picture(shape)
    if special is not None:
        x[np.random.default_rng(1).random(shape) < 0.3] = special
        x[0] = special  # whole windows of it
    leave_nan(shape, shape)
    out, place = FAST.max_pool2d(x, **options)
    want, want_place = REFERENCE.max_pool2d(x, **options)
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(place, want_place)
    assert out.dtype == np.float32
    dout = np.random.default_rng(2).standard_normal(out.shape).astype(np.float32)
    dx = FAST.max_pool2d_grad(dout, place, shape, **options)
    np.testing.assert_array_equal(dx, REFERENCE.max_pool2d_grad(dout, want_place, shape, **options))
    np.testing.assert_array_equal(dx, FAST.max_pool2d_grad(dout, want_place, shape, **options))


@pytest.mark.parametrize("shape", [(2, 7, 7, 512), (1, 1, 1, 16), (3, 50, 40, 32), (2, 5, 6, 10)])
def test_global_average_pool(shape):
    x = (np.random.default_rng(0).standard_normal(shape) + 100).astype(np.float32)
    out = FAST.global_average_pool(x)
    np.testing.assert_allclose(out, x.astype(np.float64).mean((1, 2)), rtol=3e-7)
    dout = out - 100
    np.testing.assert_array_equal(
        FAST.global_average_pool_grad(dout, shape), REFERENCE.global_average_pool_grad(dout, shape)
    )
    for value in (np.nan, np.inf):
        x[0, 0, 0, 1] = value
        np.testing.assert_array_equal(
            np.isnan(FAST.global_average_pool(x)), np.isnan(REFERENCE.global_average_pool(x))
        )


@pytest.mark.parametrize("shape", [(2, 7, 7, 512), (1, 1, 1, 16), (3, 50, 40, 32), (2, 5, 6, 10)])
@pytest.mark.parametrize("special", [None, np.nan, -np.inf, np.inf])
def test_global_max_pool(shape, special):
    x = picture(shape)
    if special is not None:
        x[np.random.default_rng(1).random(shape) < 0.1] = special
        x[0] = special
    got, want = FAST.global_max_pool(x), REFERENCE.global_max_pool(x)
    for actual, expected in zip(got, want, strict=True):
        np.testing.assert_array_equal(actual, expected)
        assert actual.dtype == expected.dtype
    dout = np.random.default_rng(2).standard_normal(got[0].shape).astype(np.float32)
    leave_nan(shape)
    np.testing.assert_array_equal(
        FAST.global_max_pool_grad(dout, got[1], shape),
        REFERENCE.global_max_pool_grad(dout, got[1], shape),
    )


def test_bits_do_not_depend_on_threads():
    x = np.random.default_rng(0).standard_normal((3, 30, 31, 64)).astype(np.float32)
    options = {"kernel": 3, "stride": 2, "padding": 1}
    results, before = [], threads.get_num_threads()
    try:
        for count in (1, 2, 3):
            threads.set_num_threads(count)
            out, place = FAST.max_pool2d(x, **options)
            dx = FAST.max_pool2d_grad(out, place, x.shape, **options)
            results.append((out, place, dx, FAST.global_average_pool(x)))
    finally:
        threads.set_num_threads(before)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert first.tobytes() == second.tobytes()


def test_inputs_of_any_layout_and_dtype():
    x = picture((2, 8, 9, 32))
    options = {"kernel": 3, "stride": 2, "padding": 1}
    out, place = FAST.max_pool2d(x, **options)
    dx = FAST.max_pool2d_grad(out, place, x.shape, **options)
    turned, frozen = np.asfortranarray(x), x.copy()
    frozen.flags.writeable = False
    for other in (turned, frozen):
        np.testing.assert_array_equal(FAST.max_pool2d(other, **options)[0], out)
        np.testing.assert_array_equal(
            FAST.max_pool2d_grad(np.asfortranarray(out), place, x.shape, **options), dx
        )
        np.testing.assert_array_equal(
            FAST.global_max_pool(other)[1], REFERENCE.global_max_pool(x)[1]
        )
    assert FAST.max_pool2d(x.astype(np.float64), **options)[0].dtype == np.float64
    assert FAST.max_pool2d(x[:0], **options)[0].shape == (0, 4, 5, 32)


def test_gradients_of_a_wrong_shape_do_not_reach_a_kernel():
    x = picture((2, 8, 9, 32))
    options = {"kernel": 3, "stride": 2, "padding": 1}
    out, place = FAST.max_pool2d(x, **options)
    with pytest.raises(ValueError):
        FAST.max_pool2d_grad(out, place[:1, :2], x.shape, **options)
    with pytest.raises(ValueError):
        FAST.global_average_pool_grad(out[:, 0, 0, :5], x.shape)


def test_writing_past_the_caches_changes_no_bit(monkeypatch):
    x = np.random.default_rng(0).standard_normal((2, 40, 40, 32)).astype(np.float32)
    options = {"kernel": 3, "stride": 2, "padding": 1}
    out, place = FAST.max_pool2d(x, **options)
    expected = FAST.max_pool2d_grad(out, place, x.shape, **options)
    monkeypatch.setattr("tinyft.backends.cpu.memory_bound.arrays.BEYOND_CACHES", 1)
    actual = FAST.max_pool2d_grad(out, place, x.shape, **options)
    np.testing.assert_array_equal(actual, expected)


def test_a_picture_of_too_many_pixels_is_the_references_business(
    monkeypatch,
):
    x = picture((2, 4, 4, 16))
    monkeypatch.setattr(pooling, "LARGEST_PICTURE", 15)
    monkeypatch.setattr(Backend, "global_max_pool", lambda self, x: "the reference's")
    assert FAST.global_max_pool(x) == "the reference's"


def test_a_batch_may_have_more_pixels_than_a_float32_can_number(monkeypatch):
    x = picture((8, 4, 4, 16))
    expected = REFERENCE.global_max_pool(x)
    monkeypatch.setattr(pooling, "LARGEST_PICTURE", 16)  # pixels, which each of these has
    monkeypatch.setattr(Backend, "global_max_pool", None)  # and which needs no help
    for ours, definition in zip(FAST.global_max_pool(x), expected, strict=True):
        np.testing.assert_array_equal(ours, definition)
