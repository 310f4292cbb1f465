"""The learning-rate finder: fastai's rules on its own curves, and that it leaves no trace."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tests.finetune.conftest import bits, small_learner
from tinyft.errors import RunError
from tinyft.finetune.optim import SGD
from tinyft.finetune.run import state as learner_state
from tinyft.finetune.trials import suggest


def test_rules_on_a_curve_given_by_formula(golden):
    x = np.linspace(0, 1, 85)
    lr = 1e-6 * 1e6**x
    loss = 2 - 1.2 / (1 + np.exp(-25 * (x - 0.55))) + 120 * np.maximum(0, x - 0.85) ** 2
    loss += 0.02 * np.sin(40 * x)
    found = suggest(lr.astype(np.float32), loss.astype(np.float32))
    expected = golden["lr_find"]["rules_on_curve"]
    assert {rule: suggestion.lr for rule, suggestion in found.items()} == expected
    assert all(suggestion.working for suggestion in found.values())


def test_rules_on_a_recorded_curve(golden):
    recorded = golden["lr_find"]
    kept = slice(10, -5)
    lrs = np.array(recorded["recorded_lrs"], np.float32)[kept]
    losses = np.array(recorded["recorded_smooth_losses"], np.float32)[kept]
    found = suggest(lrs, losses)
    assert {rule: s.lr for rule, s in found.items()} == recorded["suggestions"]


def test_slide_says_if_it_slid_off_the_curve():
    rates, steeper = np.logspace(-6, 0, 30), -0.02 * np.arange(30.0) ** 2
    assert suggest(rates, steeper)["slide"].working.endswith("the first rate of the curve")
    assert "becomes even here" in suggest(rates, np.linspace(2, 1.999, 30))["slide"].working


@pytest.mark.slow
def test_the_tried_rates_are_fastais(golden):
    found = small_learner().lr_find()
    recorded = golden["lr_find"]["recorded_lrs"]
    n = min(len(recorded), len(found.lrs))
    assert found.lrs[:n].tolist() == recorded[:n]
    assert len(found.losses) == len(found.smooth_losses) == len(found.lrs)


@pytest.mark.slow
@pytest.mark.parametrize("bn", ["fastai", "frozen"])
def test_everything_is_restored_bit_for_bit(bn):
    learner = small_learner(bn=bn)
    plan = learner.plan(2)
    steps = learner.steps(plan, norms=True)
    for _ in range(5):  # in the middle of the second phase: there is optimizer state
        next(steps)
    untouched = small_learner(bn=bn)
    other = untouched.steps(untouched.plan(2))
    for _ in range(5):
        next(other)
    described = str(learner.describe())
    learner.lr_find(num_it=20)
    assert str(learner.describe()) == described
    assert bits(learner) == bits(untouched)
    assert learner.step == untouched.step and learner.smooth == untouched.smooth
    assert list(map(lambda r: r.loss, steps)) == [r.loss for r in other]
    assert bits(learner) == bits(untouched)


@pytest.mark.slow
def test_the_network_is_left_in_the_mode_that_it_was_in():
    learner = small_learner()
    learner.fine_tune(0)
    learner.model.eval()
    learner.model.layer1.train()
    modes = {name: module.training for name, module in learner.model.named_modules()}
    masks = [dropout.step for dropout in learner.dropouts]
    learner.lr_find(num_it=20)
    assert modes == {name: module.training for name, module in learner.model.named_modules()}
    assert masks == [dropout.step for dropout in learner.dropouts]


class Sluggish(SGD):
    """An optimizer of the caller's own, which remembers a number for each row."""

    def update(self, name, parameter, group, weight_decay):
        state = self.state.setdefault(
            name, {"seen": np.zeros((len(parameter.data), 1), np.float64)}
        )
        state["seen"] += 1
        super().update(name, parameter, group, weight_decay)


@pytest.mark.slow
def test_state_of_another_shape_and_type_is_restored_too():
    learner = small_learner(optimizer=Sluggish)
    learner.fine_tune(0)
    before = {name: state["seen"].copy() for name, state in learner.optimizer.state.items()}
    learner.lr_find(num_it=20)
    assert before.keys() == learner.optimizer.state.keys()
    for name, state in learner.optimizer.state.items():
        assert state["seen"].dtype == np.float64
        np.testing.assert_array_equal(state["seen"], before[name])


def test_the_longest_fall_begins_with_a_point_of_the_curve():
    found = suggest(np.arange(1, 7, dtype=np.float32), np.arange(6, 0, -1, dtype=np.float32))
    assert "from 1.00e+00 to 6.00e+00; this lies halfway" in found["valley"].working


def test_valley_says_if_there_is_no_fall():
    rates = np.logspace(-6, 0, 5)
    assert "falls nowhere: the first rate" in suggest(rates, np.arange(5.0))["valley"].working
    assert "too short a curve" in suggest(rates[:2], np.array([2.0, 1.0]))["valley"].working


@pytest.mark.slow
@pytest.mark.parametrize(("spoilt", "lost"), [(np.nan, 0), (np.inf, 4), (None, 5)])
def test_the_end_of_the_curve_is_cut_where_fastai_cuts_it(spoilt, lost, monkeypatch):
    """It leaves out five points. After a NaN it goes on, so that all five are NaN; it stops at an
    infinite loss, which is one of the five.
    """
    seen, learner = [], small_learner()
    monkeypatch.setattr(
        "tinyft.finetune.trials.suggest", lambda lrs, losses: seen.append(lrs) or {}
    )
    compute = learner.loss

    def loss(logits, labels):
        right = compute(logits, labels)
        return right if spoilt is None or learner.step < 22 else right * np.float32(spoilt)

    learner.loss = loss
    found = learner.lr_find(num_it=30, end_lr=1e-3, stop_div=False)
    assert len(found.lrs) == (30 if spoilt is None else 22)
    np.testing.assert_array_equal(seen[0], found.lrs.astype(np.float32)[3 : len(found.lrs) - lost])


def test_no_step_at_all_is_refused():
    with pytest.raises(ValueError, match="num_it must be a whole number of at least 1; got 0"):
        small_learner().lr_find(num_it=0)
    with pytest.raises(ValueError, match=r"got 20\.0"):
        small_learner().lr_find(num_it=20.0)


def test_a_second_ctrl_c_does_not_leave_the_learner_between(monkeypatch):
    learner = small_learner()
    before, step, restore = bits(learner), learner.step, learner_state.restore

    def interrupted(learner, *saved):
        monkeypatch.setattr(learner_state, "restore", restore)
        raise KeyboardInterrupt

    monkeypatch.setattr(learner_state, "restore", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learner.lr_find(num_it=10)
    assert (bits(learner), learner.step) == (before, step)


@pytest.mark.parametrize(("start_lr", "end_lr"), [(0, 10), (1, 1e-3), (1e-7, np.inf), (np.nan, 1)])
def test_rates_that_do_not_rise_from_above_zero_are_refused(start_lr, end_lr):
    with pytest.raises(ValueError, match="expected 0 < start_lr < end_lr; got"):
        small_learner().lr_find(start_lr=start_lr, end_lr=end_lr)


def test_a_curve_without_points_says_so():
    with pytest.raises(RunError, match="only 0 usable points"):
        suggest(np.array([1e-3], np.float32), np.array([np.nan], np.float32))


def test_a_curve_that_explodes_within_five_steps_suggests_nothing(monkeypatch):
    learner = small_learner()
    records = iter([SimpleNamespace(loss=loss, smooth_loss=loss) for loss in (1.0, 0.9, 0.8, 9.0)])
    monkeypatch.setattr(learner, "train_step", lambda *_: next(records))
    with pytest.raises(RunError, match="only 0 usable points"):
        learner.lr_find(num_it=10)


def test_it_stops_once_the_smoothed_loss_is_over_four_times_the_best(monkeypatch):
    learner = small_learner()
    for after, points in (([3.9, 4.0, 4.1, 9.0], 15), ([4.5, 9.0], 13)):
        records = iter(
            [SimpleNamespace(loss=loss, smooth_loss=loss) for loss in [1.0] * 12 + after]
        )
        monkeypatch.setattr(learner, "train_step", lambda *_, left=records: next(left))
        assert len(learner.lr_find(num_it=20).lrs) == points
