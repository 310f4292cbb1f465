"""Why a loss changed: steps whose answer is known, and parts that must add up."""

from __future__ import annotations

import numpy as np
import pytest

from tests.finetune.conftest import small_data
from tests.inspection.conftest import everything
from tests.inspection.moments import SIDE, linear_moment, moment_of
from tinyft.inspection.step.moment import MODES, Moment
from tinyft.inspection.step.what_if import what_if
from tinyft.inspection.step.why import STATES, explain_step, jump, signed


def head_gradient(moment):
    """The gradient of the mean cross-entropy of a linear head, by hand."""
    learner, batch = moment.learner, moment.batch
    learner.model.eval()
    features = learner.model.features(learner.input(batch.images)).data.mean(axis=(1, 2))
    state = learner.model.state_dict()
    logits = features @ state["head.linear.weight"].T + state["head.linear.bias"]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    dlogits = (shares - np.eye(3)[batch.labels]) / len(batch.labels)
    return dlogits.T @ features, dlogits.sum(axis=0)


# ------------------------------------------------------------------------------------ known answers


@pytest.mark.slow
def test_gradient_descent_predicts_minus_rate_times_the_squared_gradient():
    moment = linear_moment()
    weight, bias = head_gradient(moment)
    square = (weight**2).sum() + (bias**2).sum()
    body_early, body_late, head = explain_step(moment).groups
    assert head.predicted == pytest.approx(-head.lr * square, rel=1e-9)
    assert (body_early.predicted, body_late.predicted) == (0, 0)
    assert (body_early.alone, body_late.distance) == (0, 0) and body_early.frozen
    assert head.of_rate == pytest.approx(np.sqrt(square / (64 * 3 + 3)), rel=1e-9)


@pytest.mark.slow
def test_the_smaller_the_step_the_better_the_prediction():
    """The gap is the second order: a tenth of the step, a hundredth of the gap."""
    found = [explain_step(linear_moment(base_lr=rate)) for rate in (1e-3, 1e-4)]
    large, small = found
    assert small.in_training / small.predicted == pytest.approx(1, abs=1e-3)
    assert large.curvature / small.curvature == pytest.approx(100, rel=1e-2)
    assert large.curvature > 0  # the loss of a linear head is convex


@pytest.mark.slow
def test_without_dropout_and_batch_statistics_training_is_evaluation():
    found = explain_step(linear_moment())
    assert (found.dropout, found.batch_norm, found.statistics) == (0, 0, 0)
    assert found.in_evaluation == found.in_training < 0


@pytest.mark.slow
def test_frozen_batch_norms_leave_dropout_as_the_only_difference():
    """A fastai head has batch norms of its own, so only a head without them has no gap."""
    assert explain_step(moment_of(head="linear", bn="torch")).batch_norm != 0
    found = explain_step(moment_of(head="linear", bn="frozen"))
    assert found.batch_norm == found.statistics == 0
    assert explain_step(moment_of(dropout=0.0)).dropout == 0
    assert explain_step(moment_of(dropout=0.5)).dropout != 0


@pytest.mark.slow
def test_what_weight_decay_adds_to_the_prediction():
    moment = linear_moment(weight_decay=0.5)
    weight, bias = head_gradient(moment)
    head = explain_step(moment).groups[-1]
    pull = (moment.learner.model.state_dict()["head.linear.weight"] * weight).sum()
    assert head.by_decay == pytest.approx(-head.lr * 0.5 * pull, rel=1e-6)
    square = (weight**2).sum() + (bias**2).sum()
    assert head.predicted == pytest.approx(-head.lr * square + head.by_decay, rel=1e-9)


@pytest.mark.slow
def test_adams_first_step_moves_every_weight_by_about_its_rate():
    first = explain_step(moment_of(3)).groups  # the first of everything: its memory is new
    later = explain_step(moment_of(5)).groups
    assert all(0.7 < group.of_rate <= 1.0 for group in first)
    assert later[0].of_rate < first[0].of_rate


# -------------------------------------------------------------------------------- parts and wholes


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 3, 5])
def test_the_parts_add_up_and_agree_with_the_step_itself(step):
    moment = moment_of(step)
    found = explain_step(moment)
    parts = (found.predicted, found.curvature, found.dropout, found.batch_norm, found.statistics)
    assert sum(parts) == pytest.approx(found.in_evaluation, abs=1e-12)
    assert all(part != 0 for part in parts)
    for looks in (found.before, found.after):
        for mode in MODES:
            assert looks[mode].each.mean() == pytest.approx(looks[mode].loss, abs=1e-12)
    assert found.picture_changes.mean() == pytest.approx(found.in_training, abs=1e-12)
    assert found.before["training"].loss == pytest.approx(moment.take().loss, abs=1e-12)
    after = moment.look("evaluation")
    assert found.after["evaluation"].loss == after.loss


@pytest.mark.slow
def test_a_group_alone_is_the_whole_step_if_the_others_stand_still():
    found = explain_step(moment_of(head="linear", bn="frozen"))
    assert found.groups[-1].alone == pytest.approx(found.in_training, abs=1e-14)
    moment = moment_of(3)
    both = explain_step(moment)
    assert sum(group.alone for group in both.groups) != both.in_training  # they interact
    for i, group in enumerate(both.groups):  # the others stand still if their rate is 0

        def only(learner, i=i):
            for other in learner.groups[:i] + learner.groups[i + 1 :]:
                other.lr = 0.0

        before, after = what_if(moment, {"only": only})["only"].training
        assert after - before == group.alone < 0


@pytest.mark.slow
def test_a_step_that_moves_nothing_changes_nothing_though_dropout_is_random():
    """The same masks before and after, or the difference would be theirs."""
    moment = moment_of(3, plan={"base_lr": 0.0})
    found = explain_step(moment)
    assert (found.predicted, found.in_training) == (0, 0) and found.statistics != 0
    assert (found.picture_changes == 0).all()


@pytest.mark.slow
def test_looking_leaves_no_trace():
    moment = moment_of(3)
    before = everything(moment.learner)
    modules = [m.training for _, m in moment.learner.model.named_modules()]
    dropouts = [d.step for d in moment.learner.dropouts]
    moment.step = 7  # whose dropout masks are others
    for mode in MODES:
        moment.look(mode)
    assert everything(moment.learner) == before
    assert [m.training for _, m in moment.learner.model.named_modules()] == modules
    assert [d.step for d in moment.learner.dropouts] == dropouts
    with pytest.raises(ValueError, match="mode must be one of training, no dropout, evaluation"):
        moment.look("eval")


@pytest.mark.slow
@pytest.mark.parametrize("question", [explain_step, jump, what_if])
def test_everything_is_put_back_bit_for_bit(question):
    moment = moment_of(3)
    before, loss = everything(moment.learner), moment.take().loss
    moment.restore()
    question(moment)
    assert everything(moment.learner) == before
    assert moment.take().loss == loss


@pytest.mark.slow
def test_class_weights_and_label_smoothing_are_part_of_the_loss():
    moment = moment_of(label_smoothing=0.1, class_weights=np.array([1.0, 2.0, 5.0]))
    found = explain_step(moment)
    assert found.before["training"].loss == pytest.approx(moment.take().loss, abs=1e-12)


@pytest.mark.slow
def test_of_a_run_on_disk(run_folder, data):
    moment = Moment.of_run(run_folder, 5, data)
    found = explain_step(moment)
    assert found.before["training"].loss == pytest.approx(moment.take().loss, abs=1e-6)
    # computed in float64, from float32 logits
    assert float(np.float32(found.before["training"].loss)) != found.before["training"].loss
    assert found.names == [f"train[{i}]" for i in moment.batch.ids]
    text = str(found)
    assert text.startswith("why did the loss change in step 5, in epoch ")
    for line in ("predicted by the gradient", "+ curvature", "= in evaluation", "better"):
        assert f"\n{line}" in text
    better = [line for line in text.splitlines() if line.startswith("better ")]
    best = int(found.picture_changes.argmin())
    assert better[0].endswith(found.names[best]) and len(better) <= 3
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_neither_better_nor_worse():
    moment = moment_of(0, optimizer="sgd", plan={"base_lr": 1e300, "weight_decay": 0.0})
    text = str(explain_step(moment))
    assert "0 of 8 pictures got better, 0 worse; of 8 the loss is NaN or infinite now" in text


# -------------------------------------------------------------------------------------------- jumps


@pytest.mark.slow
def test_the_jump_after_unfreezing_is_split_into_its_causes():
    moment = moment_of(3)  # the first step of everything
    found = jump(moment)
    explained = explain_step(moment)
    training = found.parts(found.training)
    assert training["the switch of modes alone"] == 0  # tinyft switches no batch norm there
    whole = found.training["whole step"] - found.training["before"]
    assert sum(training.values()) == pytest.approx(whole, abs=1e-14)
    assert whole == pytest.approx(explained.in_training, abs=1e-14)
    assert training["the head's update"] == explained.groups[-1].alone
    evaluation = found.parts(found.evaluation)
    assert evaluation["the switch of modes alone"] != 0  # running statistics moved
    total = found.evaluation["whole step"] - found.evaluation["before"]
    assert total == pytest.approx(explained.in_evaluation, abs=1e-14)
    gap = found.training["before"] - found.evaluation["before"]
    assert found.batch_norm + found.dropout == pytest.approx(gap, abs=1e-14)
    assert found.batch_norm != 0 and found.dropout > 0
    dry = jump(moment_of(3, dropout=0.0))
    assert dry.dropout == 0 != dry.batch_norm


@pytest.mark.slow
def test_a_body_that_is_frozen_adds_nothing():
    found = jump(moment_of(0, bn="torch"))
    assert found.parts(found.training)["the body's update"] == 0
    assert found.parts(found.training)["the head's update"] < 0


@pytest.mark.slow
def test_with_frozen_batch_norms_and_a_linear_head_both_columns_agree():
    found = jump(moment_of(3, bn="frozen", head="linear", data=small_data(size=SIDE, augment=None)))
    assert found.training == found.evaluation and (found.batch_norm, found.dropout) == (0, 0)
    assert found.training["before"] == found.training["modes switched"]


@pytest.mark.slow
def test_the_loss_that_was_recorded_before_is_compared():
    moment = moment_of(3)
    assert jump(moment).previous == moment.learner.history[2].loss
    assert jump(moment, previous=0.5).previous == 0.5
    assert jump(moment_of(0)).previous is None
    text = str(jump(moment))
    assert "+ the switch of modes alone   0 " in text and "the step before recorded" in text
    assert list(jump(moment).training) != [] and set(jump(moment).training) == set(STATES)


def test_numbers_are_shown_with_their_sign():
    shown = [signed(value) for value in (0.0, -0.25, 1e-3, 3e-7, np.nan)]
    assert shown == [" 0", "-0.250000", "+0.001000", "+3.00e-07", " nan"]
