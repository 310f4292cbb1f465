"""Grad-CAM: finite differences, a network whose answer is known, a learner left untouched."""

import numpy as np
import pytest

from tests.finetune.conftest import bits, pictures, small_learner
from tinyft import backends
from tinyft.engine.tape import no_grad
from tinyft.engine.tensor import Tensor
from tinyft.errors import ShapeError
from tinyft.inspection.report.charts import heat_colours
from tinyft.inspection.report.images import grad_cams, overlay
from tinyft.nn.folding import fold


@pytest.mark.slow
def test_the_weights_are_the_slopes_of_the_logit():
    """By central differences in float64: a feature map raised everywhere by a little."""
    learner = small_learner(dtype="float64")
    images = pictures()[0][:2]
    with no_grad(), backends.use("reference"):
        network = fold(learner.model).network
        features = network.features(learner.input(images)).data
        slope = np.zeros((2, features.shape[3]))
        for c in range(features.shape[3]):
            step = np.zeros(features.shape[3])
            step[c] = 1e-6
            plus, minus = (
                network.head(Tensor.wrap(features + sign * step)).data for sign in (1, -1)
            )
            for n, chosen in enumerate((2, 0)):
                slope[n, c] = (plus - minus)[n, chosen] / 2e-6
    # raising a whole map by s raises the logit by s times the sum of its gradient
    places = features.shape[1] * features.shape[2]
    expected = np.maximum(0, np.einsum("nhwc,nc->nhw", features, slope / places))
    heat = grad_cams(learner, images, np.array([2, 0]))
    assert heat.shape == features.shape[:3] and heat.max() > 0
    assert np.allclose(heat, expected, rtol=1e-3, atol=1e-6)


def linear_learner(feature):
    """Class 0 is as probable as `feature` is strong, by average pooling alone."""
    learner = small_learner(head="linear")
    weight = learner.model.head.linear.weight.data
    weight[...] = 0
    weight[0, feature] = 1
    return learner


def test_behind_an_average_pool_the_map_is_the_feature_itself():
    learner = linear_learner(5)
    images = pictures()[0][:1]
    with no_grad():
        features = fold(learner.model).network.features(learner.input(images)).data
    heat = grad_cams(learner, images, np.array([0]))
    places = features.shape[1] * features.shape[2]
    assert np.allclose(heat[0], features[0, ..., 5] / places, rtol=1e-4)


def test_a_class_that_no_feature_speaks_for_has_a_map_of_zeros():
    heat = grad_cams(linear_learner(5), pictures()[0][:1], np.array([1]))
    assert (heat == 0).all()


@pytest.mark.parametrize("frozen", [True, False])
def test_the_learner_is_left_as_it_was(frozen):
    learner = small_learner()
    learner.freeze_to(-1 if frozen else 0)
    parameters = dict(learner.model.named_parameters())
    before = bits(learner), {n: p.requires_grad for n, p in parameters.items()}
    heat = grad_cams(learner, pictures()[0][:2], np.array([0, 1]))
    assert np.isfinite(heat).all()
    after = bits(learner), {n: p.requires_grad for n, p in parameters.items()}
    assert after == before
    assert all(p.grad is None and p.node is None for p in parameters.values())
    assert learner.model.training


def test_a_picture_does_not_depend_on_its_neighbours():
    learner = small_learner()
    images = pictures()[0][:3]
    together = grad_cams(learner, images, np.array([0, 1, 2]))
    alone = grad_cams(learner, images[1:2], np.array([1]))
    assert np.allclose(together[1], alone[0], rtol=1e-4, atol=1e-6)


def test_the_overlay_is_brightest_where_the_map_is_largest():
    image = np.full((16, 16, 3), 100, np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 2.5
    mixed = overlay(image, heat)
    assert mixed.shape == image.shape and mixed.dtype == np.uint8
    brightness = mixed.sum(axis=2, dtype=int)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert row < 4 and column >= 12
    assert (overlay(image, np.zeros((4, 4))) < 100).all()


def test_the_colours_grow_lighter():
    lightness = heat_colours(np.linspace(0, 1, 20)) @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) > 0).all()


def test_wrong_calls_say_what_was_expected():
    learner = small_learner()
    images = pictures()[0][:2]
    with pytest.raises(ShapeError, match="a class for each"):
        grad_cams(learner, images, np.array([0]))
    with pytest.raises(ValueError, match="classes are 0 to 2"):
        grad_cams(learner, images, np.array([0, 3]))
