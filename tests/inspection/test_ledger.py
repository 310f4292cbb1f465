"""The ledger: its numbers are the step's, its books balance, and it outlives a kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import small_data, small_learner
from tests.inspection.moments import AfterStep
from tinyft.errors import RunError
from tinyft.finetune.optim import SGD
from tinyft.finetune.run.folder import Run
from tinyft.finetune.run.resume import resume
from tinyft.inspection.ledger.ledger import epoch_layer_rows
from tinyft.inspection.ledger.reading import EPOCH_LAYER_COLUMNS, LAYER_COLUMNS

ROOT = Path(__file__).parents[2]


def observed(learner: ft.Learner, *plan, observers=(), **options):
    """The ledger of plan(...), kept in memory."""
    ledger = ft.Ledger()
    learner.execute(learner.plan(*plan, **options), observers=[ledger, *observers])
    return ledger.reading


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of 3 steps of the head and 6 of everything, with momentum and decay."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    learner = small_learner(weight_decay=0.1)
    learner.fine_tune(2, base_lr=0.02, out=path, observers=[ft.Ledger()])
    return path


# --------------------------------------------------------------------------------- what it measures


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_every_number_is_that_of_the_step(device, optimizer):
    """Against plain NumPy around a step that is made by hand."""
    data = small_data(size=12)  # the reference takes its time
    learner = small_learner(data, device=device, optimizer=optimizer, weight_decay=0.5)
    learner.unfreeze()
    for group in learner.groups:
        group.lr = 0.01
    batches = learner.data.train_batches(0, learner.preprocess)
    learner.train_step(next(batches), "by hand", norms=True)
    old = {n: p.data.astype(np.float64) for n, p in learner.model.named_parameters()}
    gradients = {}
    update = learner.optimizer.update

    def remembering(name, parameter, group, weight_decay):
        gradients[name] = parameter.grad.astype(np.float64)
        update(name, parameter, group, weight_decay)

    learner.optimizer.update = remembering
    record = learner.train_step(next(batches), "by hand", norms=True)
    for group, found in zip(learner.groups, record.groups, strict=True):
        squares = np.zeros(4)
        for name, parameter in group.parameters.items():
            sums, g, w = learner.updates[name], gradients[name], old[name]
            d = parameter.data.astype(np.float64) - w
            lost = 0.0 if name in group.undecayed else 1 - np.float64(np.float32(1 - 0.005))
            expected = {
                "weight_norm_before": np.linalg.norm(w.ravel()),
                "weight_norm": np.linalg.norm(parameter.data.astype(np.float64).ravel()),
                "update_norm": np.linalg.norm(d.ravel()),
                "gradient_norm": np.linalg.norm(g.ravel()),
                "cosine": -(g * d).sum() / np.sqrt((g * g).sum() * (d * d).sum()),
                "moved": np.count_nonzero(d),
                "decay": np.square(lost * w).sum(),
                "rest": np.square(d + lost * w).sum(),
            }
            for column, value in expected.items():
                assert getattr(sums, column) == pytest.approx(value, rel=1e-5), (name, column)
            squares += [(g * g).sum(), (d * d).sum(), (parameter.data**2).sum(), 1]
        norms = np.sqrt(squares[:3])
        assert [found.gradient_norm, found.update_norm, found.weight_norm] == pytest.approx(norms)
        assert found.updated == squares[3]


@pytest.mark.slow
def test_measuring_changes_no_bit():
    with_ledger, without = small_learner(), small_learner()
    ledger = observed(with_ledger, 1)
    without.fine_tune(1)
    for name, array in without.model.state_dict().items():
        np.testing.assert_array_equal(with_ledger.model.state_dict()[name], array)
    assert len(ledger.steps["step"]) == 6


@pytest.mark.slow
def test_another_plan_begins_another_ledger(tmp_path):
    learner = small_learner()
    learner.fine_tune(1, observers=[ft.Ledger(tmp_path)])
    with pytest.warns(UserWarning, match="ledger of another plan; a new ledger begins with step 6"):
        learner.fit_one_cycle(1, observers=[ft.Ledger(tmp_path)])
    book = ft.Ledger.read(tmp_path)
    assert [proof.title for proof in book.proofs] == ["one cycle"]
    assert book.steps["step"].tolist() == [6, 7, 8]


@pytest.mark.slow
def test_nobody_pays_who_does_not_ask():
    learner = small_learner()
    learner.fine_tune(0, freeze_epochs=1)
    assert learner.updates is None
    assert learner.history[-1].groups[0].update_norm is None


@pytest.mark.slow
def test_columns_and_their_shapes(run):
    book = ft.Ledger.read(run)
    groups, parameters = len(book.groups), len(book.parameters)
    assert book.steps["step"].tolist() == list(range(9))
    assert [book.phases[i] for i in book.steps["phase"]] == ["head alone"] * 3 + ["everything"] * 6
    assert book.steps["update_ratio"].shape == (9, groups)
    assert book.layers["update_ratio"].shape == (9, parameters)
    assert book.epochs["distance"].shape == (3, parameters)
    assert book.epochs["step"].tolist() == [2, 5, 8]
    assert book.ids.shape == (9, 8) and book.ids.min() == 0
    assert sorted(book.ids[:3].ravel()) == list(range(24))
    assert book.steps["frozen"][0].tolist() == [True, True, False]
    assert book.steps["updated"][0, 0] == 2 * 7  # scales and shifts of the first group
    assert not book.steps["frozen"][3:].any()
    assert book.steps["weight_decay"].max() == 0.1
    with pytest.raises(AttributeError, match="has no 'colour'"):
        _ = book.colour


def test_groups_are_the_sums_of_their_parameters(run):
    book = ft.Ledger.read(run)
    of_group = np.array(book.group_of)
    for column in ("gradient_norm", "update_norm", "weight_norm", "decay_norm"):
        for g in range(len(book.groups)):
            whole = np.sqrt((book.layers[column][:, of_group == g].astype(float) ** 2).sum(axis=1))
            np.testing.assert_allclose(whole, book.steps[column][:, g], rtol=1e-4, atol=1e-12)
    moved = np.array([book.layers["moved"][:, of_group == g].sum(axis=1) for g in range(3)]).T
    np.testing.assert_array_equal(moved, book.steps["moved"])


def test_an_epoch_sums_up_its_steps(run):
    book = ft.Ledger.read(run)
    layers, epochs = book.layers, book.epochs
    np.testing.assert_allclose(
        epochs["path"][1], layers["update_norm"][3:6].sum(axis=0, dtype=float), rtol=1e-6
    )
    np.testing.assert_allclose(epochs["weight_norm"][2], layers["weight_norm"][8], rtol=1e-6)
    np.testing.assert_array_equal(
        epochs["moved"][1], layers["moved"][3:6].mean(axis=0, dtype=float)
    )
    assert (epochs["moved"] % 1).any()
    assert (epochs["distance"] <= epochs["path"] * (1 + 1e-4)).all()
    assert (epochs["distance"][1:] > 0).all()
    decayed = [name not in book.description["undecayed"] for name in book.parameters]
    np.testing.assert_array_equal(epochs["weight_decay"][0] > 0, decayed)
    np.testing.assert_array_equal((epochs["decay_share"][1] > 0), decayed)


@pytest.mark.slow
def test_statistics_drift_where_batch_norms_follow_the_batches(run):
    drift = ft.Ledger.read(run).norm_drift
    assert {values.shape for values in drift.values()} == {(3, 21)}
    assert (drift["mean"] > 0).all()
    still = observed(small_learner(bn="frozen"), 0).norm_drift
    in_body = [not name.startswith("head") for name in ft.Ledger.read(run).norms]
    assert (still["mean"][0][in_body] == 0).all() and (still["variance"][0][in_body] == 0).all()
    assert (still["mean_since_start"][0][~np.array(in_body)] > 0).all()


@pytest.mark.slow
def test_drift_by_hand():
    """One channel: the mean from 0 to 1 and the variance from 1 to 4 are 1 and ln 4."""
    learner = small_learner(bn="torch")
    norm = learner.model.bn1

    def put(learner, record):
        size = len(norm.running_mean)
        norm.running_mean = np.ones(size, np.float32)
        norm.running_var = np.full(size, 4, np.float32)

    ledger = ft.Ledger()
    plan = learner.plan(0, freeze_epochs=1)
    learner.execute(plan, observers=[AfterStep(put), ledger])
    drift = ledger.reading.norm_drift
    assert drift["mean"][0, 0] == pytest.approx(1, rel=1e-4)
    assert drift["variance"][0, 0] == pytest.approx(np.log(4), rel=1e-4)


# ---------------------------------------------------------------------------------------- balancing


def test_the_books_balance(run):
    book = ft.Ledger.read(run)
    assert book.balance() == []
    assert "9 steps" in str(book) and "it balances" in str(book)
    assert "everything, 3 to 8" in book._repr_html_()
    s = book.steps
    np.testing.assert_array_equal(s["weight_norm_before"][1:], s["weight_norm"][:-1])
    sums = s["weight_norm_before"] ** 2 + 2 * s["weight_dot_update"] + s["update_norm"] ** 2
    np.testing.assert_allclose(sums, s["weight_norm"] ** 2, rtol=1e-6)


@pytest.mark.slow
def test_a_write_between_two_steps_shows():
    learner = small_learner()

    def write(learner, record):
        if record.step == 3:
            learner.model.conv1.weight.data[0, 0, 0, 0] += 1e-3

    (problem,) = observed(learner, 1, observers=[AfterStep(write)]).balance()
    assert "step 4, stem+layer1: starts with weights of norm" in problem
    assert "something else wrote into them" in problem


@pytest.mark.slow
def test_an_update_of_the_wrong_length_shows(monkeypatch):
    assert observed(small_learner(optimizer="sgd"), 1).balance() == []
    update = SGD.update

    def twice(self, name, parameter, group, weight_decay):
        update(self, name, parameter, group, weight_decay)
        if name == "head.linear2.weight":
            update(self, name, parameter, group, 0.0)

    monkeypatch.setattr(SGD, "update", twice)
    problems = observed(small_learner(optimizer="sgd"), 1).balance()
    assert len(problems) == 6
    assert all("head: moved by" in text and "lr times the gradient" in text for text in problems)


@pytest.mark.slow
def test_a_kernel_that_measures_wrongly_shows(monkeypatch):
    from tinyft.backends.reference import Backend

    right = Backend.update_sums

    def wrong(self, before, after, gradient):
        sums = right(self, before, after, gradient)
        sums[3] *= 1.5
        return sums

    monkeypatch.setattr(Backend, "update_sums", wrong)
    learner = small_learner(small_data(size=12), device="reference", weight_decay=0.5)
    problems = observed(learner, 0).balance()
    assert problems and "|w|^2 + 2<w,d> + |d|^2" in problems[0]


@pytest.mark.slow
def test_momentum_of_an_optimizer_without_one_is_0():
    assert (observed(small_learner(optimizer="sgd"), 0).steps["momentum"] == 0).all()
    assert (observed(small_learner(optimizer="momentum"), 0).steps["momentum"] > 0.8).all()


# ------------------------------------------------------------------------------------ kill, go on


def cut_off(path: Path, step: int) -> None:
    """A run that was asked to stop after so many steps, as by Ctrl-C."""
    learner, run = small_learner(weight_decay=0.1), Run.create(path)

    def stop(learner, record):
        run.stop_requested = record.step + 1 >= step

    with pytest.raises(KeyboardInterrupt):
        plan = learner.plan(2, base_lr=0.02)
        learner.execute(plan, observers=[AfterStep(stop), ft.Ledger(path), run])


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_resumed_run_has_the_ledger_of_one_that_was_not_interrupted(run, tmp_path, step):
    cut_off(tmp_path / "cut", step)
    assert len(ft.Ledger.read(tmp_path / "cut").steps["step"]) == step
    learner, plan, resumed, start, _ = resume(tmp_path / "cut", small_data())
    learner.execute(plan, observers=[ft.Ledger(tmp_path / "cut"), resumed], start=start)
    expected, found = ft.Ledger.read(run), ft.Ledger.read(tmp_path / "cut")
    assert found.description == expected.description
    for name, rows in expected.tables.items():
        np.testing.assert_array_equal(found.tables[name], rows, name)


@pytest.mark.slow
def test_rows_of_steps_that_are_made_again_are_cut(run, tmp_path):
    """The ledger is ahead of the newest checkpoint, as after a kill."""
    cut_off(tmp_path / "cut", 5)
    (tmp_path / "cut" / "checkpoints" / "000005.h5").unlink()
    learner, plan, resumed, start, _ = resume(tmp_path / "cut", small_data())
    assert start == 3
    learner.execute(plan, observers=[ft.Ledger(tmp_path / "cut"), resumed], start=start)
    expected, found = ft.Ledger.read(run), ft.Ledger.read(tmp_path / "cut")
    for name, rows in expected.tables.items():
        np.testing.assert_array_equal(found.tables[name], rows, name)


ENDLESS = """
from tests.finetune.conftest import small_learner
import tinyft as ft
from tinyft.finetune.run.folder import Run
run = Run.create("cut")
small_learner().execute(small_learner().plan(1000), observers=[ft.Ledger("cut"), run])
"""


@pytest.mark.slow
def test_after_kill_9_what_was_flushed_can_be_read(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", ENDLESS], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    metrics = tmp_path / "cut" / "metrics.csv"
    deadline = time.monotonic() + 300
    while not metrics.exists() or metrics.read_text().count("\n") < 12:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    alive = ft.Ledger.read(tmp_path / "cut")  # while the other process writes
    assert len(alive.steps["step"]) >= 11 and alive.balance() == []
    child.send_signal(signal.SIGKILL)
    child.wait()
    steps = metrics.read_text().count("\n") - 1
    dead = ft.Ledger.read(tmp_path / "cut")
    assert dead.steps["step"].tolist()[:steps] == list(range(steps))
    assert len(dead.steps["step"]) <= steps + 1 and dead.balance() == []
    learner, plan, _, start, _ = resume(tmp_path / "cut", small_data())
    ledger = ft.Ledger(tmp_path / "cut")
    ledger.begin(learner, plan)
    record = next(iter(learner.steps(plan, norms=True, start=start)))
    ledger.after_step(learner, record)
    again = ft.Ledger.read(tmp_path / "cut")
    assert again.steps["step"].tolist() == list(range(start + 1)) and again.balance() == []


@pytest.mark.slow
def test_steps_that_were_not_measured_make_no_ledger():
    learner = small_learner()
    plan, ledger = learner.plan(1), ft.Ledger()
    ledger.begin(learner, plan)
    record = next(learner.steps(plan))
    with pytest.raises(ValueError, match=r"by learner.steps\(plan, norms=True\)"):
        ledger.after_step(learner, record)


# ------------------------------------------------------------------------------ reading and folders


def test_what_is_no_ledger_says_so(tmp_path):
    with pytest.raises(RunError, match=r"there is no ledger .*was the run made without one"):
        ft.Ledger.read(tmp_path)
    (tmp_path / "ledger.bin").write_bytes(b"nothing of the kind")
    with pytest.raises(RunError, match="is damaged or no ledger"):
        ft.Ledger.read(tmp_path)
    small_learner().save(tmp_path / "learner.h5")
    with pytest.raises(RunError, match="is damaged or no ledger"):
        ft.Ledger.read(tmp_path / "learner.h5")
    with pytest.raises(RunError, match="is empty: no step"):
        _ = ft.Ledger().reading


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
def test_a_ledger_whose_end_is_missing_says_so(run, tmp_path, share):
    whole = (run / "ledger.bin").read_bytes()
    (tmp_path / "ledger.bin").write_bytes(whole[: int(len(whole) * share)])
    found, expected = ft.Ledger.read(tmp_path), ft.Ledger.read(run)
    for name, rows in found.tables.items():
        np.testing.assert_array_equal(rows, expected.tables[name][: len(rows)], name)
    assert 1 <= len(found.steps["step"]) < 9
    assert f"{found.unfinished:,} bytes of a record that was cut off" in str(found)
    assert "cut off" not in str(expected)


@pytest.mark.slow
def test_a_run_goes_on_with_what_is_whole_of_a_damaged_ledger(tmp_path):
    """The weights that the epoch began with are not known then, as the steps may be of another."""
    cut_off(tmp_path / "cut", 5)
    ledger = tmp_path / "cut" / "ledger.bin"
    damaged = bytearray(ledger.read_bytes())
    damaged[-5000] ^= 1  # in the last step but one or two
    ledger.write_bytes(damaged)
    with pytest.raises(RunError, match=r"ledger\.bin is damaged: the record behind step"):
        ft.Ledger.read(tmp_path / "cut")
    learner, plan, resumed, start, _ = resume(tmp_path / "cut", small_data())
    with pytest.warns(UserWarning) as said:
        learner.execute(plan, observers=[ft.Ledger(tmp_path / "cut"), resumed], start=start)
    assert "what is before it is kept" in str(said[0].message)
    assert re.search(r"lacks \d steps? before step 5 and goes on", str(said[1].message))
    found = ft.Ledger.read(tmp_path / "cut")
    made = found.steps["step"].tolist()
    assert start == 5 and made[-4:] == [5, 6, 7, 8] and 0 < made.index(5) < 5
    assert np.isnan(found.epochs["distance"][-2]).all()
    assert not np.isnan(found.epochs["distance"][-1]).any()


@pytest.mark.slow
def test_a_run_says_which_steps_its_ledger_lost_in_a_crash_of_the_system(tmp_path):
    cut_off(tmp_path / "cut", 5)
    ledger = tmp_path / "cut" / "ledger.bin"
    ledger.write_bytes(ledger.read_bytes()[:-100])  # the last step's record is cut off
    learner, plan, resumed, start, _ = resume(tmp_path / "cut", small_data())
    with pytest.warns(UserWarning, match=r"ledger\.bin lacks 1 step before step 5 and goes on"):
        learner.execute(plan, observers=[ft.Ledger(tmp_path / "cut"), resumed], start=start)
    assert ft.Ledger.read(tmp_path / "cut").steps["step"].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]


@pytest.mark.slow
def test_a_damaged_older_checkpoint_costs_distances_only(tmp_path):
    cut_off(tmp_path / "cut", 5)
    (tmp_path / "cut" / "checkpoints" / "000003.h5").write_bytes(b"nothing of the kind")
    learner, plan, resumed, start, _ = resume(tmp_path / "cut", small_data())
    learner.execute(plan, observers=[ft.Ledger(tmp_path / "cut"), resumed], start=start)
    found = ft.Ledger.read(tmp_path / "cut")
    assert np.isnan(found.epochs["distance"]).any(axis=1).tolist() == [False, True, False]
    assert not np.isnan(found.epochs["path"]).any() and len(found.proofs) == 2


@pytest.mark.slow
def test_a_run_goes_on_without_its_ledger_if_nothing_of_it_is_whole(tmp_path):
    cut_off(tmp_path / "cut", 3)
    ledger = tmp_path / "cut" / "ledger.bin"
    ledger.write_bytes(ledger.read_bytes()[:400])
    learner, plan, resumed, start, _ = resume(tmp_path / "cut", small_data())
    with pytest.warns(UserWarning, match="a new ledger begins with step 3"):
        learner.execute(plan, observers=[ft.Ledger(tmp_path / "cut"), resumed], start=start)
    assert ft.Ledger.read(tmp_path / "cut").steps["step"].tolist() == [3, 4, 5, 6, 7, 8]


@pytest.mark.slow
def test_without_a_run_no_file_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    book = observed(small_learner(), 0)
    assert len(book.steps["step"]) == 3 and list(tmp_path.iterdir()) == []


def test_an_epochs_norms_are_root_mean_squares_of_its_steps():
    steps = np.zeros((2, len(LAYER_COLUMNS), 1))
    steps[:, LAYER_COLUMNS.index("gradient_norm"), 0] = 1, 7
    zero = {"distance": np.zeros(1), "changed": np.zeros(1)}
    row = epoch_layer_rows(steps, np.zeros((2, 3, 1)), zero)
    assert row[EPOCH_LAYER_COLUMNS.index("gradient_norm"), 0] == 5
