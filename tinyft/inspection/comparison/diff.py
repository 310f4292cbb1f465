"""Before and after: what training changed, layer by layer and phase by phase.

Two questions are asked of each layer. How far did its weights travel, |after - before| /
|before|, in which direction (the cosine between the two), and which filters most? And does it still
see the same in pictures? Weights can move far without the network seeing anything else, and the
other way round.

The second is answered by linear CKA. From the features that a network computes of n pictures comes
the n x n table of inner products between pictures (a Gram matrix); CKA is the cosine between the
tables of two networks. 1 means that each network finds the same pictures alike, whatever the
rotation and the scale of its features; 0 that the one says nothing about the other. The plain
estimate is useless here: with far more features than pictures (200,000 against 64), two random
tables already have a similarity near 1, since each picture is most like itself. The unbiased one
leaves the diagonal out.

Sources: Kornblith, Norouzi, Lee and Hinton, Similarity of neural network representations revisited
(2019), equation 4; Song et al., Feature selection via dependence maximization (2012), and Nguyen,
Raghu and Kornblith, Do wide and deep networks learn the same things? (2021), for the unbiased
estimate. The centring is Szekely and Rizzo's (2014), which gives the same in two lines.

Letters: N pictures, K features of each, F filters.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tinyft import backends
from tinyft.data.loader import PictureData
from tinyft.data.picture import prepare
from tinyft.engine.tape import no_grad
from tinyft.engine.tensor import Tensor
from tinyft.errors import ShapeError, WeightsError
from tinyft.inspection.comparison.result import Diff, LayerChange, Move, ratio_of
from tinyft.inspection.comparison.snapshots import Snapshot, of_run
from tinyft.nn.layers import conv_norm
from tinyft.nn.resnet import ResNet, stage_of
from tinyft.ops import max_pool2d
from tinyft.weights import Preprocess

PICTURES = 64  # on which features are compared
LEAST_PICTURES = 4  # the unbiased estimate divides by n - 3
FILTERS = 3  # named of each layer; a terminal shows two
_COLUMNS = 1 << 16  # features that are turned into float64 at a time

Span = tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]  # two networks' arrays


def diff_run(
    path: str | os.PathLike[str], data: PictureData | None = None, *, device: str = "auto"
) -> Diff:
    """Compare a run's network phase by phase, from the weights that it began with to its last.

    Raises: RunError if its start cannot be made again
    """
    snapshots, notices = of_run(path)
    changes = compare(snapshots, data, device=device)
    changes.notices.extend(notices)
    return changes


def compare(
    snapshots: Sequence[Snapshot], data: PictureData | None = None, *, device: str = "auto"
) -> Diff:
    """Compare each snapshot to the next, and the first to the last; with `data` also the features
    that they compute of 64 of its pictures.

    Raises: WeightsError if they are not of one architecture, ValueError for fewer than two
    """
    expect_comparable(snapshots)
    spans = _spans([snapshot.arrays for snapshot in snapshots])
    names = ["change"]
    if len(spans) > 1:
        names = [snapshot.title.removeprefix("after ") for snapshot in snapshots[1:]] + ["in all"]
    everything = list(dict.fromkeys(name for s in snapshots for name in s.arrays))
    shapes = {n: {getattr(s.arrays.get(n), "shape", None) for s in snapshots} for n in everything}
    common = [name for name in everything if len(shapes[name]) == 1]  # in the network's order
    seen, notices, similarity = 0, [], {}
    if data is not None:
        pictures = _pictures(data, snapshots[0].preprocess)
        seen = len(pictures)
        if seen < LEAST_PICTURES:
            notices.append(f"{seen} pictures are too few to compare features")
        else:
            similarity = _similarity(snapshots, pictures, device)
    first, last = (snapshots[end].arrays["conv1.weight"].copy() for end in (0, -1))
    return Diff(
        [snapshot.title for snapshot in snapshots],
        names,
        snapshots[0].arch,
        _layers(spans, common),
        _stages(spans, common),
        similarity,
        seen,
        (first, last),
        [name for name in everything if name not in common],
        notices,
    )


def expect_comparable(snapshots: Sequence[Snapshot]) -> None:
    if len(snapshots) < 2:
        raise ValueError(f"a comparison needs two networks; got {len(snapshots)}")
    first = snapshots[0]
    for other in snapshots[1:]:
        if other.arch != first.arch:
            raise WeightsError(
                f"{first.title} is a {first.arch} and {other.title} a {other.arch}; only networks "
                "of one architecture can be compared layer by layer"
            )


def _spans(ends: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Each with the next and, if there are more than two, the first with the last."""
    pairs = list(itertools.pairwise(ends))
    return pairs if len(pairs) == 1 else [*pairs, (ends[0], ends[-1])]


def _moves(spans: Sequence[Span], names: Sequence[str]) -> list[Move]:
    """One move a span, of all these tensors together; none of no tensors."""
    if not names:
        return []
    return [Move.between([(before[n], after[n]) for n in names]) for before, after in spans]


def _layers(spans: Sequence[Span], common: Sequence[str]) -> list[LayerChange]:
    """One entry for each module that has parameters, in the order of the network."""
    parts: dict[str, list[str]] = {}
    for name in common:
        parts.setdefault(name.rpartition(".")[0], []).append(name)
    changes = []
    for layer, names in parts.items():
        statistics = [n for n in names if n.endswith((".running_mean", ".running_var"))]
        weights, matrix = [n for n in names if n not in statistics], f"{layer}.weight"
        filters = []
        if matrix in names and spans[0][0][matrix].ndim > 1:
            filters = [moved_most(before[matrix], after[matrix]) for before, after in spans]
        moves = _moves(spans, weights), _moves(spans, statistics)
        changes.append(LayerChange(layer, *moves, filters))
    return changes


def moved_most(before: np.ndarray, after: np.ndarray) -> list[tuple[int, float]]:
    """The filters whose weights moved furthest relative to their length: (number, distance).

    Shapes: before and after (F, ...): convolutions (F, C, R, S), linear weights (F, C)
    """
    a, b = (x.astype(np.float64).reshape(len(x), -1) for x in (before, after))
    lengths = zip(np.linalg.norm(b - a, axis=1), np.linalg.norm(a, axis=1), strict=True)
    distances = [ratio_of(float(moved), float(length)) for moved, length in lengths]
    order = sorted(range(len(distances)), key=lambda f: -distances[f])
    return [(f, distances[f]) for f in order[:FILTERS] if distances[f] > 0]


def _stages(spans: Sequence[Span], common: Sequence[str]) -> dict[str, list[Move]]:
    """The convolutions and linear layers of stem, stages and head, each taken together.

    Scales and shifts of batch norms are left out: one large scale can hide a whole stage.
    """
    members: dict[str, list[str]] = {}
    for name in common:
        if spans[0][0][name].ndim > 1:
            members.setdefault(stage_of(name), []).append(name)
    return {stage: _moves(spans, names) for stage, names in members.items()}


# ------------------------------------------------------------------------------------- similarity


def _similarity(
    snapshots: Sequence[Snapshot], pictures: np.ndarray, device: str
) -> dict[str, list[float]]:
    """Linear CKA in each span for stem, blocks and head, where all networks have them."""
    device, tables = backends.resolve(device), []
    for snapshot in snapshots:
        model, preprocess = snapshot.network().to(device), snapshot.preprocess
        mean, std = (np.array(v, np.float32) for v in (preprocess.mean, preprocess.std))
        with no_grad(), backends.use(device):
            placed = backends.place(pictures, device)
            x = Tensor.wrap(backends.of(placed).images(placed, mean, std, np.dtype(np.float32)))
            features = features_by_layer(model, x)
            tables.append({name: gram(backends.host(y.data)) for name, y in features})
    return {
        name: [linear_cka(before[name], after[name]) for before, after in _spans(tables)]
        for name in tables[0]
        if all(name in other for other in tables)
    }


def _pictures(data: PictureData, preprocess: Preprocess) -> np.ndarray:
    """Up to 64 pictures (N, S, S, 3) uint8, as for validation, spread evenly over all classes."""
    split = "valid" if data.n_valid >= PICTURES or data.n_valid >= data.n_train else "train"
    ids = data.ids(split)
    order = ids[np.argsort(data.labels[split][ids], kind="stable")]
    chosen = order[np.linspace(0, len(order) - 1, min(PICTURES, len(order))).astype(int)]
    adjusted = data.adjusted(preprocess)
    return np.stack([prepare(data.source(split, int(i)), adjusted) for i in chosen])


def features_by_layer(model: ResNet, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield what the stem, each block and the head (if there is one) return, as `ResNet.forward`
    computes them.

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
    """Take off the diagonal, then what each row and each column has in common."""
    n = len(table)
    off = table - np.diag(np.diag(table))
    rows = off.sum(axis=1) / (n - 2)
    off = off - rows[:, None] - rows[None, :] + off.sum() / ((n - 1) * (n - 2))
    return off - np.diag(np.diag(off))
