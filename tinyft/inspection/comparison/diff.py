"""Before and after: what training changed, layer by layer and phase by phase.

Two questions are asked of each layer. How far did its weights travel, |after - before| /
|before|, in which direction (the cosine between the two), and which filters most? And does it still
see the same in pictures: the similarity of its features (similarity.py)?
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

import numpy as np

from tinyft import backends
from tinyft.data.loader import PictureData
from tinyft.data.prepare import prepare
from tinyft.engine.tape import no_grad
from tinyft.engine.tensor import Tensor
from tinyft.errors import WeightsError
from tinyft.inspection.comparison.result import Diff, LayerChange, Move, ratio_of
from tinyft.inspection.comparison.similarity import (
    LEAST_PICTURES,
    features_by_layer,
    gram,
    linear_cka,
)
from tinyft.inspection.comparison.snapshots import Snapshot, of_run, of_source
from tinyft.weights import Preprocess

PICTURES = 64  # on which features are compared
FILTERS = 3  # named of each layer; a terminal shows two


def diff(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    data: PictureData | None = None,
    *,
    device: str = "auto",
) -> Diff:
    """What differs between two networks: files of any readable format, learners, or runs (their
    last). With `data` their features on 64 of its pictures are compared too.

    Raises: WeightsError if they are not of one architecture or cannot be read
    """
    pair = [of_source(source) for source in (before, after)]
    return compare(pair, data, device=device)


def diff_run(
    path: str | os.PathLike[str], data: PictureData | None = None, *, device: str = "auto"
) -> Diff:
    """What a run changed, phase by phase: from the weights that it began with to its last.

    Raises: RunError if its start cannot be made again
    """
    snapshots, notices = of_run(path)
    found = compare(snapshots, data, device=device)
    found.notices.extend(notices)
    return found


def compare(
    snapshots: Sequence[Snapshot], data: PictureData | None = None, *, device: str = "auto"
) -> Diff:
    """What changed from snapshot to snapshot, and from the first to the last.

    Raises: WeightsError if they are not of one architecture, ValueError for fewer than two
    """
    expect_comparable(snapshots)
    spans = list(itertools.pairwise(range(len(snapshots))))
    names = ["change"]
    if len(spans) > 1:
        names = [snapshots[after].title.removeprefix("after ") for _, after in spans] + ["in all"]
        spans.append((0, len(snapshots) - 1))
    common, unmatched = _common(snapshots)
    pictures = _pictures(data, snapshots[0].preprocess) if data is not None else None
    notices, similarity = [], {}
    if pictures is not None and len(pictures) < LEAST_PICTURES:
        notices.append(f"{len(pictures)} pictures are too few to compare features")
    elif pictures is not None:
        similarity = _similarity(snapshots, spans, pictures, device)
    ends = snapshots[0].arrays["conv1.weight"], snapshots[-1].arrays["conv1.weight"]
    return Diff(
        [snapshot.title for snapshot in snapshots],
        names,
        snapshots[0].arch,
        _layers(snapshots, spans, common),
        _stages(snapshots, spans, common),
        similarity,
        0 if pictures is None else len(pictures),
        (ends[0].copy(), ends[1].copy()),
        unmatched,
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


def _common(snapshots: Sequence[Snapshot]) -> tuple[list[str], list[str]]:
    """The tensors that all have in one shape, in the order of the network, and the others."""
    everything = list(dict.fromkeys(name for s in snapshots for name in s.arrays))
    shapes = {n: {getattr(s.arrays.get(n), "shape", None) for s in snapshots} for n in everything}
    common = [n for n in everything if len(shapes[n]) == 1]
    return common, [n for n in everything if n not in common]


def _moves(
    snapshots: Sequence[Snapshot], spans: Sequence[tuple[int, int]], names: Sequence[str]
) -> list[Move]:
    """One move a span, of all these tensors together."""
    if not names:
        return []
    return [
        Move.between([(snapshots[a].arrays[n], snapshots[b].arrays[n]) for n in names])
        for a, b in spans
    ]


def _layers(
    snapshots: Sequence[Snapshot], spans: Sequence[tuple[int, int]], common: Sequence[str]
) -> list[LayerChange]:
    """One entry for each module that has parameters, in the order of the network."""
    parts: dict[str, list[str]] = {}
    for name in common:
        parts.setdefault(name.rpartition(".")[0], []).append(name)
    changes = []
    for layer, names in parts.items():
        weights = [n for n in names if not _is_statistic(n)]
        statistics = [n for n in names if _is_statistic(n)]
        matrix = f"{layer}.weight"
        has_filters = matrix in names and snapshots[0].arrays[matrix].ndim > 1
        changes.append(
            LayerChange(
                layer,
                _moves(snapshots, spans, weights),
                _moves(snapshots, spans, statistics),
                [
                    moved_most(snapshots[a].arrays[matrix], snapshots[b].arrays[matrix])
                    for a, b in spans
                    if has_filters
                ],
            )
        )
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


def _stages(
    snapshots: Sequence[Snapshot], spans: Sequence[tuple[int, int]], common: Sequence[str]
) -> dict[str, list[Move]]:
    """The convolutions and linear layers of stem, stages and head, each taken together.

    Scales and shifts of batch norms are left out: one large scale can hide a whole stage.
    """
    members: dict[str, list[str]] = {}
    for name in common:
        if snapshots[0].arrays[name].ndim > 1:
            first = name.split(".")[0]
            members.setdefault("stem" if first == "conv1" else first, []).append(name)
    return {stage: _moves(snapshots, spans, names) for stage, names in members.items()}


def _similarity(
    snapshots: Sequence[Snapshot],
    spans: Sequence[tuple[int, int]],
    pictures: np.ndarray,
    device: str,
) -> dict[str, list[float]]:
    """One number a span for stem, blocks and head, where all networks have them."""
    tables = [_grams(snapshot, pictures, device) for snapshot in snapshots]
    return {
        name: [linear_cka(tables[a][name], tables[b][name]) for a, b in spans]
        for name in tables[0]
        if all(name in other for other in tables)
    }


def _grams(snapshot: Snapshot, pictures: np.ndarray, device: str) -> dict[str, np.ndarray]:
    """The Gram matrix of each layer's features, (N, N)."""
    device, preprocess = backends.resolve(device), snapshot.preprocess
    model = snapshot.network().to(device)
    with no_grad(), backends.use(device):
        pictures = backends.place(pictures, device)
        mean, std = (np.array(v, np.float32) for v in (preprocess.mean, preprocess.std))
        x = Tensor.wrap(backends.of(pictures).images(pictures, mean, std, np.dtype(np.float32)))
        return {name: gram(backends.host(y.data)) for name, y in features_by_layer(model, x)}


def _pictures(data: PictureData, preprocess: Preprocess) -> np.ndarray:
    """Up to 64 pictures (N, S, S, 3) uint8, as for validation, spread evenly over all classes."""
    split = "valid" if data.n_valid >= PICTURES or data.n_valid >= data.n_train else "train"
    order = np.argsort(data.labels[split], kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(PICTURES, len(order))).astype(int)]
    adjusted = data.adjusted(preprocess)
    return np.stack([prepare(data.source(split, int(i)), adjusted) for i in chosen])


def _is_statistic(name: str) -> bool:
    return name.endswith((".running_mean", ".running_var"))
