"""A trained head is kept where its classes are the data's, and its end is never silent."""

from __future__ import annotations

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import bits, pictures, small_data, small_learner
from tests.finetune.test_run import StopAfter
from tinyft.errors import DataError, WeightsError
from tinyft.finetune.run.folder import Run
from tinyft.finetune.run.resume import resume
from tinyft.inspection import explain
from tinyft.nn.head import LinearHead
from tinyft.weights import Weights

OTHERS = ["cyan", "lilac", "red"]


@pytest.fixture(scope="module", params=["fastai", "linear"])
def trained(request, tmp_path_factory) -> tuple[ft.Learner, str]:
    """A learner after an epoch, and its file."""
    learner = small_learner(head=request.param, optimizer="sgd", weight_decay=0.1)
    learner.fine_tune(1, freeze_epochs=0)
    path = tmp_path_factory.mktemp("trained") / "learner.h5"
    learner.save(path)
    return learner, str(path)


def head_line(learner: ft.Learner) -> str:
    text = " ".join(str(learner.plan(1)).split())
    return text[text.index("head: ") : text.index(" data: ")]


def test_a_head_for_the_same_classes_is_kept_and_said_to_be(trained):
    learner, path = trained
    again = ft.vision_learner(small_data(), weights=path)
    assert bits(again) == bits(learner)
    assert again.evaluate() == learner.evaluate()
    kind = learner.origin.head
    assert head_line(again) == f"head: {kind}, kept as the weights have it, 3 classes"
    assert "random weights, so its first gradients" not in " ".join(explain(again.plan(1)).split())


@pytest.mark.parametrize(
    ("data", "head", "why"),
    [
        ({"classes": OTHERS}, None, "it is for 3 other classes, blue, green, red"),
        ({}, "fastai", "another head was asked for"),
        ({}, "linear", "another head was asked for"),
        ({}, LinearHead(64, 3), "another head was asked for"),
    ],
)
def test_a_head_that_is_dropped_is_said_to_be(trained, data, head, why):
    learner, path = trained
    again = ft.vision_learner(small_data(**data), weights=path, head=head)
    of_body = {name: b for name, b in bits(learner).items() if not name.startswith("head.")}
    assert of_body.items() <= bits(again).items()
    line = head_line(again)
    assert f"the trained one of the weights is dropped: {why}" in line
    assert ("random" if head is None or isinstance(head, str) else "as given") in line
    other = [n for n in bits(again) if n.startswith("head.linear") and n.endswith("weight")][-1]
    assert bits(again)[other] != bits(learner).get(other)


@pytest.mark.parametrize("classes", [["red", "blue", "green"], ["azure", "blue", "green", "red"]])
def test_rows_of_a_kept_head_follow_their_classes(trained, classes):
    learner, path = trained
    again = ft.vision_learner(small_data(classes=classes), weights=path)
    picture = pictures()[0][:4]
    for before, now in zip(learner.predict(picture), again.predict(picture), strict=True):
        scores = dict(zip(classes, now.probabilities, strict=True))
        known = np.array([scores[name] for name in learner.classes])
        assert np.allclose(known / known.sum(), before.probabilities, atol=1e-6)
    new = ", with random rows for azure" if "azure" in classes else ""
    assert f"kept as the weights have it{new}, {len(classes)} classes" in head_line(again)
    assert ft.load_learner(path, data=small_data(classes=classes)).classes == classes


def test_a_kept_head_has_the_dropout_that_it_was_trained_with(tmp_path):
    small_learner(dropout=0.2).save(tmp_path / "learner.h5")

    def rates(**options):
        learner = ft.vision_learner(small_data(), weights=tmp_path / "learner.h5", **options)
        return [layer.probability for layer in learner.dropouts]

    assert rates() == [0.1, 0.2]
    assert rates(dropout=0.6) == [0.3, 0.6]
    loaded = ft.load_learner(tmp_path / "learner.h5")
    assert [layer.probability for layer in loaded.dropouts] == [0.1, 0.2]


def test_dropout_is_refused_for_a_kept_head_without_any(tmp_path):
    small_learner(head="linear").save(tmp_path / "learner.h5")
    with pytest.raises(ValueError, match=r"dropout=0.2 is for head='fastai', .* is 'linear'"):
        ft.vision_learner(small_data(), weights=tmp_path / "learner.h5", dropout=0.2)


def published(path, classes, count=3):
    arrays = {n: np.ascontiguousarray(a) for n, a in
              ft.cifar_resnet20(count, seed=1).state_dict().items()}  # fmt: skip
    preprocess = ft.weights.Preprocess.for_architecture("cifar_resnet20")
    ft.save_weights(path, Weights("cifar_resnet20", arrays, classes, preprocess))
    return arrays


def test_a_published_classifier_of_these_classes_is_kept(tmp_path):
    arrays = published(tmp_path / "weights.h5", ["blue", "green", "red"])
    learner = ft.vision_learner(small_data(), weights=tmp_path / "weights.h5")
    np.testing.assert_array_equal(learner.model.head.linear.weight.data, arrays["fc.weight"])
    np.testing.assert_array_equal(learner.model.head.linear.bias.data, arrays["fc.bias"])
    assert head_line(learner) == "head: linear, kept as the weights have it, 3 classes"


@pytest.mark.parametrize(
    ("classes", "why"),
    [(None, "the weights do not name its 3 classes"), (OTHERS, "it is for 3 other classes")],
)
def test_a_published_classifier_of_others_is_not(tmp_path, classes, why):
    published(tmp_path / "weights.h5", classes)
    learner = ft.vision_learner(small_data(), weights=tmp_path / "weights.h5")
    assert why in head_line(learner) and "fastai, random" in head_line(learner)


@pytest.mark.slow
def test_a_run_that_began_with_a_kept_head_is_resumed_to_the_same_bits(trained, tmp_path):
    _, path = trained
    whole, cut = (ft.vision_learner(small_data(), weights=path, seed=5) for _ in range(2))
    whole.fine_tune(1)
    run = Run.create(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        cut.execute(cut.plan(1), observers=[StopAfter(run, 4), run])
    learner, plan, run, start, notices = resume(tmp_path / "cut", small_data())
    assert notices == []
    learner.execute(plan, observers=[run], start=start)
    assert bits(learner) == bits(whole)


# ------------------------------------------------------------------------------- load_learner


@pytest.mark.slow
def test_a_loaded_learner_with_data_goes_on_with_its_head(trained, tmp_path):
    learner, path = trained
    loaded = ft.load_learner(path, data=small_data())
    assert bits(loaded) == bits(learner) and loaded.evaluate() == learner.evaluate()
    assert type(loaded.optimizer) is ft.SGD and loaded.weight_decay == 0.1
    assert not any(group.frozen for group in loaded.groups)
    assert "kept as the weights have it" in head_line(loaded)
    run = Run.create(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        loaded.execute(loaded.one_cycle_plan(1), observers=[StopAfter(run, 1), run])
    resumed, plan, run, start, _ = resume(tmp_path / "cut", small_data())
    resumed.execute(plan, observers=[run], start=start)
    whole = ft.load_learner(path, data=small_data())
    whole.fit_one_cycle(1)
    assert bits(resumed) == bits(whole)


def test_a_loaded_learner_without_data_says_how_it_gets_some(trained):
    with pytest.raises(DataError, match=r"train on: ft.load_learner\(FILE, data=...\)"):
        ft.load_learner(trained[1]).plan(1)


def test_a_loaded_learner_refuses_pictures_of_other_classes(trained):
    with pytest.raises(DataError, match=r"knows the classes blue, .* have cyan.* classes=\[\.\.\."):
        ft.load_learner(trained[1], data=small_data(classes=OTHERS))
    with pytest.raises(TypeError, match="expected pictures"):
        ft.load_learner(trained[1], data="photos/")


class Scaled(LinearHead):
    def forward(self, x):
        return super().forward(x) * 2.0


def test_a_head_and_an_optimizer_of_ones_own_are_asked_for(tmp_path):
    class Own(ft.SGD):
        pass

    learner = small_learner(head=Scaled(64, 3, seed=2), optimizer=Own)
    learner.save(tmp_path / "learner.h5")
    dropped = ft.vision_learner(small_data(), weights=tmp_path / "learner.h5")
    assert "a Module of its caller's own" in head_line(dropped)
    for options, words in (({}, "head of its own"), ({"head": Scaled(64, 3)}, "an optimizer of")):
        with pytest.raises(WeightsError, match=words):
            ft.load_learner(tmp_path / "learner.h5", data=small_data(), **options)
    loaded = ft.load_learner(
        tmp_path / "learner.h5", data=small_data(), head=Scaled(64, 3), optimizer=Own
    )
    assert bits(loaded) == bits(learner) and type(loaded.optimizer) is Own
    x, _ = pictures()
    found, expected = (each.predict(x[0]).probabilities for each in (loaded, learner))
    np.testing.assert_array_equal(found, expected)
