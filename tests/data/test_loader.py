"""Batches: order, reproducibility, prefetch in threads, memory of decoded pictures."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from tinyft.data import ImageArrays, ImageFolder, prepare
from tinyft.data.prefetch import PictureCache, ahead, default_budget, default_workers
from tinyft.errors import DataError
from tinyft.weights.preprocess import Preprocess

SMALL = Preprocess(resize=20, crop=16)
COUNTS = {"train/cat": 7, "train/dog": 6, "valid/cat": 3, "valid/dog": 2}


def images(batches) -> np.ndarray:
    return np.concatenate([batch.images for batch in batches])


EARLIER = set()  # threads of another test's iterator, which goes when the collector finds it


@pytest.fixture(autouse=True)
def threads_of_earlier_tests():
    EARLIER.update(threading.enumerate())
    yield
    EARLIER.clear()


def ours() -> list[threading.Thread]:
    started = set(threading.enumerate()) - EARLIER
    return [thread for thread in started if thread.name.startswith("tinyft-data")]


@pytest.mark.parametrize("augment", ["default", "crop", "shift", None])
def test_results_do_not_depend_on_the_number_of_threads(augment, folder):
    path = folder(COUNTS)
    make = partial(ImageFolder, path, batch_size=4, augment=augment)
    expected = images(make(workers=0).train_batches(2, SMALL))
    for workers in (1, 4):
        data = make(workers=workers, cache_bytes=0)
        np.testing.assert_array_equal(images(data.train_batches(2, SMALL)), expected)


def test_epochs_and_seeds_differ_and_repeat(folder):
    path = folder(COUNTS)
    data = ImageFolder(path, batch_size=4, seed=1)
    first = images(data.train_batches(0, SMALL))
    np.testing.assert_array_equal(images(data.train_batches(0, SMALL)), first)
    assert (images(data.train_batches(1, SMALL)) != first).any()
    assert (images(ImageFolder(path, batch_size=4, seed=2).train_batches(0, SMALL)) != first).any()


def test_a_picture_is_augmented_anew_in_each_epoch(folder):
    data = ImageFolder(folder(COUNTS), batch_size=4, shuffle=False)
    first, second = (images(data.train_batches(epoch, SMALL)) for epoch in (0, 1))
    assert all((one != other).any() for one, other in zip(first, second, strict=True))


def test_each_picture_of_an_epoch_is_augmented_by_its_own_draw():
    same = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 20, 20, 3), np.uint8), 6, axis=0)
    labels = np.arange(6) % 2
    data = ImageArrays(train=(same, labels), valid=(same, labels), classes=["a", "b"], size=16)
    (batch,) = data.train_batches(0, SMALL)
    assert len({image.tobytes() for image in batch.images}) == 6


def test_the_order_is_a_permutation_keyed_by_seed_and_epoch(folder):
    path = folder(COUNTS)
    data = ImageFolder(path, batch_size=4)
    orders = [data.train_order(epoch) for epoch in range(5)]
    assert all(sorted(order.tolist()) == list(range(13)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5
    assert orders[0].dtype == np.int64
    np.testing.assert_array_equal(orders[3], ImageFolder(path, augment=None).train_order(3))
    assert ImageFolder(path, shuffle=False).train_order(3).tolist() == list(range(13))


def test_training_starts_again_at_any_step(folder):
    data = ImageFolder(folder(COUNTS), batch_size=3)
    whole = list(data.train_batches(1, SMALL))
    assert len(whole) == data.steps_per_epoch == 4
    rest = list(data.train_batches(1, SMALL, first_step=2))
    assert [batch.ids.tolist() for batch in rest] == [batch.ids.tolist() for batch in whole[2:]]
    np.testing.assert_array_equal(images(rest), images(whole[2:]))
    assert list(data.train_batches(1, SMALL, first_step=4)) == []


def test_labels_and_ids_belong_to_the_pictures(folder):
    data = ImageFolder(folder(COUNTS), batch_size=4, augment=None)
    for batch in data.train_batches(0, SMALL):
        for image, label, index in zip(batch.images, batch.labels, batch.ids, strict=True):
            path = data.path / data.files("train")[index]
            np.testing.assert_array_equal(image, prepare(path, SMALL))
            assert path.parent.name == data.classes[label]


def test_validation_is_whole_in_order_and_never_random(folder):
    data = ImageFolder(folder(COUNTS), batch_size=3)
    batches = list(data.valid_batches(SMALL))
    assert [batch.ids.tolist() for batch in batches] == [[0, 1, 2], [3, 4]]
    expected = [prepare(data.path / name, SMALL) for name in data.files("valid")]
    np.testing.assert_array_equal(images(batches), expected)
    np.testing.assert_array_equal(images(data.valid_batches(SMALL)), expected)


def test_size_scales_the_preprocessing(folder):
    data = ImageFolder(folder(COUNTS), batch_size=3, size=8)
    assert data.adjusted(SMALL) == Preprocess(resize=10, crop=8)
    assert next(data.train_batches(0, SMALL)).images.shape == (3, 8, 8, 3)
    assert data.adjusted(data.adjusted(SMALL)) == data.adjusted(SMALL)


def test_an_epoch_is_never_empty(folder):
    data = ImageFolder(folder({"train/a": 2, "train/b": 1, "valid/a": 1}), batch_size=8)
    assert data.batch_size == 3 and data.steps_per_epoch == 1
    assert any("reduced to 3" in notice for notice in data.notices)
    assert len(list(data.train_batches(0, SMALL))) == 1


def test_a_batch_may_be_one_picture():
    pictures = np.zeros((1, 4, 4, 3), np.uint8), np.array([0])
    data = ImageArrays(pictures, pictures, ["a", "b"])
    assert len(list(data.train_batches(0, SMALL))) == data.steps_per_epoch == 1
    assert len(list(data.valid_batches(SMALL))) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_reaches_the_consumer_at_its_turn(workers):
    def fail():
        raise DataError("seven.jpg: broken")

    jobs = [(i, [fail if i == 2 else (lambda: None)]) for i in range(5)]
    got, stream = [], ahead(iter(jobs), workers)
    with pytest.raises(DataError, match=r"seven\.jpg"):
        for result in stream:
            got.append(result)
    assert got == [0, 1] and not ours()


def test_no_more_than_the_depth_is_under_way():
    begun = []

    def jobs():
        for i in range(20):
            begun.append(i)
            yield i, [lambda: None]

    stream = ahead(jobs(), workers=1, depth=3)
    assert next(stream) == 0 and len(begun) == 4
    stream.close()
    assert len(begun) == 4


def test_closing_early_leaves_no_thread_working(folder):
    data = ImageFolder(folder(COUNTS), batch_size=2, workers=3)
    stream = data.train_batches(0, SMALL)
    next(stream)
    assert ours()
    stream.close()
    assert not ours()


@pytest.mark.slow
def test_closing_early_drops_the_tasks_that_have_not_begun():
    ran = []

    def work():
        time.sleep(0.01)
        ran.append(1)

    stream = ahead(((i, [work] * 50) for i in range(4)), workers=1, depth=3)
    next(stream)
    stream.close()
    assert 50 <= len(ran) < 60  # the first job's, and a few that were begun meanwhile


@pytest.mark.slow
def test_an_interrupt_in_the_consumer_leaves_no_thread_working():
    def wait():
        time.sleep(0.01)

    def consume():
        for _ in ahead(((i, [wait] * 4) for i in range(1000)), workers=2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    gc.collect()
    assert not ours()


def test_pictures_are_decoded_once(folder):
    data = ImageFolder(folder(COUNTS), batch_size=2, workers=2)
    first = images(data.valid_batches(SMALL))
    for name in data.files("valid"):
        (data.path / name).unlink()
    np.testing.assert_array_equal(images(data.valid_batches(SMALL)), first)


def test_the_memory_forgets_when_the_preprocessing_changes(folder):
    data = ImageFolder(folder(COUNTS), batch_size=2)
    list(data.valid_batches(SMALL))
    used = data.cache.used
    assert used == 5 * 20 * 24 * 3  # 36x44 pictures at short side 20
    other = Preprocess(resize=22, crop=16)
    np.testing.assert_array_equal(
        images(data.valid_batches(other)),
        [prepare(data.path / name, other) for name in data.files("valid")],
    )
    assert data.cache.used == 5 * 22 * 26 * 3


def test_the_memory_tells_one_filter_from_another(folder):
    data = ImageFolder(folder(COUNTS), batch_size=2)
    list(data.valid_batches(SMALL))
    other = replace(SMALL, interpolation="bicubic")
    np.testing.assert_array_equal(
        images(data.valid_batches(other)),
        [prepare(data.path / name, other) for name in data.files("valid")],
    )


def test_the_memory_tells_turned_pictures_from_those_left_alone(folder, encode, rough):
    path = folder(COUNTS)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    (path / "valid/cat/0.png").write_bytes(encode(rough(20, 20), exif=exif))
    data = ImageFolder(path, batch_size=2)
    turned = next(data.valid_batches(SMALL)).images[0]
    left_alone = next(data.valid_batches(replace(SMALL, exif_transpose=False))).images[0]
    np.testing.assert_array_equal(turned, left_alone[::-1, ::-1])


def test_the_memory_keeps_within_its_budget():
    cache, made = PictureCache(budget=250), []

    def make():
        made.append(1)
        return np.zeros(100, np.uint8)

    for index in (0, 1, 2, 0, 1, 2):
        assert not cache.get("train", index, "settings", make).flags.writeable
    assert cache.used == 200 and len(made) == 4  # the third does not fit and is made each time
    cache.get("train", 0, "others", make)
    assert cache.used == 100


def test_the_memory_keeps_training_and_validation_apart():
    """They have settings of their own, and an epoch needs both."""
    cache, made = PictureCache(budget=1000), []

    def make():
        made.append(1)
        return np.zeros(100, np.uint8)

    for part, settings in [("train", 256), ("valid", 224)] * 2:
        cache.get(part, 0, settings, make)
    assert cache.used == 200 and len(made) == 2
    cache.get("valid", 0, 256, make)
    assert cache.used == 200 and len(made) == 3


def test_the_defaults_fit_this_machine():
    assert 0 < default_budget() <= 2**30
    assert default_workers() in (1, 2)


@pytest.mark.parametrize("first", ["other", "settings"])
def test_the_memory_may_be_asked_by_what_interrupts_it(first):
    """As a signal handler does that predicts: it gets its picture, and nothing waits."""
    cache, pictures = PictureCache(budget=1000), []

    class Settings(str):
        """Compared while the memory changes; that is interrupted here."""

        __hash__ = str.__hash__

        def __ne__(self, other):
            handler = cache.get("train", 0, "settings", lambda: np.ones(100, np.uint8))
            pictures.append(handler)
            return str(self) != other

    cache.get("train", 0, first, lambda: np.ones(100, np.uint8))
    asking = threading.Thread(
        target=cache.get,
        args=("train", 1, Settings("settings"), lambda: np.zeros(100, np.uint8)),
        daemon=True,
    )
    asking.start()
    asking.join(timeout=10)
    assert not asking.is_alive()
    assert pictures[0].all() and len(pictures) == 1
    assert cache.used == (200 if first == "settings" else 100)


def test_the_memory_is_empty_after_a_stop_in_the_midst_of_a_change():
    cache = PictureCache(budget=1000)
    cache.get("train", 0, "settings", lambda: np.ones(100, np.uint8))

    class Stopping(str):
        def __ne__(self, other):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get("train", 1, Stopping("settings"), lambda: np.ones(100, np.uint8))
    assert cache.used == 0
    cache.get("train", 1, "settings", lambda: np.ones(100, np.uint8))
    assert cache.used == 100
