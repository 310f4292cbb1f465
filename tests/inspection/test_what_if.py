"""Steps that were not made: each changes one thing, and nothing is left of it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.finetune.conftest import small_data, small_learner
from tests.inspection.conftest import everything
from tests.inspection.moments import SIDE, linear_moment, moment_of
from tinyft.inspection.step.moment import Moment
from tinyft.inspection.step.what_if import PLANNED, usual_changes, what_if
from tinyft.inspection.step.why import explain_step


@pytest.mark.slow
def test_plain_gradient_descent_is_linear_in_the_rate():
    found = what_if(linear_moment())
    planned = found[PLANNED]
    for name, factor in (("all rates x 10", 10), ("all rates / 10", 0.1)):
        assert found[name].predicted == pytest.approx(factor * planned.predicted, rel=1e-9)
        assert found[name].distance == pytest.approx(factor * planned.distance, rel=1e-9)
        assert found[name].training[0] == planned.training[0]


@pytest.mark.slow
def test_the_planned_step_is_the_one_that_the_run_makes():
    moment = moment_of(4)
    planned, explained = what_if(moment, {})[PLANNED], explain_step(moment)
    assert planned.predicted == explained.predicted
    assert planned.training[1] - planned.training[0] == explained.in_training
    assert planned.evaluation[1] - planned.evaluation[0] == explained.in_evaluation
    assert planned.distances == {group.name: group.distance for group in explained.groups}


@pytest.mark.slow
def test_after_an_error_in_a_change_everything_is_put_back_too():
    moment = moment_of(4)
    before = everything(moment.learner)

    def spoil(learner):
        learner.groups[0].lr = 9.0
        raise KeyError("changed its mind")

    with pytest.raises(KeyError):
        what_if(moment, {"spoilt": spoil})
    assert everything(moment.learner) == before


@pytest.mark.slow
def test_each_change_does_what_its_name_says():
    moment = moment_of(4)
    found = what_if(moment)
    planned = found[PLANNED]
    assert [o.name for o in found.outcomes] == [
        PLANNED, "all rates x 10", "all rates / 10", "the head's rate for all",
        "batch norms frozen", "no weight decay", "optimizer without memory", "body frozen",
    ]  # fmt: skip
    early, _, head = planned.distances
    one_rate = found["the head's rate for all"].distances
    assert one_rate[head] == planned.distances[head]
    # Adam's update is proportional to the rate, and the rates are 100 and 10 apart
    rates = [group.lr for group in moment.learner.groups]
    assert one_rate[early] / planned.distances[early] == pytest.approx(
        rates[2] / rates[0], rel=0.01
    )
    assert found["no weight decay"].distance != planned.distance
    assert found["no weight decay"].distance == pytest.approx(planned.distance, rel=0.05)
    assert found["optimizer without memory"].distance > planned.distance
    # by preset fastai, scale and shift of a frozen body train
    assert 0 < found["body frozen"].distances[early] < planned.distances[early]
    assert found["body frozen"].distances[head] == planned.distances[head]
    # each begins with the same loss in evaluation, frozen batch norms with another in training
    assert len({o.evaluation[0] for o in found.outcomes}) == 1
    assert found["batch norms frozen"].training[0] != planned.training[0]


@pytest.mark.slow
def test_in_the_first_phase_the_body_can_be_set_free():
    moment = moment_of(1, head="linear", bn="torch")
    found = what_if(moment)
    early, *_ = found[PLANNED].distances
    assert found[PLANNED].distances[early] == 0 < found["nothing frozen"].distances[early]
    assert "body frozen" not in usual_changes(moment)


def test_what_would_change_nothing_is_left_out():
    # no decay, frozen batch norms, no memory, and only the head trains
    assert set(usual_changes(linear_moment())) == {
        "all rates x 10",
        "all rates / 10",
        "nothing frozen",
    }
    assert "the head's rate for all" in usual_changes(moment_of(0))  # its body's norms train


@pytest.mark.slow
def test_a_cached_body_can_be_set_free_too():
    """Its features are kept while it is frozen; a step that trains it must not use them."""
    learner = small_learner(small_data(size=SIDE, augment=None), bn="frozen")
    moment = Moment.of(learner, learner.plan(1), 0)
    assert moment.plan.cached_bytes[0] > 0
    found = what_if(moment)
    early, *_ = found[PLANNED].distances
    assert found["nothing frozen"].distances[early] > found[PLANNED].distances[early] == 0
    assert found[PLANNED].training[0] == pytest.approx(moment.take().loss, abs=1e-6)


@pytest.mark.slow
def test_a_change_of_ones_own():
    def halve(learner):
        for group in learner.groups:
            group.lr /= 2

    found = what_if(linear_moment(), {"half": halve})
    assert found["half"].distance == pytest.approx(found[PLANNED].distance / 2, rel=1e-9)


@pytest.mark.slow
def test_a_step_that_diverges_is_shown_as_such():
    def far_too_fast(learner):
        for group in learner.groups:
            group.lr = 1e200

    found = what_if(moment_of(0, plan={"weight_decay": 0.0}), {"absurd": far_too_fast})
    assert not found["absurd"].evaluation[1] < 1e50  # NaN, too
    assert "absurd" in str(found)


@pytest.mark.slow
def test_only_the_steps_that_cannot_be_made_are_shown_as_nan():
    def spoil(learner):
        learner.model.state_dict()["conv1.weight"][...] = np.nan

    moment = moment_of(0)
    before = everything(moment.learner)
    found = what_if(moment, {"spoilt": spoil})
    with pytest.raises(KeyError, match="'spoiled'; there are as planned, spoilt"):
        found["spoiled"]
    assert np.isfinite(found[PLANNED].training).all()
    spoilt = found["spoilt"]
    assert np.isnan([*spoilt.training, spoilt.predicted, *spoilt.distances.values()]).all()
    assert "nan" in next(line for line in str(found).splitlines() if line.startswith("spoilt"))
    assert everything(moment.learner) == before


@pytest.mark.slow
def test_the_text_is_a_table(run_folder, data):
    text = str(what_if(Moment.of_run(run_folder, 6, data)))
    assert text.startswith("what if step 6, in epoch 3 ")
    rows = {line[:24].strip() for line in text.splitlines()[4:]}
    assert {PLANNED, "all rates x 10", "no weight decay", "body frozen"} <= rows
    assert max(map(len, text.splitlines())) <= 115
