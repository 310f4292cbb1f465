"""What a network learned: each number against one made by hand or found in a book."""

import numpy as np
import pytest

from tests.finetune.conftest import bits, small_data, small_learner
from tinyft.errors import DataError
from tinyft.finetune import Evaluation
from tinyft.inspection.report.learned import Judgements, judge_pictures, wilson

# six pictures: a a a b b c, called a a b b c c
PROBABILITIES = np.array(
    [
        [0.9, 0.05, 0.05],
        [0.5, 0.3, 0.2],
        [0.1, 0.8, 0.1],
        [0.2, 0.7, 0.1],
        [0.0, 0.01, 0.99],
        [0.3, 0.3, 0.4],
    ]
)
SAID = Evaluation(6, 4 / 6, 0.0)
JUDGED = Judgements(
    ["a", "b", "c"],
    [f"{i}.jpg" for i in range(6)],
    np.array([0, 0, 0, 1, 1, 2]),
    PROBABILITIES,
    SAID,
)


def test_confusion_has_the_true_class_in_its_rows():
    assert JUDGED.confusion().tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert JUDGED.most_confused() == [("a", "b", 1), ("b", "c", 1)]
    assert JUDGED.most_confused(1) == [("a", "b", 1)]
    assert JUDGED.accuracy == pytest.approx(4 / 6)


def test_precision_divides_by_what_was_called_and_recall_by_what_was_shown():
    a, b, c = JUDGED.per_class()
    assert (a.precision, a.recall) == (1.0, pytest.approx(2 / 3))
    assert (b.precision, b.recall) == (0.5, 0.5)
    assert (c.precision, c.recall) == (0.5, 1.0)
    assert (a.shown, a.called, a.right) == (3, 2, 2)


def test_a_class_without_pictures_has_no_share():
    probabilities = np.array([[1.0, 0.0], [1.0, 0.0]])
    alone = Judgements(["a", "b"], ["x", "y"], np.array([0, 0]), probabilities, SAID)
    score = alone.per_class()[1]
    assert score.precision is None and score.recall is None
    assert score.recall_interval == (0.0, 1.0)
    assert "-" in str(alone).splitlines()[-1]


def test_top_losses_are_the_least_probable_truths():
    assert JUDGED.losses[1] == pytest.approx(-np.log(0.5))
    assert JUDGED.top_losses(2).tolist() == [4, 2]  # the truth had 0.01, then 0.1


def test_a_probability_of_zero_has_a_finite_loss():
    certain = Judgements(["a", "b"], ["x"], np.array([1]), np.array([[1.0, 0.0]]), SAID)
    assert np.isfinite(certain.losses).all() and certain.losses[0] > 700


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (10, 10, 0.7225, 1.0),  # Brown, Cai, DasGupta (2001) recommend it for small n
        (0, 10, 0.0, 0.2775),
        (8, 10, 0.4902, 0.9433),  # statsmodels.stats.proportion.proportion_confint
        (500, 1000, 0.4691, 0.5309),
    ],
)
def test_wilson_intervals(successes, trials, low, high):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_calibration_by_hand():
    found = JUDGED.calibration(bins=5)
    # confidences 0.9 0.5 0.8 0.7 0.99 0.4, right 1 1 0 1 0 1: in bins of 0.2, upper edges inside
    assert found.counts.tolist() == [0, 1, 1, 2, 2]
    assert np.isnan(found.accuracy[0])
    assert found.accuracy[1:].tolist() == [1, 1, 0.5, 0.5]
    assert found.confidence[1:] == pytest.approx([0.4, 0.5, 0.75, 0.945])
    expected = (0.6 + 0.5 + 2 * 0.25 + 2 * 0.445) / 6
    assert found.error == pytest.approx(expected)


def test_a_confidence_of_one_has_a_bin():
    sure = Judgements(["a", "b"], ["x"], np.array([0]), np.array([[1.0, 0.0]]), SAID)
    assert sure.calibration(10).counts.tolist() == [0] * 9 + [1]
    assert sure.calibration(10).error == 0


def test_the_text_shows_the_worst_class_first():
    lines = str(JUDGED).splitlines()
    assert lines[0].startswith("4 of 6 pictures right: 30.0 % to 90.3 %")
    assert [line.split()[0] for line in lines[2:6]] == ["class", "b", "a", "c"]
    assert "b taken for c: 1" in lines


def test_judging_agrees_with_evaluating_and_changes_nothing():
    learner = small_learner()
    before = bits(learner)
    judged = judge_pictures(learner)
    evaluation = learner.evaluate()
    assert judged.accuracy == evaluation.accuracy
    assert judged.losses.mean() == pytest.approx(evaluation.loss, rel=1e-5)
    assert judged.probabilities.shape == (9, 3) and len(judged.files) == 9
    assert bits(learner) == before and learner.model.training


def test_other_classes_and_no_pictures_are_refused():
    learner = small_learner()
    with pytest.raises(DataError, match="open them with classes=learner"):
        judge_pictures(learner, small_data(classes=["x", "y", "z"]))
    learner.data = None
    with pytest.raises(DataError, match="no pictures to judge"):
        judge_pictures(learner)
