"""The six recipes for freezing (fastai with and without batch norms, PyTorch three ways, Keras):
what moved, and why, is found in each.

Counts are of the 57 parameters and 38 running statistics of a CIFAR ResNet-20's body.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import small_data, small_learner
from tinyft.errors import WeightsError
from tinyft.finetune import Optimizer
from tinyft.inspection.ledger.changes import Changes

SCALES = "38 scales and shifts of batch norms train beside weights that are frozen, as in fastai"
STATISTICS = "38 running statistics moved in layers where nothing trains"


@pytest.fixture(scope="module")
def data() -> ft.ImageArrays:
    return small_data(batch_size=12, augment=None)


def body_learner(data, **options) -> ft.Learner:
    """A small learner whose decay is large enough to see in one step."""
    learner = small_learner(data, **{"weight_decay": 0.1, **options})
    for group in learner.groups:
        group.lr = 0.01
    return learner


def step(learner: ft.Learner) -> None:
    learner.train_step(next(learner.data.train_batches(0, learner.preprocess)), "by hand")


def in_body(changes: Changes) -> Counter:
    """How many tensors of the body moved for which reasons."""
    return Counter(t.reasons for t in changes.moved if not t.name.startswith("head"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bn", "reasons", "diagnosis"),
    [
        ("fastai", {("gradient",): 38, ("running statistics",): 38}, [SCALES]),
        ("torch", {("running statistics",): 38}, [STATISTICS]),  # also fastai's train_bn=False
        ("frozen", {}, []),  # as Keras
    ],
)
def test_frozen_from_the_start(data, bn, reasons, diagnosis):
    """The first phase of each preset; recipes 1, 2 (and 3), 6."""
    learner = body_learner(data, bn=bn)
    learner.freeze()
    before, ledger = ft.snapshot(learner), ft.Ledger()
    plan = learner.plan(0, freeze_epochs=1)
    learner.execute(plan, observers=[ledger])
    (of_run,) = ledger.reading.proofs
    for changes in (ft.changed(before, learner), ft.changed(before, learner.model), of_run):
        assert in_body(changes) == reasons
        assert [
            text.partition(";")[0].partition(":")[0] for text in changes.diagnosis()
        ] == diagnosis
    assert set(of_run.identical) == set(learner.history[-1].proof.identical)
    assert "head alone: " in str(of_run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "weight_decay", "reasons"),
    [
        ("momentum", 0.1, {("weight decay", "momentum"): 19, ("momentum",): 38}),
        ("adam", 0.1, {("weight decay", "momentum"): 19, ("momentum",): 38}),
        ("adam", 0.0, {("momentum",): 57}),
        ("sgd", 0.1, {("weight decay",): 19}),
    ],
)
def test_frozen_after_a_step_with_gradients_of_zeros(data, optimizer, weight_decay, reasons):
    """Recipe 4, PyTorch's zero_grad(set_to_none=False): the optimizer goes on with what it has."""
    learner = body_learner(data, optimizer=optimizer, weight_decay=weight_decay, bn="torch")
    learner.unfreeze()
    step(learner)
    remembered = dict(learner.optimizer.state)
    learner.freeze()
    learner.optimizer.state.update(remembered)
    for group in learner.groups[:2]:
        for parameter in group.parameters.values():
            parameter.grad = np.zeros_like(parameter.data)
    before = ft.snapshot(learner)
    step(learner)
    changes = ft.changed(before, learner)
    assert in_body(changes) == {**reasons, ("running statistics",): 38}
    count = sum(reasons.values())
    first, second = changes.diagnosis()
    assert first.startswith(f"the optimizer moved {count} frozen parameters by ")
    assert "gradients are zeros instead of None" in first and second.startswith(STATISTICS)


class OwnNames(Optimizer):
    """SGD with momentum whose memory is called as no optimizer here calls it; with `moves=False`
    it remembers under SGD's own name, and never moves by that.
    """

    def __init__(self, groups, moves=True):
        super().__init__(groups)
        self.key, self.moves = ("m" if moves else "velocity"), moves

    def update(self, name, parameter, group, weight_decay):
        state = self.state.setdefault(name, {self.key: 0 * parameter.data})
        state[self.key] = 0.9 * state[self.key] + parameter.grad
        parameter.data *= np.float32(1 - group.lr * weight_decay)
        parameter.data -= np.float32(group.lr) * (state[self.key] if self.moves else parameter.grad)


@pytest.mark.slow
@pytest.mark.parametrize("moves", [True, False])
def test_a_custom_optimizers_memory_is_known_by_what_it_does(moves):
    learner = small_learner(bn="torch", optimizer=lambda groups: OwnNames(groups, moves))
    learner.unfreeze()
    step(learner)
    remembered = dict(learner.optimizer.state)
    learner.freeze()
    learner.optimizer.state.update(remembered)
    weight = learner.model.conv1.weight
    weight.grad = np.zeros_like(weight.data)
    before = ft.snapshot(learner)
    step(learner)
    if not moves:
        weight.data[0] += 1  # by somebody else
    memory = learner.optimizer.state["conv1.weight"]
    kept = {key: value.copy() for key, value in memory.items()}
    (moved,) = [t for t in ft.changed(before, learner).moved if t.name == "conv1.weight"]
    assert moved.reasons == (("momentum",) if moves else ("unknown",))
    assert all((kept[key] == memory[key]).all() for key in kept)  # asking moves nothing


class OwnAdam(ft.Adam):
    """Adam that does a little more to a weight than its kernel."""

    def update(self, name, parameter, group, weight_decay):
        super().update(name, parameter, group, weight_decay)
        parameter.data -= np.float32(group.lr) * np.sign(parameter.grad)


@pytest.mark.parametrize("kind", [OwnNames, OwnAdam])
def test_a_custom_optimizers_steps_are_measured_whatever_makes_them(kind):
    """Kernels measure themselves; NumPy does not."""
    learner = small_learner(optimizer=kind, weight_decay=0.1)
    before = learner.model.conv1.weight.data.copy()
    learner.train_step(
        next(learner.data.train_batches(0, learner.preprocess)), "by hand", norms=True
    )
    sums = learner.updates["conv1.weight"]
    moved = np.linalg.norm((learner.model.conv1.weight.data - before).astype(np.float64).ravel())
    assert sums.update_norm == pytest.approx(moved, rel=1e-6) and moved > 0
    assert sums.visited == 1


@pytest.mark.slow
def test_frozen_after_a_step_with_gradients_of_none(data):
    """Recipe 5, PyTorch's default zero_grad(): statistics alone."""
    learner = body_learner(data, optimizer="momentum", bn="torch")
    learner.unfreeze()
    step(learner)
    learner.freeze()
    before = ft.snapshot(learner)
    step(learner)
    changes = ft.changed(before, learner)
    assert in_body(changes) == {("running statistics",): 38}
    assert changes.diagnosis()[0].startswith(STATISTICS) and len(changes.diagnosis()) == 1


@pytest.mark.slow
def test_from_weights_alone_decay_is_told_from_momentum():
    """Without the optimizer: what decayed is a multiple of itself."""
    model = ft.cifar_resnet20(seed=0)
    for _, parameter in model.named_parameters():
        parameter.requires_grad = False
    before = ft.snapshot(model)
    model.conv1.weight.data *= np.float32(1 - 1e-5)
    carried = model.layer1
    getattr(carried, "0").conv1.weight.data += np.float32(1e-5)
    reasons = {t.name: t.reasons for t in ft.changed(before, model).moved}
    assert reasons == {"conv1.weight": ("weight decay",), "layer1.0.conv1.weight": ("momentum",)}


@pytest.mark.slow
def test_stale_gradients_decay_and_nothing_else():
    """fastai's decay of frozen weights that once trained, found in the run's own ledger."""
    learner = small_learner(bn="frozen", weight_decay=0.5)
    learner.fine_tune(1, base_lr=0.1, freeze_epochs=0)
    before, ledger = ft.snapshot(learner), ft.Ledger()  # while everything trains
    plan = learner.plan(0, 0.1, freeze_epochs=1, stale_gradients=True)
    learner.execute(plan, observers=[ledger])
    (proof,) = ledger.reading.proofs
    for changes in (proof, ft.changed(before, learner), ft.changed(before, learner.model)):
        assert set(in_body(changes)) == {("weight decay",)}
        assert changes.diagnosis()[0].startswith(
            "the optimizer moved 19 frozen parameters by weight decay"
        )


def test_how_far_by_hand():
    model = ft.cifar_resnet20(seed=0)
    weight = model.conv1.weight.data
    weight[...] = 0
    weight[0, 0, 0, :2] = 3, 4
    before = ft.snapshot(model)
    weight[0, 0, 0, 1] = 5
    (change,) = ft.changed(before, model).moved
    assert (change.distance, change.largest, change.relative) == (1, 1, 0.2)
    assert change.name == "conv1.weight" and not change.identical


def test_the_largest_change_may_be_downwards():
    before, after = {"w": np.zeros(3)}, {"w": np.array([1.0, -3.0, 2.0])}
    (change,) = Changes.between(before, after, {"w": ()}).moved
    assert change.largest == 3


def test_a_bias_that_was_zero_moves_from_there():
    before, after = {"head.linear.bias": np.zeros(3)}, {"head.linear.bias": np.ones(3)}
    changes = Changes.between(before, after, {"head.linear.bias": ("gradient",)})
    assert "moved from 0" in str(changes) and "by up to" not in str(changes)


def test_one_bit_is_enough_and_the_sign_of_zero_is_one():
    model = ft.cifar_resnet20(seed=0)
    model.bn1.bias.data[0] = 0.0
    before = ft.snapshot(model)
    assert ft.changed(before, model).moved == []
    model.bn1.bias.data[0] = -0.0
    assert [t.name for t in ft.changed(before, model).moved] == ["bn1.bias"]


@pytest.mark.slow
def test_a_weight_that_somebody_wrote_into():
    learner = small_learner(bn="frozen")
    learner.freeze()
    before = ft.snapshot(learner)
    step(learner)
    learner.model.conv1.weight.data[0, 0, 0, 0] += 1
    reasons = {t.name: t.reasons for t in ft.changed(before, learner).moved}
    assert reasons["conv1.weight"] == ("unknown",)


@pytest.mark.slow
def test_a_weight_that_somebody_wrote_into_is_not_called_decayed():
    learner = small_learner(bn="frozen", optimizer="sgd", weight_decay=0.1)
    learner.freeze()
    weight = learner.model.conv1.weight
    weight.grad = np.zeros_like(weight.data)
    before = ft.snapshot(learner)
    step(learner)
    (moved,) = [t for t in ft.changed(before, learner).moved if t.name == "conv1.weight"]
    assert moved.reasons == ("weight decay",)
    weight.data[0] += 1
    (moved,) = [t for t in ft.changed(before, learner).moved if t.name == "conv1.weight"]
    assert moved.reasons == ("unknown",)


def test_another_network_is_refused():
    with pytest.raises(WeightsError, match="other tensors than the snapshot"):
        ft.changed(ft.snapshot(ft.cifar_resnet20(seed=0)), ft.cifar_resnet32(seed=0))


@pytest.mark.slow
def test_columns_and_back():
    learner = small_learner()
    before = ft.snapshot(learner)
    step(learner)
    changes = ft.changed(before, learner)
    names = [t.name for t in changes.tensors]
    assert Changes.from_columns(names, changes.columns(), "") == changes
    assert "<table>" in changes._repr_html_()
