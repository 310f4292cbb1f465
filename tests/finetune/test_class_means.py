"""The recipe means-and-mirror: a linear head that starts from the class means of the features, and
answers that are means over a picture and its mirror image.
"""

from __future__ import annotations

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import bits, pictures, small_data, small_learner
from tinyft.errors import DataError
from tinyft.finetune.build import RECIPES
from tinyft.finetune.class_means import mean_weights


def clusters(per_class: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features around three directions, and their labels."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    return np.eye(3, 12)[labels] * 5 + draw.normal(0, 1, (len(labels), 12)), labels


@pytest.mark.parametrize("per_class", [1, 2, 20])
def test_new_features_are_told_apart(per_class):
    weight = mean_weights(*clusters(per_class))
    features, labels = clusters(50, seed=1)
    assert ((features @ weight.T).argmax(1) == labels).mean() > 0.9


def test_few_pictures_make_no_sure_head():
    """Judged with the mean that they are part of, three pictures of noise would look certain."""
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 3)
    noise = draw.normal(0, 1, (12, 300))
    logits = draw.normal(0, 1, (100, 300)) @ mean_weights(noise, labels).T
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert shares.max(1).mean() < 0.6


def test_the_head_knows_the_colours_before_any_step():
    options = {"head": "linear", "head_init": "means"}
    learner, random = small_learner(**options), small_learner(head="linear")
    assert learner.evaluate().accuracy > 0.8 > random.evaluate().accuracy
    assert bits(learner) == bits(small_learner(**options))
    assert "head: linear, from the class means of the features" in str(learner.plan(1))


@pytest.mark.slow
def test_a_run_from_class_means_can_be_resumed(tmp_path):
    from tinyft.finetune.run.resume import recreate

    learner = small_learner(head="linear", head_init="means")
    begun = bits(learner)
    learner.fine_tune(1, out=tmp_path / "run")
    assert bits(recreate(tmp_path / "run", small_data(), last=0).learner) == begun


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"head_init": "mean"}, ValueError, "head_init must be 'random' or 'means'; got 'mean'"),
        ({"head_init": "means"}, ValueError, "is for head='linear': ask for both"),
        ({"head_init": "means", "head": "fastai"}, ValueError, "is for head='linear'"),
    ],
)
def test_what_cannot_start_from_means(options, error, words):
    with pytest.raises(error, match=words):
        small_learner(**options)


def test_a_class_without_pictures_has_no_mean():
    blank = np.zeros((4, 24, 24, 3), np.uint8)
    pair = blank, np.array([0, 0, 2, 2])
    data = ft.ImageArrays(pair, pair, classes=list("abc"))
    with pytest.raises(DataError, match="head_init='means' needs training pictures of b; add some"):
        small_learner(data, head="linear", head_init="means")


# ------------------------------------------------------------------------------- the mirror image


def mirrored_learner(**options) -> ft.Learner:
    learner = small_learner(**{**RECIPES["means-and-mirror"], **options})
    learner.fit_one_cycle(1, progress=False)
    return learner


def test_an_answer_is_the_mean_of_the_logits_of_both_pictures():
    learner = mirrored_learner()
    x, _ = pictures()
    found = [p.probabilities for p in learner.predict([*x[:9]])]
    learner.mirrored = False
    alone, turned = (
        np.log([p.probabilities for p in learner.predict([*each])])
        for each in (x[:9], x[:9, :, ::-1])
    )
    assert np.abs(alone - turned).max() > 1e-3
    shares = np.exp((alone + turned) / 2)
    np.testing.assert_allclose(found, shares / shares.sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("bn", ["fastai", "frozen"])  # of which one keeps features
def test_validation_judges_what_prediction_says(bn):
    data = small_data(augment=None)
    learner = small_learner(data, **RECIPES["means-and-mirror"], bn=bn)
    found = learner.fine_tune(1, freeze_epochs=2, progress=False)[-1]
    shares = np.array([p.probabilities for p in learner.predict([*pictures()[0][:9]])])
    loss = -np.log(shares[np.arange(9), data.labels["valid"]]).mean()
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.loss == pytest.approx(learner.evaluate().loss, rel=1e-6)


@pytest.mark.slow
def test_a_saved_learner_goes_on_looking_into_the_mirror(tmp_path):
    learner = mirrored_learner()
    learner.save(tmp_path / "learner.h5")
    x, _ = pictures()
    for options in ({}, {"data": small_data()}):
        again = ft.load_learner(tmp_path / "learner.h5", **options)
        assert again.mirrored
        expected, found = learner.predict(x[0]), again.predict(x[0])
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)


def test_turned_on_or_off_the_next_answer_follows():
    learner = mirrored_learner()
    x, _ = pictures()
    before = learner.predict(x[0]).probabilities
    learner.mirrored = False
    assert not np.array_equal(learner.predict(x[0]).probabilities, before)
    learner.mirrored = True
    np.testing.assert_array_equal(learner.predict(x[0]).probabilities, before)


@pytest.mark.slow
def test_the_plan_says_so_and_a_run_of_it_can_be_made_again(tmp_path):
    from tinyft.finetune.run.resume import recreate
    from tinyft.inspection.comparison.snapshots import before_step

    learner = small_learner(**RECIPES["means-and-mirror"])
    assert "answers: means over each picture and its mirror image" in str(learner.plan(1))
    learner.fine_tune(1, out=tmp_path / "run", progress=False)
    again = recreate(tmp_path / "run", small_data(), last=0).learner
    assert again.mirrored
    assert again.evaluate() == small_learner(**RECIPES["means-and-mirror"]).evaluate()
    start = before_step(tmp_path / "run", 0)  # as a report asks for it, without any picture
    weight = again.model.head.linear.weight.data
    np.testing.assert_array_equal(start.arrays["head.linear.weight"], weight)


def test_a_head_that_is_not_linear_cannot_be_mirrored():
    with pytest.raises(ValueError, match="mirrored=True is for a linear head, which makes of"):
        small_learner(mirrored=True)
