"""Grad-CAM: where in the picture the evidence for a class stands.

The body turns a picture into a small map of features, 7 x 7 for 224 pixels; the head turns the map
into logits. The gradient of one class's logit with respect to the map says how much the logit
would rise if a feature at a place were stronger. Its mean over all places is the weight of each
feature, and the weighted sum of the features, where it is positive, is the heat map:

    weight[c]  = mean over h, w of  d logit / d features[h, w, c]
    map[h, w]  = max(0, sum over c of  weight[c] * features[h, w, c])

The tape does the work: the features are made a leaf that requires a gradient, and `backward` starts
at the logit. The learner is not touched for it, frozen or not: all of this happens in the folded
copy that evaluation runs, none of whose parameters requires a gradient.

Letters: N pictures, S the input's side, h w the features' rows and columns, C features.

Source: Selvaraju et al., Grad-CAM: visual explanations from deep networks via gradient-based
localization (2017), equations 1 and 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinyft import backends
from tinyft.engine.tape import no_grad
from tinyft.engine.tensor import Tensor
from tinyft.errors import ShapeError
from tinyft.nn.folding import fold

if TYPE_CHECKING:
    from tinyft.finetune import Learner

# Dark to bright in even steps of lightness, so that it also reads in grey: matplotlib's "inferno"
# (version 3.9) at 0, 1/4, 1/2, 3/4 and 1.
HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], float)
HEAT_SHARE = 0.55  # of a colour, in a picture with its heat map over it


def grad_cams(learner: Learner, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The heat map of each picture for the class given with it.

    Compare the places of one map, not maps with each other: their scale is that of the gradients.

    Shapes: images (N, S, S, 3) uint8 as from `prepare`; classes (N,) int; out (N, h, w) float32
    Raises: ShapeError, ValueError for a class that the learner does not have
    """
    classes = np.asarray(classes)
    if images.ndim != 4 or classes.shape != images.shape[:1]:
        raise ShapeError(
            f"grad_cams: expected pictures (N, S, S, 3) and a class for each, got {images.shape} "
            f"and {classes.shape}"
        )
    n = len(learner.classes)
    if classes.size and not 0 <= classes.min() <= classes.max() < n:
        raise ValueError(f"grad_cams: classes are 0 to {n - 1}; got {classes.tolist()}")
    with backends.use(learner.device):
        network = fold(learner.model).network
        with no_grad():
            features = network.features(learner.input(images)).data  # (N, h, w, C)
        leaf = Tensor.wrap(features)
        leaf.requires_grad = True
        logits = network.head(leaf)  # (N, classes); evaluation: no picture sees another
        chosen = np.zeros(logits.shape, logits.dtype)
        chosen[np.arange(len(classes)), classes] = 1
        logits.backward(backends.beside(chosen, logits.data))
    weight = backends.host(leaf.grad).mean(axis=(1, 2))  # (N, C)
    heat = np.einsum("nhwc,nc->nhw", backends.host(features), weight)
    return np.maximum(0, heat).astype(np.float32)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The picture with its heat map over it, brightest where the map is largest.

    A map of zeros gives its darkest colour: no place speaks for the class.

    Shapes: image (S, S, 3) uint8; heat (h, w) float, not negative; out (S, S, 3) uint8
    """
    from PIL import Image

    largest = float(heat.max())
    scaled = heat / largest if largest > 0 else heat
    small = Image.fromarray(scaled.astype(np.float32))
    large = np.asarray(small.resize(image.shape[1::-1], Image.Resampling.BILINEAR))  # (S, S)
    mixed = HEAT_SHARE * heat_colours(large) + (1 - HEAT_SHARE) * image
    return mixed.round().astype(np.uint8)


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Colours for numbers from 0 to 1, dark to bright: (...) -> (..., 3) float, 0 to 255."""
    places = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(values, places, HEAT[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1)
