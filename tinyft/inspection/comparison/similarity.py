"""How alike two networks' features are: linear CKA on the same pictures.

Weights can move far without the network seeing anything else, and the other way round. CKA compares
what two networks make of the same n pictures: from the features of each, the n x n table of inner
products between pictures (a Gram matrix), and then the cosine between the two tables. 1 means that
each network finds the same pictures alike, whatever the rotation and the scale of its features;
0 that the one says nothing about the other.

The plain estimate is useless here: with far more features than pictures (200,000 against 64), two
random tables already have a similarity near 1, since each picture is most like itself. The unbiased
one leaves the diagonal out.

Sources: Kornblith, Norouzi, Lee and Hinton, Similarity of neural network representations revisited
(2019), equation 4; Song et al., Feature selection via dependence maximization (2012), and Nguyen,
Raghu and Kornblith, Do wide and deep networks learn the same things? (2021), for the unbiased
estimate. The centring is Szekely and Rizzo's (2014), which gives the same number in two lines.

Letters: N pictures, K features of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from tinyft.engine.tensor import Tensor
from tinyft.errors import ShapeError
from tinyft.nn.layers import conv_norm
from tinyft.nn.resnet import ResNet
from tinyft.ops import max_pool2d

LEAST_PICTURES = 4  # the unbiased estimate divides by n - 3
_COLUMNS = 1 << 16  # features that are turned into float64 at a time


def features_by_layer(model: ResNet, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What the stem, each block and the head (if there is one) return, one after the other.

    The steps are those of `ResNet.forward`.

    Shapes: x (N, H, W, 3); features (N, h, w, C), of the head (N, classes)
    """
    x = conv_norm(model.conv1, model.bn1, x, relu=True)
    if model.has_pool:
        x = max_pool2d(x, kernel=3, stride=2, padding=1)
    yield "stem", x
    for stage in model.stages:
        blocks = dict(getattr(model, stage).named_modules())
        for number in [name for name in blocks if name.isdigit()]:
            x = blocks[number](x)
            yield f"{stage}.{number}", x
    if model.head:
        yield "head", model.head(x)


def gram(features: np.ndarray) -> np.ndarray:
    """The inner products between the pictures' features, in float64: (N, ...) -> (N, N).

    Each feature's mean over the pictures is taken off first. That does not change the similarity;
    it spares the digits that a common offset would cost.
    """
    flat = features.reshape(len(features), -1)  # (N, K)
    total = np.zeros((len(flat), len(flat)))
    for first in range(0, flat.shape[1], _COLUMNS):
        part = flat[:, first : first + _COLUMNS].astype(np.float64)
        part -= part.mean(axis=0)
        total += part @ part.T
    return total


def linear_cka(gram_a: np.ndarray, gram_b: np.ndarray) -> float:
    """The similarity of two networks' features, from -1 to 1, from their Gram matrices (N, N).

    NaN where a network's features do not differ between pictures.

    Raises: ShapeError for fewer than 4 pictures or unequal numbers of them
    """
    if gram_a.shape != gram_b.shape or len(gram_a) < LEAST_PICTURES:
        raise ShapeError(
            f"linear_cka: expected two (N, N) tables of the same N >= {LEAST_PICTURES} pictures; "
            f"got {gram_a.shape} and {gram_b.shape}"
        )
    a, b = _centred(gram_a), _centred(gram_b)
    sizes = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / sizes if sizes > 0 else math.nan


def _centred(table: np.ndarray) -> np.ndarray:
    """The table without its diagonal, from which what each row and column has in common is taken
    off.
    """
    n = len(table)
    off = table - np.diag(np.diag(table))
    rows = off.sum(axis=1) / (n - 2)
    off = off - rows[:, None] - rows[None, :] + off.sum() / ((n - 1) * (n - 2))
    return off - np.diag(np.diag(off))
