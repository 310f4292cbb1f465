"""Similarity of features: what CKA must not see, what it must, and why it is the unbiased one."""

import numpy as np
import pytest

import tinyft as ft
from tinyft.errors import ShapeError
from tinyft.inspection.comparison.diff import features_by_layer, gram, linear_cka
from tinyft.nn.head import FastaiHead, attach, cut

RNG = np.random.default_rng(0)


def similarity(x, y):
    return linear_cka(gram(x), gram(y))


def plain_cka(x, y):
    """The biased estimate, by Kornblith's formula on the features themselves."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    inner = [np.linalg.norm(a.T @ b) for a, b in ((x, y), (x, x), (y, y))]
    return inner[0] ** 2 / (inner[1] * inner[2])


def song_hsic(x, y):
    """The unbiased HSIC as it is printed in Nguyen, Raghu and Kornblith (2021), equation 3."""
    n, one = len(x), np.ones(len(x))
    k, t = (table - np.diag(np.diag(table)) for table in (x @ x.T, y @ y.T))
    product = one @ k @ one * (one @ t @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ t) + product - 2 / (n - 2) * one @ k @ t @ one) / (n * (n - 3))


def test_rotation_scale_and_offset_of_features_change_nothing():
    x = RNG.normal(size=(20, 30))
    rotation, _ = np.linalg.qr(RNG.normal(size=(30, 30)))
    assert similarity(x, 7 * x @ rotation + 100) == pytest.approx(1)


def test_it_is_the_published_formula():
    x = RNG.normal(size=(20, 30))
    y = x[:, :8] @ RNG.normal(size=(8, 50))
    expected = song_hsic(x, y) / np.sqrt(song_hsic(x, x) * song_hsic(y, y))
    assert 0.1 < expected < 0.9
    assert similarity(x, y) == pytest.approx(expected)


@pytest.mark.slow
def test_with_more_features_than_pictures_only_the_unbiased_estimate_tells_noise_from_noise():
    x, y = RNG.normal(size=(2, 64, 5000))
    assert plain_cka(x, y) > 0.95
    assert abs(similarity(x, y)) < 0.1  # of 2016 pairs: 0.02 or so


def test_features_that_do_not_differ_have_no_similarity():
    assert np.isnan(similarity(np.ones((5, 3)), RNG.normal(size=(5, 3))))


def test_a_common_offset_costs_no_digits():
    x = RNG.normal(size=(8, 40)).astype(np.float32)
    np.testing.assert_allclose(gram(x.astype(np.float64) + 1e6), gram(x), atol=1e-6)


@pytest.mark.parametrize("tables", [(np.eye(3), np.eye(3)), (np.eye(5), np.eye(6))])
def test_too_few_or_unequal_pictures_are_refused(tables):
    with pytest.raises(ShapeError, match="of the same N >= 4 pictures"):
        linear_cka(*tables)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["cifar_resnet20", "resnet10s", "resnet50"])
def test_the_walk_through_the_layers_is_the_networks_forward(arch):
    body = cut(ft.nn.build(arch, seed=1))
    model = attach(body, FastaiHead(body.num_features, 3)).eval()
    x = ft.Tensor(RNG.normal(size=(2, 33, 33, 3)).astype(np.float32))
    with ft.no_grad(), ft.backends.use("reference"):
        found = dict(features_by_layer(model, x))
        blocks = sum(len(getattr(model, stage)._children) for stage in model.stages)
        assert len(found) == 1 + blocks + 1
        last = list(found)[-2]
        assert found[last].data.tobytes() == model.features(x).data.tobytes()
        assert found["head"].data.tobytes() == model(x).data.tobytes()
