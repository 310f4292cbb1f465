"""The plan in words says the plan's numbers, its reasons, and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import small_data, small_learner
from tinyft.inspection import explain

ROOT = Path(ft.__file__).parents[1]


def unwrapped(plan) -> str:
    return " ".join(explain(plan).split())


@pytest.mark.parametrize("bn", ["fastai", "torch", "frozen"])
def test_each_phase_with_its_numbers(bn):
    plan = small_learner(bn=bn).plan(2)
    text = unwrapped(plan)
    assert "Phase 1 of 2, head alone: 1 epoch of 3 steps, steps 0 to 2." in text
    assert "Phase 2 of 2, everything: 2 epochs of 3 steps, steps 3 to 8." in text
    trained = sum(state.trainable for state in plan.states[0])
    assert f"Gradients reach {trained:,} of 337,424 parameters" in text
    assert "Gradients reach 337,424 of 337,424 parameters" in text
    said = {"fastai": "train (1,376 parameters)", "torch": "although no weight learns"}
    assert said.get(bn, "not one bit of these layers changes") in text
    top = 3 + plan.phases[1].lr[:, -1].argmax()
    assert f"Learning rates rise until step {top}, then fall" in text
    for phase in plan.phases:
        lr = phase.lr[:, -1]
        assert f"head from {lr[0]:.2g} to {lr.max():.2g} to {lr[-1]:.2g}" in text
        m = phase.momentum
        assert f"from {m[0]:.3f} to {m.min():.3f} to {m[-1]:.3f}" in text
    assert max(map(len, explain(plan).splitlines())) <= 100


def test_every_file_it_names_exists():
    plan = small_learner(small_data(augment=None), bn="frozen").plan(1, freeze_epochs=3)
    files = set(re.findall(r"tinyft/\w+/\w+\.py", explain(plan)))
    assert "tinyft/finetune/feature_cache.py" in files and len(files) == 5
    assert all((ROOT / file).exists() for file in files)
    assert "each picture passes through it once, and 2 epochs cost the head alone" in unwrapped(
        plan
    )


def test_it_counts_the_steps_in_which_float32_loses_the_decay():
    plan = small_learner(weight_decay=0.01).plan(3)
    products = np.concatenate([phase.lr[:, 0] * 0.01 for phase in plan.phases])
    lost = int((np.float32(1) - np.float32(products) == 1).sum())
    assert 0 < lost < plan.steps
    assert f"nothing shrinks: stem+layer1 in {lost} of 12 steps" in unwrapped(plan)
    assert "nothing shrinks" not in unwrapped(small_learner(weight_decay=0.0).plan(3))


def test_float64_loses_no_decay():
    plan = small_learner(weight_decay=0.01, dtype="float64").plan(3)
    assert "float64; body" in unwrapped(plan) and "nothing shrinks" not in unwrapped(plan)


def test_an_optimizer_without_momentum_is_given_none():
    learner = small_learner(optimizer="sgd")
    plan = learner.plan(1)
    assert all((phase.momentum == 0).all() for phase in plan.phases)
    assert "no momentum" in unwrapped(plan)
    assert "none      68,352" in str(plan) and "0.95" not in str(plan)
    record = next(iter(learner.steps(plan)))
    assert {group.momentum for group in record.groups} == {0.0}
    assert "0.95 0.85 0.90" in str(small_learner(optimizer="momentum").plan(1))


def test_a_group_in_which_nothing_moves_has_no_rate():
    lines = str(small_learner(bn="frozen").plan(1)).splitlines()
    frozen, trains = [line for line in lines if "stem+layer1  " in line and "batch" not in line]
    assert frozen.split() == ["stem+layer1", "frozen", "-", "-", "-", "-", "0", "of", "14,480"]
    assert "9.94e-06" in trains


def test_stale_gradients_are_said():
    plan = small_learner(bn="frozen").plan(1, stale_gradients=True)
    assert "Frozen weights that once trained decay on" in unwrapped(plan)
    assert "so only weight decay changes these layers" in unwrapped(plan)
    assert "not one bit" not in unwrapped(plan)
    assert "-         -" not in str(plan)


def test_steps_are_numbered_on_from_those_that_were_made():
    learner = small_learner()
    learner.fine_tune(0, freeze_epochs=1)
    plan = learner.plan(1)
    assert "(steps 3 to 5)" in str(plan) and "(steps 6 to 8)" in str(plan)
    assert "steps 3 to 5. Frozen" in unwrapped(plan) and "steps 6 to 8. " in unwrapped(plan)


def test_a_trained_head_is_not_called_random():
    learner = small_learner()
    assert "begins with random weights" in unwrapped(learner.plan(1))
    learner.fine_tune(0, freeze_epochs=1)
    assert "begins with random weights" not in unwrapped(learner.plan(1))
    assert "everything trains at once" in unwrapped(learner.plan(1, freeze_epochs=0))


def test_reasons_are_those_of_the_case():
    learner = small_learner()
    plan = unwrapped(learner.plan(1))
    assert (
        "the body begins with random weights too" in plan and "pretrained layers know" not in plan
    )
    assert "everything has to be learnt from these pictures" in plan
    assert "random ones have as much to learn as the head" in plan and "old task" not in plan
    learner.origin.random_body = False
    plan = unwrapped(learner.plan(1))
    assert "undo what the pretrained layers know" in plan and "the old task" in plan
    in_part = unwrapped(learner.one_cycle_plan(1, first_trainable=1))
    assert "what the first layers detect serves any picture" in in_part
    assert "the head begins" not in in_part and "a head can follow" not in in_part


# ------------------------------------------------------------------------------ learner.describe()


def test_describe_has_a_line_per_layer():
    learner = small_learner()
    learner.freeze()
    lines = {line.layer: line for line in learner.describe().lines}
    layers = {name.rpartition(".")[0] for name, _ in learner.model.named_parameters()}
    assert set(lines) == layers
    conv, norm, linear = lines["conv1"], lines["bn1"], lines["head.linear2"]
    assert (conv.shape, conv.group, conv.lr) == ("16x3x3x3", "stem+layer1", "-")
    assert (conv.weight, conv.statistics, conv.last_update) == ("frozen", "", "none yet")
    assert (norm.weight, norm.statistics, norm.decay) == ("trains", "move", "-")
    assert (linear.weight, linear.lr, linear.decay) == ("trains", "1.00e-03", "0.01")
    text = str(learner.describe())
    assert text.splitlines()[0].split()[:3] == ["layer", "shape", "group"]
    assert len(text.splitlines()) == 1 + len(layers)


def test_describe_says_what_the_last_step_did():
    learner = small_learner(bn="torch")
    learner.freeze()
    batch = next(learner.data.train_batches(0, learner.preprocess))
    learner.train_step(batch, "by hand")
    lines = {line.layer: line for line in learner.describe().lines}
    assert lines["conv1"].last_update == lines["bn1"].last_update == "at rest"
    assert lines["bn1"].weight == "frozen" and lines["bn1"].statistics == "move"
    assert lines["head.linear1"].last_update == "moved"
    learner.train_step(batch, "by hand", norms=True)
    line = {line.layer: line for line in learner.describe().lines}["head.linear2"]
    ratio = learner.updates["head.linear2.weight"].update_ratio  # it has no bias
    assert line.last_update == f"{ratio:.1e}"
