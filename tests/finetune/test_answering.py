"""Predictions: what may be asked, when the folded network is renewed, several threads."""

from __future__ import annotations

import copy
import io
import os
import signal
import threading

import numpy as np
import pytest
from PIL import Image

import tinyft as ft
from tests.finetune.conftest import pictures, small_data, small_learner
from tinyft.errors import DataError
from tinyft.finetune import answering
from tinyft.nn.layers import Dropout


@pytest.fixture(scope="module")
def learner() -> ft.Learner:
    return small_learner()


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# ------------------------------------------------------------------------------- what may be asked


def test_every_kind_of_picture_gives_the_same(learner, tmp_path):
    x, _ = pictures()
    for i, pixels in enumerate(x[:3]):
        (tmp_path / f"{i}.png").write_bytes(png(pixels))
    file = str(tmp_path / "0.png")
    expected = learner.predict(x[0])
    for image, name in (
        (file, file),
        (tmp_path / "0.png", file),
        (png(x[0]), "bytes"),
        (Image.fromarray(x[0]), "picture"),
        (Image.open(file), file),
        (x[0], "array"),
    ):
        found = learner.predict(image)
        assert found.file == name
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    several = [learner.predict(images) for images in (tmp_path, x[:3], [*x[:3]])]
    assert [found[1].file for found in several] == [str(tmp_path / "1.png"), "array[1]", "array"]
    mixed = learner.predict([tmp_path, x[:2], Image.fromarray(x[3])])
    assert [found.label for found in mixed[:3]] == [found.label for found in several[0]]
    assert len(mixed) == 6 and learner.predict([]) == []


def test_what_is_no_picture_is_refused(learner, tmp_path):
    with pytest.raises(
        TypeError, match="a picture is a path, bytes, a uint8 array or Pillow's; go"
    ):
        learner.predict(3)
    with pytest.raises(DataError, match=r"must be uint8 \(height, width, 3\); got float64"):
        learner.predict(np.zeros((2, 8, 8, 3)))
    with pytest.raises(DataError, match="there are no pictures in"):
        learner.predict(tmp_path)
    with pytest.raises(DataError, match="floating-point pixels have no known range"):
        learner.predict(Image.new("F", (9, 9)))


def test_a_picture_says_the_same_in_any_batch(learner):
    x, _ = pictures(40)
    together, alone = learner.embed(x), np.concatenate([learner.embed(pixels) for pixels in x])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6 * together.max())
    together = [each.probability for each in learner.predict(x)]
    alone = [learner.predict(pixels).probability for pixels in x]
    np.testing.assert_allclose(together, alone, rtol=1e-4)  # random weights: large scores


def test_a_picture_that_cannot_be_used_is_named_or_left_out(learner, tmp_path):
    x, _ = pictures(20)
    images = [*x]
    images[3], images[17] = b"no picture", tmp_path / "gone.png"
    with pytest.raises(DataError, match="not a picture of a known format"):
        learner.predict(images)
    skipped = []
    found = list(answering.predictions(learner, images, skip=lambda *what: skipped.append(what)))
    assert len(found) == 18
    assert [(name, type(why)) for name, why in skipped] == [
        ("bytes", DataError),
        (str(tmp_path / "gone.png"), FileNotFoundError),
    ]


def test_predictions_come_before_all_pictures_are_read(learner):
    x, _ = pictures()
    images = [x[0]] * 200 + [b"no picture"]
    assert next(iter(answering.predictions(learner, images))).file == "array"


def test_embedding_is_the_mean_of_the_features(learner):
    x, _ = pictures()
    found = learner.embed(list(x[:5]))
    assert found.shape == (5, 64) and found.dtype == np.float32
    learner.model.eval()
    with ft.no_grad():
        maps = learner.model.features(learner.input(x[:5])).data
    np.testing.assert_allclose(found, maps.mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)
    assert learner.embed(x[0]).shape == (1, 64)
    assert learner.embed([]).shape == (0, 64)


# --------------------------------------------------------------------- the network that is kept


def test_the_network_is_folded_once():
    learner = small_learner()
    x, _ = pictures()
    learner.predict(x[0])
    kept = learner.answers.kept[1]
    learner.predict(x[:3])
    learner.evaluate()
    assert learner.answers.kept[1] is kept


def doubled(learner: ft.Learner) -> None:
    learner.model.load_state_dict({n: 2 * a for n, a in learner.model.state_dict().items()})


def trained(learner: ft.Learner) -> None:
    learner.train_step(next(learner.data.train_batches(0, learner.preprocess)), "by hand")


def other_statistics(learner: ft.Learner) -> None:
    norm = learner.model.bn1
    norm.running_mean = norm.running_mean + 1


def other_head(learner: ft.Learner) -> None:
    learner.model.head = small_learner(seed=9).model.head


def swapped_filters(learner: ft.Learner) -> None:
    weight = getattr(learner.model.layer3, "0").conv2.weight.data
    weight[[0, 1]] = weight[[1, 0]]


def one_bit(learner: ft.Learner) -> None:
    learner.model.layer1.__dict__["0"].conv1.weight.data.view(np.uint32)[0, 0, 0, 0] ^= 1 << 20


def negated(learner: ft.Learner) -> None:
    learner.model.layer2.__dict__["1"].conv1.weight.data[...] *= -1


def epsilon(learner: ft.Learner) -> None:
    learner.model.bn1.eps = 0.5


CHANGES = [
    doubled,
    trained,
    other_statistics,
    other_head,
    swapped_filters,
    one_bit,
    negated,
    epsilon,
]


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_of_the_network_goes_unnoticed(change):
    learner = small_learner()
    learner.unfreeze()
    x, _ = pictures()
    before = learner.predict(x[0]).probabilities
    change(learner)
    found = learner.predict(x[0]).probabilities
    assert not np.array_equal(found, before)
    learner.answers.forget()
    np.testing.assert_array_equal(found, learner.predict(x[0]).probabilities)


def test_the_network_is_not_kept_while_it_trains():
    learner = small_learner()
    learner.predict(pictures()[0][0])
    trained(learner)
    assert learner.answers.kept is None


def test_a_copy_of_a_learner_answers_by_itself():
    learner = small_learner()
    x, _ = pictures()
    expected = learner.predict(x[0]).probabilities
    other = copy.deepcopy(learner)
    assert other.answers is not learner.answers
    np.testing.assert_array_equal(other.predict(x[0]).probabilities, expected)


# --------------------------------------------------------------------------------- many at a time


def counted(monkeypatch, learner: ft.Learner) -> list[int]:
    """How many pictures each batch has, from now on."""
    sizes, prepared = [], learner.input
    monkeypatch.setattr(
        learner, "input", lambda images: (sizes.append(len(images)), prepared(images))[1]
    )
    return sizes


def test_requests_that_wait_are_computed_together(monkeypatch):
    learner = small_learner()
    x, _ = pictures(20)
    alone = [learner.predict(pixels).probabilities for pixels in x]
    sizes = counted(monkeypatch, learner)
    service, found = learner.answers, {}
    service.computing = -1  # somebody computes, for as long as we like
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: learner.predict(x[i])}))
        for i in range(20)
    ]
    for thread in threads:
        thread.start()
    while len(service.waiting) < 20:
        pass
    service.end(-1)
    for thread in threads:
        thread.join()
    assert sizes == [16, 4]
    for i in range(20):
        np.testing.assert_allclose(found[i].probabilities, alone[i], atol=1e-5)


def test_an_error_reaches_everybody_and_ends_nothing(monkeypatch):
    learner = small_learner()
    x, _ = pictures()
    expected = learner.predict(x[0]).probabilities
    with monkeypatch.context() as patch:
        patch.setattr(learner, "input", lambda images: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            learner.predict(x[0])
    np.testing.assert_array_equal(learner.predict(x[0]).probabilities, expected)


def test_an_interrupt_is_for_one_thread_alone(monkeypatch):
    learner = small_learner()
    x, _ = pictures()
    request = answering.Request(x[:1], ft.backends.of(x))
    learner.answers.waiting.append(request)
    with monkeypatch.context() as patch:

        def stop(images):
            raise KeyboardInterrupt

        patch.setattr(learner, "input", stop)
        with pytest.raises(KeyboardInterrupt):
            learner.predict(x[1])
    assert learner.answers.waiting == [request] and not learner.answers.computing
    learner.predict(x[2])
    assert request.is_done


@pytest.mark.skipif(os.name != "posix", reason="no such signals there")
def test_a_signal_handler_may_ask_too(monkeypatch):
    learner = small_learner()
    x, _ = pictures()
    expected = learner.predict(x[1]).probabilities
    inside, prepared = [], learner.input

    def interrupted(images):
        if not inside:
            inside.append(None)
            signal.raise_signal(signal.SIGUSR1)
        return prepared(images)

    monkeypatch.setattr(learner, "input", interrupted)
    before = signal.signal(signal.SIGUSR1, lambda *_: inside.append(learner.predict(x[1])))
    try:
        learner.predict(x[0])
    finally:
        signal.signal(signal.SIGUSR1, before)
    np.testing.assert_array_equal(inside[1].probabilities, expected)


def test_a_dropout_that_counts_on_changes_no_answer():
    learner = small_learner()
    fold = learner.answers.network(learner)
    for _, module in learner.model.named_modules():
        if isinstance(module, Dropout):
            module.step += 1
    assert learner.answers.network(learner) is fold
    assert small_data().n_train == 24
