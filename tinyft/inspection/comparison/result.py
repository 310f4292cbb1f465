"""What differs between networks, and how that reads in a terminal: distances with bars, layers,
similarity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tinyft.display import aligned

BAR = 24  # characters

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Move:
    """How far numbers went: `distance` is relative to their length before, `cosine` is between
    before and after; `identical` says that not a bit changed.
    """

    distance: float
    cosine: float
    identical: bool

    @classmethod
    @np.errstate(all="ignore")  # numbers of a run that diverged: their distance is NaN
    def between(cls, pairs: Sequence[Pair]) -> Move:
        """Of all arrays of (before, after) taken together as one long vector, in float64."""
        dots = np.zeros(4)  # before.before, after.after, before.after, change.change
        for before, after in pairs:
            a, b = (x.astype(np.float64).ravel() for x in (before, after))
            dots += (a @ a, b @ b, a @ b, (b - a) @ (b - a))
        identical = all(a.tobytes() == b.tobytes() for a, b in pairs)
        lengths = math.sqrt(dots[0] * dots[1])
        return cls(
            ratio_of(math.sqrt(dots[3]), math.sqrt(dots[0])),
            float(np.clip(dots[2] / lengths, -1, 1)) if lengths else math.nan,
            identical,
        )


@dataclass(frozen=True)
class LayerChange:
    """One layer: a move for each stretch between two snapshots, of its weights and of its running
    statistics (empty if it has none). `filters` has for each stretch those that moved most:
    (number, relative distance).
    """

    name: str
    moves: list[Move]
    statistics: list[Move]
    filters: list[list[tuple[int, float]]]


@dataclass(frozen=True)
class Diff:
    """What changed between two or more snapshots of one network.

    `spans` are the stretches that every list of moves follows: from each snapshot to the next
    and, if there are more than two, from the first to the last. `stages` has the convolutions and
    linear layers of stem, stages and head, each taken together. `similarity` has one number a span
    for each layer that features_by_layer names; it is empty without pictures. `unmatched` are
    tensors that only one side has or that differ in shape.
    """

    titles: list[str]
    spans: list[str]
    arch: str
    layers: list[LayerChange]
    stages: dict[str, list[Move]]
    similarity: dict[str, list[float]]
    pictures: int
    first_filters: Pair
    unmatched: list[str]
    notices: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return as_text(self)


def ratio_of(moved: float, length: float) -> float:
    """Relative to nothing, any move is infinite, and none is none."""
    return moved / length if length else (math.inf if moved else 0.0)


def as_text(diff: Diff) -> str:
    """Everything that `tinyft diff` prints."""
    lines = [f"{diff.arch}: {' -> '.join(diff.titles)}"]
    if _nothing_moved(diff):
        lines += ["", "identical: what both have is the same, bit for bit"]
    else:
        lines += [*_stage_lines(diff), *_layer_lines(diff)]
    if diff.similarity:
        lines += _similarity_lines(diff)
    if diff.unmatched:
        more = f" and {len(diff.unmatched) - 4} more" if len(diff.unmatched) > 4 else ""
        lines += ["", f"not compared (on one side only, or of another shape): "
                  f"{', '.join(diff.unmatched[:4])}{more}"]  # fmt: skip
    return "\n".join([*lines, *(f"note: {notice}" for notice in diff.notices)])


def _nothing_moved(diff: Diff) -> bool:
    moves = [move for layer in diff.layers for move in (*layer.moves, *layer.statistics)]
    return bool(moves) and all(move.identical for move in moves)


def _stage_lines(diff: Diff) -> list[str]:
    """One line a stage, with a bar for the last span."""
    low, high = bar_range([moves[-1].distance for moves in diff.stages.values()])
    rows = [
        [stage, *map(shown, moves), "#" * bar_length(moves[-1].distance, low, high, BAR)]
        for stage, moves in diff.stages.items()
    ]
    return [
        "",
        "how far convolutions and linear layers went, |after - before| / |before|, by stage",
        *aligned([["stage", *diff.spans, f"{low:.0e} to {high:.0e}, logarithmic"], *rows]),
    ]


def _layer_lines(diff: Diff) -> list[str]:
    """One line a layer: how far it went and turned in each span, in one cell to stay narrow; its
    running statistics and the filters that moved, over all.
    """
    rows = [
        [
            layer.name,
            *(f"{shown(move)} {turned(move)}".rstrip() for move in layer.moves),
            shown(layer.statistics[-1]) if layer.statistics else "",
            filters_text(layer.filters[-1][:2]) if layer.filters else "",
        ]
        for layer in diff.layers
    ]
    header = ["layer", *diff.spans, "statistics", "filters that moved most"]
    last = "; statistics and filters: in all" if len(diff.spans) > 1 else ""
    title = f"layer by layer, |after - before| / |before| and 1 - cosine{last}"
    return ["", title, *aligned([header, *rows])]


def _similarity_lines(diff: Diff) -> list[str]:
    rows = [[name, *(f"{v:.3f}" for v in values)] for name, values in diff.similarity.items()]
    return [
        "",
        "do the features still find the same pictures alike? 1: yes "
        f"(linear CKA on {diff.pictures} pictures, unbiased)",
        *aligned([["features of", *diff.spans], *rows]),
    ]


def shown(move: Move) -> str:
    """A distance, or that nothing changed."""
    return "identical" if move.identical else f"{move.distance:.1e}"


def turned(move: Move) -> str:
    """One minus the cosine, which itself is 1.0000 for every small step; nothing where nothing
    changed or where an end has no direction.
    """
    return "" if move.identical or math.isnan(move.cosine) else f"{1 - move.cosine:.0e}"


def filters_text(filters: Sequence[tuple[int, float]]) -> str:
    """ "12 (0.31), 7 (0.2)": numbers and relative distances"""
    return ", ".join(f"{number} ({distance:.2g})" for number, distance in filters)


def bar_range(distances: Sequence[float]) -> tuple[float, float]:
    """Powers of ten around all finite distances above 0: the ends of a logarithmic scale."""
    positive = [d for d in distances if 0 < d < math.inf] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def bar_length(distance: float, low: float, high: float, most: int) -> int:
    """How much of `most` a bar takes on the logarithmic scale; 0 only for what did not move, or to
    where there are no numbers.
    """
    if not distance > 0:
        return 0
    share = math.log(min(distance, high) / low) / math.log(high / low)
    return max(1, round(share * most))
