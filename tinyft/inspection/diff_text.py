"""A comparison of networks as text for a terminal: distances with bars, layers, similarity.

Next: tinyft/inspection/diff_page.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinyft.display import aligned

if TYPE_CHECKING:
    from tinyft.inspection.diff import Diff, Move

BAR = 24  # characters


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
