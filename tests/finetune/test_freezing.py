"""What freezing freezes: the six recipes of which other libraries leave it to the user to find out.

Counts are of the tensors of a CIFAR ResNet-20's body: 57 parameters and 38 running statistics.
"""

from __future__ import annotations

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import bits, small_data, small_learner
from tinyft.errors import RunError
from tinyft.finetune.groups import digests, prove


def moved_in_body(before: dict[str, bytes], learner: ft.Learner) -> int:
    after = bits(learner)
    return sum(before[n] != after[n] for n in before if not n.startswith("head."))


@pytest.mark.parametrize(
    ("bn", "moved"),
    [
        ("fastai", 76),  # fastai freeze(): scale, shift and statistics of 19 batch norms
        ("torch", 38),  # train_bn=False, and requires_grad=False in PyTorch: statistics
        ("frozen", 0),  # Keras trainable=False
    ],
)
def test_a_frozen_phase_moves_what_the_preset_says(bn, moved):
    learner = small_learner(bn=bn)
    before = bits(learner)
    records = list(learner.steps(learner.plan(0, freeze_epochs=1)))
    assert moved_in_body(before, learner) == moved
    proof = records[-1].proof
    assert len([n for n in proof.moved if not n.startswith("head.")]) == moved
    assert all(not name.startswith("head.") for name in proof.identical)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_frozen_after_training_nothing_moves_by_momentum_or_decay(optimizer):
    learner = small_learner(bn="frozen", optimizer=optimizer, weight_decay=0.1)
    learner.fine_tune(1, freeze_epochs=0)
    before = bits(learner)
    learner.fine_tune(0, freeze_epochs=1)
    assert moved_in_body(before, learner) == 0


def test_stale_gradients_let_frozen_weights_decay_as_in_fastai():
    learner = small_learner(bn="frozen", weight_decay=0.1)
    learner.fine_tune(1, freeze_epochs=0)
    weight = learner.model.conv1.weight.data.copy()
    scale = learner.model.bn1.weight.data.copy()
    plan = learner.plan(0, freeze_epochs=1, stale_gradients=True)
    list(learner.steps(plan))
    shrunk = np.prod(1 - plan.phases[0].lr[:, 0] * 0.1)
    np.testing.assert_allclose(learner.model.conv1.weight.data, weight * shrunk, rtol=1e-6)
    np.testing.assert_array_equal(learner.model.bn1.weight.data, scale)  # norms never decay
    assert "decay on" in str(plan)


@pytest.mark.parametrize("bn", ["fastai", "torch", "frozen"])
def test_no_optimizer_state_and_no_gradient_on_a_frozen_parameter(bn):
    learner = small_learner(bn=bn)
    learner.fine_tune(1)
    learner.freeze()
    assert learner.optimizer.state == {}
    batch = next(learner.data.train_batches(0, learner.preprocess))
    learner.train_step(batch, "by hand")
    for group in learner.groups:
        for name, parameter in group.parameters.items():
            if not parameter.requires_grad:
                assert name not in learner.optimizer.state
                assert parameter.grad is None


def test_unfreezing_trains_everything_and_frozen_statistics_stay():
    learner = small_learner(bn="frozen")
    before = bits(learner)
    records = list(learner.steps(learner.plan(1, freeze_epochs=0)))
    still = {name for name in before if before[name] == bits(learner)[name]}
    body_statistics = {
        name for name in before if "running" in name and not name.startswith("head.")
    }
    assert still == body_statistics == set(records[-1].proof.identical)


def test_groups_are_fastais():
    learner = ft.vision_learner(small_data(), "resnet18", weights=None)
    counts = [(len(group.parameters), group.count) for group in learner.groups]
    assert counts == [
        (30, 683_072),
        (30, 10_493_440),
        (6, 1024 * 2 + 1024 * 512 + 512 * 2 + 512 * 3),
    ]
    assert [group.name for group in learner.groups] == [
        "stem+layer1+layer2",
        "layer3+layer4",
        "head",
    ]


def test_a_tensor_that_moved_against_the_plan_is_an_error():
    learner = small_learner()
    before = digests(learner.model)
    learner.model.conv1.weight.data[0, 0, 0, 0] += 1
    with pytest.raises(RunError, match=r"1 tensors changed .* first conv1\.weight"):
        prove(before, learner.model, {"conv1.weight"})


def test_freeze_to_counts_from_the_end_too():
    learner = small_learner()
    learner.freeze()
    assert [group.frozen for group in learner.groups] == [True, True, False]
    learner.freeze_to(-2)
    assert [group.frozen for group in learner.groups] == [True, False, False]
    learner.unfreeze()
    assert not any(group.frozen for group in learner.groups)


@pytest.mark.parametrize("head", ["fastai", "linear"])
def test_weight_decay_leaves_biases_and_batch_norms_alone(head):
    learner = small_learner(head=head)
    undecayed = set().union(*(group.undecayed for group in learner.groups))
    alone = {n for n, p in learner.model.named_parameters() if p.ndim == 1}
    assert undecayed == alone and any("linear" in name for name in alone) == (head == "linear")
