"""Arrays to the GPU and back, batches ahead of the step, updates in one launch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from tests.backends.gpu import standin
from tinyft import backends
from tinyft.errors import DeviceError

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Pictures:
    images: np.ndarray
    number: int


def batches(sizes):
    """Batches of bytes, each full of its own number, and of different sizes."""
    for number, size in enumerate(sizes):
        yield Pictures(np.full((size, 4, 4, 3), number, np.uint8), number)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3,), (), (0, 4)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int64"])
def test_there_and_back_in_the_same_order_of_memory(gpu, shape, dtype):
    x = np.asarray(np.random.default_rng(0).integers(0, 99, shape)).astype(dtype)
    for axes in (tuple(range(x.ndim)), tuple(reversed(range(x.ndim))), (3, 2, 0, 1)[: x.ndim]):
        if sorted(axes) != list(range(x.ndim)):
            continue
        view = np.array(x.transpose(axes), order="C").transpose(np.argsort(axes).astype(int))
        there = gpu.upload(view)
        assert there.strides == view.strides and there.dtype == dtype
        here = gpu.download(there)
        np.testing.assert_array_equal(here, x)
        assert here.strides == view.strides
        zeros = gpu.zeros_like(there)
        assert zeros.strides == view.strides and not backends.host(zeros).any()
    assert gpu.upload(there) is there
    assert backends.place(there, "gpu") is there
    assert backends.host(x) is x and backends.place_like(x, x) is x


def test_an_array_of_another_gpu_is_none_of_this_one(gpu, monkeypatch):
    there = gpu.upload(np.ones((2, 3), np.float32))
    monkeypatch.setattr(type(there), "device", standin.cuda.Device(1))
    with pytest.raises(DeviceError, match="relu: expected arrays on gpu:0, got one on gpu:1"):
        gpu.relu(there)


@pytest.mark.parametrize("sizes", [(8,) * 5, (8, 8, 3), (2, 8, 8, 2, 9), (1,), ()])
def test_batches_arrive_in_order_and_whole(gpu, sizes):
    given = list(batches(sizes))
    for batch, expected in zip(gpu.uploads(iter(given)), given, strict=True):
        assert batch.number == expected.number and batch.images.dtype == np.uint8
        np.testing.assert_array_equal(batch.images.a, expected.images)
    assert not standin.waits


def test_copies_run_ahead_on_a_stream_of_their_own(gpu, monkeypatch):
    """While a batch is computed, the next one's copy was asked for, and nobody waits for it."""
    streams = []

    class Noted(standin.Stream):
        def __init__(self, non_blocking):
            super().__init__(non_blocking)
            assert non_blocking
            streams.append(self)

    monkeypatch.setattr(standin.cuda, "Stream", Noted)
    sent = gpu.uploads(batches((4,) * 4))
    for number in range(4):
        next(sent)
        (stream,) = streams
        assert len(stream.todo) == min(number + 2, 4)
        assert stream.done == number + 1


def test_an_array_elsewhere_is_refused_by_every_kernel(gpu):
    x = np.ones((2, 3), np.float32)
    for kernel in (gpu.relu, lambda a: gpu.matmul(a, a), lambda a: gpu.dropout(a, 0.5, 0, (0, 0))):
        with pytest.raises(DeviceError, match=r"expected arrays on gpu:0, got one in main memory"):
            kernel(x)


def test_updates_are_one_launch_and_the_same_as_one_by_one(gpu):
    rng = np.random.default_rng(0)
    shapes = [(3, 3, 8, 4), (7,), (1,), (5000,)]

    def step(together):
        arrays = [[gpu.upload(rng.uniform(0, 1, s).astype(np.float32)) for _ in range(4)]
                  for s in shapes]  # fmt: skip
        options = {"step": 3, "lr": 1e-2, "momentum": 0.9, "square_momentum": 0.99}
        with backends.deferred_updates(arrays[0][0] if together else None):
            for group in arrays:
                gpu.adam_step(*group, eps=1e-5, weight_decay=0.01, **options)
        return [backends.host(a) for group in arrays for a in group]

    results = []
    for together in (True, False):
        rng = np.random.default_rng(0)
        standin.launches.clear()
        results.append(step(together))
        assert standin.launches == ["adam"] * (1 if together else 4)
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


def test_updates_that_fail_leave_nothing_behind(gpu):
    x = gpu.upload(np.ones(4, np.float32))
    with pytest.raises(ZeroDivisionError), backends.deferred_updates(x):
        gpu.sgd_step(x, x, None, lr=0.1, momentum=0.0, weight_decay=0.0)
        1 / 0  # noqa: B018
    np.testing.assert_array_equal(backends.host(x), 1)
    gpu.sgd_step(x, x, None, lr=0.5, momentum=0.0, weight_decay=0.0)
    np.testing.assert_array_equal(backends.host(x), 0.5)


def test_state_in_another_order_of_memory_is_refused(gpu):
    parameter = gpu.upload(np.ones((4, 3), np.float32).T)
    gradient = gpu.upload(np.arange(12, dtype=np.float32).reshape(3, 4))
    gpu.sgd_step(parameter, gradient, None, lr=1.0, momentum=0.0, weight_decay=0.0)
    np.testing.assert_array_equal(backends.host(parameter), 1 - backends.host(gradient))
    with pytest.raises(ValueError, match="make the state with zeros_like"):
        gpu.sgd_step(parameter, gradient, gradient, lr=1.0, momentum=0.9, weight_decay=0.0)


def test_dropout_draws_the_same_mask_on_every_device(gpu):
    x = np.ones((257, 9), np.float32)
    for seed, stream in ((0, (0, 0)), (2**40 + 5, (7, 2)), (3, (2**33, 1))):
        expected = backends.get("reference").dropout(x, 0.3, seed, stream)
        found = backends.host(gpu.dropout(gpu.upload(x), 0.3, seed, stream))
        np.testing.assert_array_equal(found, expected)


def test_what_the_device_says_of_itself(gpu):
    assert gpu.peak_bytes() == 5 << 20
    gpu.synchronize()
    assert standin.waits["synchronize"] == 1
