"""Any step of a run can be made again, to the bit, and undone."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from tests.finetune.conftest import small_data, small_learner
from tests.finetune.test_run import interrupted, other_data
from tests.inspection.conftest import everything
from tinyft.errors import RunError
from tinyft.finetune.run.resume import resume
from tinyft.inspection.comparison.diff import diff_run
from tinyft.inspection.step.moment import Moment


def metrics(run, step):
    with (run / "metrics.csv").open(newline="") as file:
        return next(row for row in csv.DictReader(file) if row["step"] == str(step))


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 2, 3, 4, 8])
def test_every_step_of_a_run_is_made_again_to_the_bit(run_folder, data, step):
    before = contents(run_folder)
    moment = Moment.of_run(run_folder, step, data)
    assert moment.step == moment.learner.step == step
    assert moment.phase.name == metrics(run_folder, step)["phase"]
    assert repr(moment).startswith(f"<Moment: before step {step}, in epoch ")
    record = moment.take()
    assert record.step == step
    assert repr(record.loss) == metrics(run_folder, step)["loss"]
    assert repr(record.smooth_loss) == metrics(run_folder, step)["smooth_loss"]
    assert contents(run_folder) == before  # nothing was written


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"bn": "frozen"}, {"optimizer": "sgd", "bn": "torch"}])
@pytest.mark.parametrize("step", [2, 7])
def test_a_moment_is_the_state_of_the_run_at_that_step(tmp_path, options, step):
    """Compared with a learner that made the steps itself: weights, optimizer, switches."""
    augment = {"augment": None} if options.get("bn") == "frozen" else {}  # features are cached
    whole = small_learner(small_data(**augment), **options)
    whole.fine_tune(2, out=tmp_path / "run")
    by_hand = small_learner(small_data(**augment), **options)
    plan = by_hand.plan(2)
    for record in by_hand.steps(plan):
        if record.step == step:
            break
    moment = Moment.of_run(tmp_path / "run", step, small_data(**augment))
    moment.take()
    moment.learner.history[:] = by_hand.history  # which a checkpoint does not hold
    moment.learner.epoch = by_hand.epoch  # counted up by the validation that ends an epoch
    assert everything(moment.learner) == everything(by_hand)


@pytest.mark.slow
def test_a_step_of_a_run_that_was_interrupted_and_resumed(tmp_path):
    interrupted(tmp_path / "run", 5)
    learner, plan, run, start, _ = resume(tmp_path / "run", small_data())
    learner.execute(plan, observers=[run], start=start)
    for step in (4, 5, 7):
        record = Moment.of_run(tmp_path / "run", step, small_data()).take()
        assert repr(record.loss) == metrics(tmp_path / "run", step)["loss"]


@pytest.mark.slow
def test_a_step_of_an_unfinished_run_and_the_one_that_would_come_next(tmp_path):
    interrupted(tmp_path / "cut", 5)
    whole = small_learner()
    whole.fine_tune(2)
    for step in (2, 4, 5):
        assert Moment.of_run(tmp_path / "cut", step, small_data()).take().loss == (
            whole.history[step].loss
        )


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 2, 3, 6])
def test_restore_puts_everything_back(step):
    learner = small_learner()
    plan = learner.plan(2, stale_gradients=step == 6)
    steps = learner.steps(plan)
    for _ in range(step):
        next(steps)
    moment = Moment.of(learner, plan, step)
    before = everything(learner)
    losses = set()
    for _ in range(2):
        losses.add(moment.take().loss)
        learner.unfreeze()
        learner.weight_decay = 7.0
        for norm in learner.batch_norms:
            norm.statistics, norm.updates = "running", False
        assert everything(learner) != before
        moment.restore()
        assert everything(learner) == before
    assert len(losses) == 1
    # and the loop goes on as if nobody had looked
    assert next(steps).loss in losses


@pytest.mark.slow
def test_a_learner_that_was_looked_at_ends_as_one_that_was_not():
    looked_at, alone = small_learner(), small_learner()
    alone.fine_tune(1)
    plan = looked_at.plan(1)
    for record in looked_at.steps(plan):
        if record.step + 1 < plan.steps:
            moment = Moment.of(looked_at, plan, record.step + 1)
            moment.take()
            moment.restore()
    alone.history, looked_at.history = alone.history[-1:], looked_at.history[-1:]
    assert everything(looked_at) == everything(alone)


@pytest.mark.slow
def test_the_steps_of_a_second_plan_are_counted_from_its_start():
    learner = small_learner()
    learner.fine_tune(1)
    plan = learner.plan(1)
    with pytest.raises(ValueError, match=r"has made 6 steps; before step 4 .* it has made 10"):
        Moment.of(learner, plan, 4)
    moment = Moment.of(learner, plan, 0)
    assert (moment.step, moment.step_in_phase) == (6, 0)
    next(learner.steps(plan))
    with pytest.raises(ValueError, match=r"has made 7 steps; before step 0 .* it has made 6"):
        Moment.of(learner, plan, 0)


@pytest.mark.slow
def test_a_run_of_a_learner_that_was_trained_before(tmp_path):
    learner = small_learner()
    learner.fine_tune(1, freeze_epochs=0)
    learner.fine_tune(1, out=tmp_path / "run")
    for step in (3, 5, 7):
        record = Moment.of_run(tmp_path / "run", step, small_data()).take()
        assert repr(record.loss) == metrics(tmp_path / "run", step)["loss"]
    with pytest.raises(RunError, match="has no step 2: its steps are 3 to 8, counted as in"):
        Moment.of_run(tmp_path / "run", 2, small_data())
    for path in (tmp_path / "run" / "checkpoints").glob("*.h5"):
        path.unlink()
    with pytest.raises(RunError, match="its checkpoint is lost"):
        Moment.of_run(tmp_path / "run", 5, small_data())


@pytest.mark.slow
def test_without_checkpoints_the_run_is_replayed_from_the_seed(run_folder, data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    shutil.rmtree(run / "checkpoints")
    assert repr(Moment.of_run(run, 4, data).take().loss) == metrics(run, 4)["loss"]


def test_what_cannot_be_made_again_says_why(run_folder, data, tmp_path):
    with pytest.raises(RunError, match="has no step 9: its steps are 0 to 8"):
        Moment.of_run(run_folder, 9, data)
    with pytest.raises(RunError, match="has no step -1"):
        Moment.of_run(run_folder, -1, data)
    with pytest.raises(RunError, match="is no run"):
        Moment.of_run(tmp_path / "nothing", 0)
    with pytest.raises(RunError, match=r"arrays in memory.* as data="):
        Moment.of_run(run_folder, 0)
    with pytest.raises(RunError, match="have changed"):
        Moment.of_run(run_folder, 0, other_data())
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    description = json.loads((run / "run.json").read_text())
    description["learner"] = None
    (run / "run.json").write_text(json.dumps(description))
    with pytest.raises(RunError, match="head or optimizer of its own; only its caller can make"):
        Moment.of_run(run, 0, data)


def test_weights_that_are_gone_are_named(run_folder, data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    description = json.loads((run / "run.json").read_text())
    description["learner"]["weights"] = str(tmp_path / "gone.h5")
    (run / "run.json").write_text(json.dumps(description))
    for read in (lambda: Moment.of_run(run, 0, data), lambda: diff_run(run)):
        with pytest.raises(
            RunError, match=r"began with cannot be read: .*gone\.h5.*; put the file"
        ):
            read()


def test_a_moment_before_steps_that_were_not_made_is_refused(learner):
    plan = learner.plan(1)
    with pytest.raises(ValueError, match="has made 0 steps; before step 2 of a plan"):
        Moment.of(learner, plan, 2)
    with pytest.raises(ValueError, match="step should be from 0 to 5, the plan's last; got 6"):
        Moment.of(learner, plan, 6)


@pytest.mark.slow
def test_the_batch_is_the_steps_own(run_folder, data):
    whole = small_learner()
    whole.fine_tune(2)
    moment = Moment.of_run(run_folder, 4, data)
    np.testing.assert_array_equal(moment.batch.ids, whole.history[4].ids)
    assert "step 4, in epoch 2 (phase 'everything', its step 1 of 6)" in moment.where
