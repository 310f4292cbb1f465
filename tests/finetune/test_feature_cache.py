"""Kept features change nothing but the time, and are kept only where nothing can change them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.finetune.conftest import bits, small_data, small_learner
from tinyft import nn
from tinyft.engine.tape import no_grad
from tinyft.engine.tensor import Tensor
from tinyft.finetune import feature_cache
from tinyft.nn.layer_table import feature_shape


@pytest.mark.slow
def test_the_bits_are_those_of_a_run_without_it(monkeypatch):
    learner = small_learner(small_data(augment=None), bn="frozen")
    cached = learner.plan(1, freeze_epochs=3)
    assert cached.cached_bytes == [(24 + 9) * 6 * 6 * 64 * 4, 0]
    assert "features of the body are kept" in str(cached)
    records = list(learner.steps(cached))

    monkeypatch.setattr(feature_cache, "BUDGET", 0)
    plain = small_learner(small_data(augment=None), bn="frozen")
    plan = plain.plan(1, freeze_epochs=3)
    assert plan.cached_bytes == [0, 0]
    others = list(plain.steps(plan))
    assert [r.loss for r in records] == [r.loss for r in others]
    assert [r.validation for r in records] == [r.validation for r in others]
    assert bits(learner) == bits(plain)


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "expected"), [(8, 3), (7, 4), (10, 3)])
def test_each_picture_passes_once(batch_size, expected):
    """24 pictures, shuffled: in batches of 7 an epoch leaves out 3, which are in the next."""
    data = small_data(augment=None, batch_size=batch_size)
    learner = small_learner(data, bn="frozen")
    learner.freeze()
    cache, passes = feature_cache.FeatureCache(learner), []

    def body(x):
        passes.append(len(x.data))
        return learner.model.features(x)

    cache.body = body
    for epoch in range(3):
        for batch in data.train_batches(epoch, learner.preprocess):
            with no_grad():
                direct = learner.model.features(learner.input(batch.images)).data
            np.testing.assert_array_equal(cache.features(batch).data, direct)
    assert passes == [batch_size] * expected
    assert sorted(cache.kept) == list(range(24))


@pytest.mark.slow
def test_features_are_forgotten_after_their_phase():
    learner = small_learner(small_data(augment=None), bn="frozen")
    for _ in learner.steps(learner.plan(0, freeze_epochs=2)):
        assert learner.cache
    assert learner.cache is None


@pytest.mark.slow
def test_each_picture_is_judged_by_one_pass_of_the_body(monkeypatch):
    learner = small_learner(small_data(augment=None), bn="frozen")
    pictures = []
    batches = learner.data.valid_batches

    def counting(preprocess):
        for batch in batches(preprocess):
            pictures.extend(batch.ids.tolist())
            yield batch

    monkeypatch.setattr(learner.data, "valid_batches", counting)
    list(learner.steps(learner.plan(1, freeze_epochs=3)))
    n = learner.data.n_valid
    assert pictures == 2 * list(range(n))  # in the head's phase once, then once more


def test_a_broken_validation_is_not_taken_for_a_whole_one():
    learner = small_learner(small_data(augment=None), bn="frozen")
    cache = feature_cache.FeatureCache(learner)
    whole = list(learner.data.valid_batches(learner.preprocess))

    def broken():
        yield whole[0]
        raise OSError

    with pytest.raises(OSError):
        list(cache.valid_features(learner.model.features, broken))
    found = list(cache.valid_features(learner.model.features, lambda: whole))
    assert [len(labels) for _, labels in found] == [len(batch.ids) for batch in whole]


@pytest.mark.parametrize(("bn", "augment"), [("fastai", None), ("torch", None), ("frozen", "crop")])
def test_a_body_or_a_picture_that_changes_is_not_kept(bn, augment):
    learner = small_learner(small_data(augment=augment), bn=bn)
    assert learner.plan(1).cached_bytes == [0, 0]


@pytest.mark.parametrize("arch", ["resnet18", "resnet10s", "cifar_resnet20"])
@pytest.mark.parametrize("side", [32, 45, 64])
def test_the_shape_of_features_is_known_beforehand(arch, side):
    network = nn.cut(nn.build(arch)).eval()
    x = Tensor(np.zeros((1, side, side, 3), np.float32))
    features = network(x).shape[1:]
    nn.attach(network, nn.LinearHead(network.num_features, 2))
    assert feature_shape(network, side) == features
