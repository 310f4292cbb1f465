"""The differences between networks, and how they are shown: as text, and as an HTML page with bars
by layer and the first layer's filters as pictures.

Letters: F filters, R S kernel rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tinyft.display import aligned, first_few
from tinyft.errors import ShapeError
from tinyft.inspection.html import Markup, escape, page, picture, table

BAR = 24  # characters of the longest bar in a terminal
BAR_WIDTH = 150  # CSS pixels of the longest bar on a page
FILTERS_WIDTH = 320  # CSS pixels of a picture of filters, about
GREY = 128
FAINTEST = 0.1  # of the strongest filter: a weaker one is dead, and shown as grey

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Move:
    """A change of parameters: `distance` is relative to their norm before, `cosine` is between
    before and after; `identical` says that not a bit changed.
    """

    distance: float
    cosine: float
    identical: bool

    @classmethod
    @np.errstate(all="ignore")  # of a run that diverged the distance is NaN
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

    def __str__(self) -> str:
        return "identical" if self.identical else f"{self.distance:.1e}"

    @property
    def one_minus_cosine(self) -> str:
        """The cosine itself is 1.0000 for every small step. Empty where nothing changed, or where
        an end has no direction.
        """
        return "" if self.identical or math.isnan(self.cosine) else f"{1 - self.cosine:.0e}"


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
    """The changes between two or more snapshots of one network.

    `spans` are the stretches that every list of moves follows: from each snapshot to the next
    and, if there are more than two, from the first to the last. `stages` has the convolutions and
    linear layers of stem, stages and head, each taken together. `similarity` has a linear CKA for
    each span and layer that features_by_layer names; it is empty without pictures. `unmatched` are
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
        lines = [f"{self.arch}: {' -> '.join(self.titles)}", ""]
        moves = [move for layer in self.layers for move in (*layer.moves, *layer.statistics)]
        if moves and all(move.identical for move in moves):
            lines.append("identical: what both have is the same, bit for bit")
        else:
            lines += [*self._stage_lines(), "", *self._layer_lines()]
        if self.similarity:
            rows = [[name, *(f"{v:.3f}" for v in cka)] for name, cka in self.similarity.items()]
            lines += [
                "",
                "do features still find the same pictures alike? 1 yes, 0 no "
                f"(linear CKA on {self.pictures} pictures, unbiased)",
                *aligned([["features of", *self.spans], *rows]),
            ]
        if self.unmatched:
            names = first_few(self.unmatched)
            lines += ["", f"not compared (on one side only, or of another shape): {names}"]
        return "\n".join([*lines, *(f"note: {notice}" for notice in self.notices)])

    def _stage_lines(self) -> list[str]:
        """One line a stage, with a bar for the last span."""
        low, high = bar_range([moves[-1].distance for moves in self.stages.values()])
        rows = [
            [stage, *map(str, moves), "#" * bar_length(moves[-1].distance, low, high, BAR)]
            for stage, moves in self.stages.items()
        ]
        return [
            "how far convolutions and linear layers went, |after - before| / |before|, by stage",
            *aligned([["stage", *self.spans, f"{low:.0e} to {high:.0e}, logarithmic"], *rows]),
        ]

    def _layer_lines(self) -> list[str]:
        """One line a layer: how far it went and turned in each span, in one cell to stay narrow;
        its running statistics and the filters that moved, over all.
        """
        rows = [
            [
                layer.name,
                *(f"{move} {move.one_minus_cosine}".rstrip() for move in layer.moves),
                str(layer.statistics[-1]) if layer.statistics else "",
                _filters_text(layer.filters[-1][:2]) if layer.filters else "",
            ]
            for layer in self.layers
        ]
        header = ["layer", *self.spans, "statistics", "filters that moved most"]
        last = "; statistics and filters: in all" if len(self.spans) > 1 else ""
        title = f"layer by layer, |after - before| / |before| and 1 - cosine{last}"
        return [title, *aligned([header, *rows])]


def ratio_of(moved: float, length: float) -> float:
    """Relative to nothing, any move is infinite, and none is none."""
    return moved / length if length else (math.inf if moved else 0.0)


def _filters_text(filters: Sequence[tuple[int, float]]) -> str:
    """ "12 (0.31), 7 (0.2)": numbers and relative distances"""
    return ", ".join(f"{number} ({distance:.2g})" for number, distance in filters)


def bar_range(distances: Sequence[float]) -> tuple[float, float]:
    """Find the powers of ten around all distances above 0, the ends of a logarithmic scale."""
    positive = [d for d in distances if 0 < d < math.inf] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def bar_length(distance: float, low: float, high: float, most: int) -> int:
    """Scale a distance logarithmically to a bar of 1 to `most`; only 0 and NaN have none."""
    if not distance > 0:
        return 0
    share = math.log(min(distance, high) / low) / math.log(high / low)
    return max(1, round(share * most))


# --------------------------------------------------------------------------------------- as a page


def as_page(diff: Diff) -> str:
    """The whole page."""
    title = f"{diff.arch}: {' → '.join(diff.titles)}"
    return page(title, f"<h1>{escape(title)}</h1>\n{diff_section(diff)}")


def diff_section(diff: Diff, level: int = 2) -> str:
    """The comparison as HTML without a page around it, its headings <h2> or lower."""
    sections = [
        ("How far the weights went", _stages(diff)),
        ("The first layer's filters", _first_filters(diff)),
        ("Layer by layer", _layers(diff)),
        ("Do the features still find the same pictures alike?", _similarity(diff)),
    ]
    parts = [f"<h{level}>{title}</h{level}>\n{body}" for title, body in sections if body]
    if diff.unmatched:
        names = escape(", ".join(diff.unmatched))
        parts.append(f"<p>Not compared (on one side only, or of another shape): {names}</p>")
    return "\n".join([*parts, *(f"<p>{escape(notice)}</p>" for notice in diff.notices)])


def _stages(diff: Diff) -> str:
    low, high = bar_range([move.distance for moves in diff.stages.values() for move in moves])

    def bar(move: Move) -> Markup:
        """A bar and its distance. On a narrow screen the table scrolls: squeezed bars would lie."""
        length = 0 if move.identical else bar_length(move.distance, low, high, BAR_WIDTH)
        return Markup(
            f'<svg style="max-width: none" width="{BAR_WIDTH}" height="14" role="img" '
            f'aria-label="{move}"><rect width="{length}" height="14" rx="2" '
            f'fill="var(--series-1)"/></svg><br>{move}'
        )

    rows = [[stage, *map(bar, moves)] for stage, moves in diff.stages.items()]
    return (
        "<p>|after - before| / |before| of a stage's convolutions and linear layers. Bars are "
        f"logarithmic, from {low:.0e} to {high:.0e}. Where the learning rates grow from stage to "
        "stage, as in the usual recipe, so do the bars.</p>\n" + table(["stage", *diff.spans], rows)
    )


def _first_filters(diff: Diff) -> str:
    before, after, change, enlarged = before_and_after(*diff.first_filters)
    width = before.shape[1] * max(1, FILTERS_WIDTH // before.shape[1])  # whole pixels
    said = "nothing changed" if math.isinf(enlarged) else f"the change, {enlarged:,.0f} times"
    figures = "".join(
        f"<figure>{picture(grid, f'first-layer filters: {caption}', width=width)}"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for grid, caption in ((before, diff.titles[0]), (after, diff.titles[-1]), (change, said))
    )
    return (
        "<p>Each is what it looks for, grey where it does not care; before and after on one scale, "
        f'the change on another.</p>\n<div class="row">{figures}</div>'
    )


def _layers(diff: Diff) -> str:
    rows = [
        [
            layer.name,
            *(cell for move in layer.moves for cell in (str(move), move.one_minus_cosine)),
            str(layer.statistics[-1]) if layer.statistics else "",
            *(map(_filters_text, layer.filters) if layer.filters else [""] * len(diff.spans)),
        ]
        for layer in diff.layers
    ]
    spans = [cell for span in diff.spans for cell in (span, "1 - cosine")]
    filters = [f"filters that moved most, {span}" for span in diff.spans]
    last = " Statistics are those in all." if len(diff.spans) > 1 else ""
    return (
        "<p>How far the weights went, |after - before| / |before|, and how far they turned, one "
        f"minus the cosine between the two.{last}</p>\n"
        + table(["layer", *spans, "statistics", *filters], rows)
    )


def _similarity(diff: Diff) -> str:
    if not diff.similarity:
        return ""
    rows = [[name, *values] for name, values in diff.similarity.items()]
    return (
        f"<p>Linear CKA (Kornblith and others, 2019; unbiased) on {diff.pictures} pictures. 1: "
        "which pictures are alike did not change, whatever the rotation and the scale of the "
        "features.</p>\n" + table(["features of", *diff.spans], rows)
    )


# ---------------------------------------------------------------------------- filters as pictures
#
# Only the first layer looks at colours, so only its filters can be shown as what they look for:
# each is a small picture (R, S, 3), grey where it does not care.


def filter_grid(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Draw all filters side by side in a nearly square grid, its gaps of one pixel transparent.

    Zero is grey, +scale the brightest and -scale the darkest; `scale` has one entry a filter.

    Shapes: weight (F, 3, R, S), scale (F,) -> (rows (R + 1) + 1, columns (S + 1) + 1, 4) uint8
    Raises: ShapeError if the weight is not of a first layer
    """
    if weight.ndim != 4 or weight.shape[1] != 3:
        raise ShapeError(
            f"filter_grid: expected the first layer's weight (F, 3, R, S), got {weight.shape}"
        )
    F, _, R, S = weight.shape
    relative = weight / np.where(scale > 0, scale, 1).reshape(-1, 1, 1, 1)
    tiles = np.rint(GREY + 127 * np.clip(relative, -1, 1)).astype(np.uint8)
    tiles = tiles.transpose(0, 2, 3, 1)  # (F, R, S, 3)
    columns = math.ceil(math.sqrt(F))
    rows = math.ceil(F / columns)
    grid = np.zeros((rows * (R + 1) + 1, columns * (S + 1) + 1, 4), np.uint8)
    for f, tile in enumerate(tiles):
        top, left = f // columns * (R + 1) + 1, f % columns * (S + 1) + 1
        grid[top : top + R, left : left + S, :3] = tile
        grid[top : top + R, left : left + S, 3] = 255  # opaque
    return grid


def before_and_after(
    before: np.ndarray, after: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Draw the filters before and after, on one scale for each filter, so that one that did not
    change looks the same; the differences, on one scale for all, so that the one that moved most
    stands out; and how many times these were enlarged (infinity where nothing changed).

    Shapes: before and after (F, 3, R, S) -> three uint8 pictures
    """
    change = after.astype(np.float64) - before
    scale = np.maximum(*(np.abs(weight).max(axis=(1, 2, 3)) for weight in (before, after)))
    scale = np.maximum(scale, FAINTEST * scale.max())
    most = float(np.abs(change).max())
    return (
        filter_grid(before, scale),
        filter_grid(after, scale),
        filter_grid(change, np.full(len(before), most)),
        float(scale.max()) / most if most else math.inf,
    )
