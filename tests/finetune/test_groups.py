"""Layer groups of one's own: what they are is what the optimizer uses, and everything follows."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import bits, pictures, small_data, small_learner
from tests.finetune.test_run import StopAfter
from tinyft.errors import DataError, RunError
from tinyft.finetune import Group, layer_groups, one_cycle_phase
from tinyft.finetune.run.folder import Run
from tinyft.finetune.run.resume import resume
from tinyft.inspection.report.run_files import RunFiles

FOUR = {
    "stem": ["conv1", "bn1"],
    "early": ["layer1", "layer2"],
    "late": "layer3",
    "head": "head",
}
SPLIT_HEAD = {
    "body": ["conv1", "bn1", "layer1", "layer2", "layer3"],
    "hidden": ["head.bn1", "head.linear1"],
    "last": ["head.bn2", "head.linear2"],
}


def one_group_a_layer(model):
    """As a function may: from parameters up, norms and convolutions of the stem apart."""
    rest = {name: [name] for name in [*model.stages, "head"]}
    return {"stem": ["conv1.weight"], "its norm": ["bn1.weight", "bn1.bias"], **rest}


def gradual(learner: ft.Learner, count: int | None = None) -> ft.finetune.Plan:
    """A phase for each group (or the first `count` of these), last group first, each with its own
    rates.
    """
    steps, n = learner.data.steps_per_epoch, len(learner.groups)
    phases = [
        one_cycle_phase(f"from {i}", 1, steps, slice(1e-4, 1e-2), n, first_trainable=i)
        for i in reversed(range(n))
    ]
    return learner.plan_of(phases[:count])


@pytest.mark.slow
@pytest.mark.parametrize("when", ["at first", "later", "objects"])
def test_gradual_unfreezing_makes_steps_of_the_plans_size(when):
    """Without momentum and decay an update is the rate times the gradient, whatever records say."""
    options = {"optimizer": "sgd", "weight_decay": 0.0, "bn": "torch"}
    if when == "at first":
        learner = small_learner(groups=FOUR, **options)
    else:
        learner = small_learner(**options)
        learner.groups = FOUR if when == "later" else layer_groups(learner.model, FOUR)
    plan, ledger = gradual(learner), ft.Ledger()
    learner.execute(plan, observers=[ledger])
    assert [group.name for group in learner.history[0].groups] == list(FOUR)
    number = 0
    for phase in plan.phases:
        for rates in phase.lr:
            record = learner.history[number]
            for g, group in enumerate(record.groups):
                frozen = g < phase.first_trainable
                assert (group.frozen, group.lr) == (frozen, rates[g])
                expected = 0.0 if frozen else rates[g] * group.gradient_norm
                assert group.update_norm == pytest.approx(expected, rel=1e-2)
                assert (group.updated > 0) == (not frozen)
            number += 1
    assert number == plan.steps == len(learner.history)
    assert ledger.reading.balance() == []
    assert ledger.reading.groups == list(FOUR)


@pytest.mark.slow
def test_groups_may_come_at_first_or_later():
    first, later = small_learner(groups=FOUR), small_learner()
    later.groups = FOUR
    for learner in (first, later):
        learner.execute(gradual(learner, 2))
    assert bits(first) == bits(later)
    assert later.optimizer.groups is later.groups


@pytest.mark.slow
def test_the_usual_groups_given_by_name_change_nothing():
    parts = {g.name: list(g.parameters) for g in small_learner().groups}
    learner, usual = small_learner(groups=parts), small_learner()
    for each in (learner, usual):
        each.fine_tune(1)
    assert bits(learner) == bits(usual)
    assert str(learner.plan(2)) == str(usual.plan(2))


def test_what_was_frozen_stays_frozen_in_new_groups():
    learner = small_learner()
    learner.freeze_to(1)  # the stem, layer1
    learner.groups = {"a": ["conv1", "bn1"], "b": ["layer1", "layer2"], "c": "layer3", "h": "head"}
    assert [group.frozen for group in learner.groups] == [True, False, False, False]
    norms = "layer1.0.bn1.weight"
    parameters = dict(learner.model.named_parameters())
    assert parameters["layer1.0.conv1.weight"].requires_grad and parameters[norms].requires_grad
    assert not parameters["conv1.weight"].requires_grad


@pytest.mark.slow
def test_the_optimizer_remembers_across_new_groups():
    learner = small_learner()
    learner.fine_tune(1, freeze_epochs=0)
    memory = dict(learner.optimizer.state)
    learner.groups = FOUR
    assert learner.optimizer.state == memory != {}
    assert not learner.one_cycle_plan(1).reset_optimizer


# ------------------------------------------------------------------------------ a head in parts


@pytest.mark.slow
@pytest.mark.parametrize("bn", ["fastai", "torch", "frozen"])
def test_a_head_in_two_groups_is_still_a_head(bn):
    split, usual = (small_learner(bn=bn, groups=groups) for groups in (SPLIT_HEAD, None))
    for learner in (split, usual):
        learner.freeze()
    for name, norm in split.model.named_modules():
        if isinstance(norm, ft.nn.BatchNorm):
            other = dict(usual.model.named_modules())[name]
            assert (norm.statistics, norm.updates) == (other.statistics, other.updates)
    assert [group.frozen for group in split.groups] == [True, False, False]
    for learner in (split, usual):
        learner.fine_tune(0)  # the head alone: both of its groups at the head's rate
    assert bits(split) == bits(usual)
    rates = split.plan(1).phases[1].lr
    assert (rates[:, 1] == rates[:, 2]).all() and (rates[:, 0] < rates[:, 1]).all()


@pytest.mark.slow
def test_features_are_kept_while_the_body_alone_is_frozen():
    learner = small_learner(small_data(augment=None), bn="frozen", groups=SPLIT_HEAD)
    plan = gradual(learner)
    assert [bool(cached) for cached in plan.cached_bytes] == [True, True, False]
    records = list(learner.steps(plan))
    identical = [set(r.proof.identical) for r in records if r.proof]
    head = {name for name in learner.model.state_dict() if name.startswith("head.")}
    first = {name for name in head if name.startswith(("head.bn1", "head.linear1"))}
    assert identical[0] & head == first  # frozen: by running statistics, which stay
    assert identical[1] & head == set()
    assert "hidden: by running statistics, which stay; scale and shift frozen" in str(plan)


# ------------------------------------------------------------------------------------- refusals


def objects_without_norms(model):
    parameters = dict(model.named_parameters())
    body = {name: p for name, p in parameters.items() if not name.startswith("head.")}
    head = {name: p for name, p in parameters.items() if name.startswith("head.")}
    return [Group("body", body, {}, frozenset()), Group("head", head, {}, frozenset())]


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"a": ["conv1", "bn1", "layer1"], "head": "head"}, "layer2.0.conv1.weight is in no group"),
        (FOUR | {"late": ["layer3", "layer1"]}, "layer1.0.conv1.weight is in several groups"),
        (FOUR | {"late": "layer7"}, r"'late' names 'layer7', .* its parts are conv1, bn1, layer1"),
        (FOUR | {"late": "layer"}, "'late' names 'layer'"),
        (FOUR | {"late": []}, "'late' names no part"),
        ({"head": "head", **FOUR}, "in the order of the network"),
        ({"body": ["conv1", "bn1", "layer1", "layer2"], "top": ["layer3", "head"]},
         "'top' holds parts of the body and of the head"),
        ({1: ["conv1", "bn1"], **{n: FOUR[n] for n in ("early", "late", "head")}}, "names that"),
        (["conv1", "head"], r"should be \{name: \[parts of the network\]\}"),
    ],
)  # fmt: skip
def test_what_is_no_division_of_the_network_is_refused(groups, words):
    with pytest.raises(ValueError, match=words):
        small_learner(groups=groups)
    learner = small_learner()
    before = learner.groups
    with pytest.raises(ValueError, match=words):
        learner.groups = groups
    assert learner.groups is before


def test_groups_that_know_not_their_batch_norms_are_refused():
    learner = small_learner(bn="frozen")
    with pytest.raises(ValueError, match="batch norms should be in exactly one layer group; bn1"):
        learner.groups = objects_without_norms(learner.model)


def test_a_list_of_groups_is_not_changed_in_place():
    learner = small_learner()
    with pytest.raises(TypeError):
        learner.groups[0] = learner.groups[1]


def test_a_plan_for_other_groups_is_refused():
    learner = small_learner()
    plan = learner.plan(1)
    learner.groups = FOUR
    with pytest.raises(ValueError, match=r"for the layer groups stem.layer1, .* make a new plan"):
        next(learner.steps(plan))


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3])  # within a phase, and between two
def test_groups_are_not_changed_within_a_plan(step):
    learner = small_learner(small_data(augment=None))
    with pytest.raises(ValueError, match=r"make a (new )?plan"):
        for record in learner.steps(learner.plan(1)):
            if record.step == step - 1:
                learner.groups = FOUR
    assert learner.step == step


@pytest.mark.slow
def test_an_optimizer_of_other_groups_is_the_one_that_counts():
    learner = small_learner(optimizer="sgd")
    learner.optimizer = ft.SGD(layer_groups(learner.model, FOUR))
    assert [group.name for group in learner.groups] == list(FOUR)
    learner.fine_tune(1)
    assert [g.name for g in learner.history[0].groups] == list(FOUR)
    learner.optimizer = ft.SGD(learner.groups[1:])
    with pytest.raises(ValueError, match="other parameters"):
        learner.fine_tune(1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"first_trainable": 4}, "4 frozen groups; the learner has 3"),
        ({"epochs": 0}, "0 epochs of 3 steps; expected at least one"),
        ({"steps_per_epoch": 4}, "of 4 steps; expected at least one, of the data's 3"),
        ({"lr": np.zeros((3, 2))}, r"rates \(steps, groups\) \(3, 2\)"),
        ({"lr": np.full((3, 3), np.nan)}, "negative, NaN or infinite"),
        ({"momentum": np.ones(3)}, "a momentum that is not"),
        ({"name": "b"}, "names differ; got"),
    ],
)
def test_phases_that_cannot_be(change, words):
    from dataclasses import replace

    learner = small_learner()
    a, b = (one_cycle_phase(n, 1, 3, 1e-3, 3, first_trainable=0) for n in "ab")
    with pytest.raises(ValueError, match=words):
        learner.plan_of([replace(a, **change), b])
    with pytest.raises(TypeError, match="one_cycle_phase makes; got 'a'"):
        learner.plan_of(["a"])
    with pytest.raises(ValueError, match="a plan needs phases"):
        learner.plan_of([])


# ---------------------------------------------------------------------------------- what follows


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "later"), [(FOUR, True), (one_group_a_layer, False)])
def test_a_run_with_own_groups_and_phases_is_resumed_to_the_same_bits(tmp_path, groups, later):
    def made() -> ft.Learner:
        learner = small_learner(groups=None if later else groups)
        if later:
            learner.groups = groups
        return learner

    whole, cut = made(), made()
    whole.execute(gradual(whole, 2))
    run = Run.create(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        cut.execute(gradual(cut, 2), observers=[StopAfter(run, 4), run])
    learner, plan, run, start, notices = resume(tmp_path / "cut", small_data())
    assert (start, notices) == (4, [])
    assert [g.name for g in learner.groups] == [g.name for g in whole.groups]
    learner.execute(plan, observers=[run], start=start)
    assert bits(learner) == bits(whole)
    read = RunFiles.read(tmp_path / "cut", small_data())
    assert read.description["plan_text"] == str(plan)
    loaded = ft.load_learner(tmp_path / "cut" / "learner.h5")
    assert [list(g.parameters) for g in loaded.groups] == [list(g.parameters) for g in whole.groups]
    assert bits(loaded) == bits(whole)


def test_a_damaged_plan_of_ones_own_is_said_to_be(tmp_path):
    learner = small_learner(groups=FOUR)
    run = Run.create(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        learner.execute(gradual(learner, 1), observers=[StopAfter(run, 1), run])
    whole = json.loads((tmp_path / "cut" / "run.json").read_text())
    for wrong in ({}, [3], [{"name": "a"}], [{**whole["plan"]["phases"][0], "lr": [["x"]]}]):
        plan = whole["plan"] | {"phases": wrong}
        (tmp_path / "cut" / "run.json").write_text(json.dumps(whole | {"plan": plan}))
        with pytest.raises(RunError, match=r"plan .* cannot be made again"):
            resume(tmp_path / "cut", small_data())


@pytest.mark.slow
def test_the_rate_finder_the_forecast_and_the_table_follow():
    learner = small_learner(groups=FOUR)
    before = bits(learner)
    learner.lr_find(num_it=9, stop_div=False)
    forecast = learner.forecast(gradual(learner, 2))
    assert forecast.training_seconds > 0 and bits(learner) == before
    assert list(dict.fromkeys(line.group for line in learner.describe().lines)) == list(FOUR)


# ------------------------------------------------------------------------------- a batch of one


@pytest.mark.slow
def test_one_picture_a_batch_trains_where_no_batch_norm_compares_pictures():
    x, y = pictures(6)
    data = ft.ImageArrays((x, y), (x, y), ["a", "b", "c"], size=24, batch_size=1)
    learner = small_learner(data, bn="frozen", head="linear")
    plan = learner.plan(1)
    learner.execute(plan)
    assert learner.step == plan.steps == 12
    assert len(learner.lr_find(num_it=9, stop_div=False).lrs) == 9


@pytest.mark.parametrize("options", [{"bn": "frozen"}, {"bn": "torch", "head": "linear"}])
def test_one_picture_a_batch_is_refused_where_a_batch_norm_does(options):
    learner = small_learner(small_data(batch_size=1), **options)
    for call in (lambda: learner.plan(1), lambda: learner.one_cycle_plan(1), learner.lr_find):
        with pytest.raises(DataError, match=r"at least two pictures.*bn='frozen' and head='linear"):
            call()
