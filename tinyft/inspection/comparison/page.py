"""A comparison of networks as one HTML page: bars by layer, filters as pictures, similarity."""

from __future__ import annotations

import math

from tinyft.inspection.comparison.filters import before_and_after
from tinyft.inspection.comparison.result import (
    Diff,
    Move,
    bar_length,
    bar_range,
    filters_text,
    shown,
    turned,
)
from tinyft.inspection.report.page import Markup, escape, page, picture, table

_WIDTH = 150  # of the longest bar, in CSS pixels
_FILTERS = 320  # of a picture of filters, about


def as_page(diff: Diff) -> str:
    """The whole page."""
    title = f"{diff.arch}: {' → '.join(diff.titles)}"
    return page(title, f"<h1>{escape(title)}</h1>\n{diff_section(diff)}")


def diff_section(diff: Diff) -> str:
    """The comparison as HTML without a page around it, for a report that has more to say."""
    parts = [_stages(diff), _first_filters(diff), _layers(diff), _similarity(diff)]
    if diff.unmatched:
        names = escape(", ".join(diff.unmatched))
        parts.append(f"<p>Not compared (on one side only, or of another shape): {names}</p>")
    parts += [f"<p>{escape(notice)}</p>" for notice in diff.notices]
    return "\n".join(part for part in parts if part)


def _stages(diff: Diff) -> str:
    distances = [move.distance for moves in diff.stages.values() for move in moves]
    low, high = bar_range(distances)
    rows = [
        [stage, *(_bar(move, low, high) for move in moves)] for stage, moves in diff.stages.items()
    ]
    return (
        "<h2>How far the weights went</h2>\n"
        "<p>|after - before| / |before| of a stage's convolutions and linear layers. Bars are "
        f"logarithmic, from {low:.0e} to {high:.0e}. Where the learning rates grow from stage to "
        "stage, as in the usual recipe, so do the bars.</p>\n" + table(["stage", *diff.spans], rows)
    )


def _bar(move: Move, low: float, high: float) -> Markup:
    """A bar with its number. On a narrow screen the table scrolls: squeezed bars would lie."""
    length = 0 if move.identical else bar_length(move.distance, low, high, _WIDTH)
    return Markup(
        f'<svg style="max-width: none" width="{_WIDTH}" height="14" role="img" '
        f'aria-label="{shown(move)}"><rect width="{length}" height="14" rx="2" '
        f'fill="var(--series-1)"/></svg><br>{shown(move)}'
    )


def _first_filters(diff: Diff) -> str:
    before, after, change, enlarged = before_and_after(*diff.first_filters)
    width = before.shape[1] * max(1, _FILTERS // before.shape[1])  # whole pixels, or they differ
    said = "nothing changed" if math.isinf(enlarged) else f"the change, {enlarged:,.0f} times"
    figures = "".join(
        f"<figure>{picture(grid, f'first-layer filters: {caption}', width=width)}"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for grid, caption in ((before, diff.titles[0]), (after, diff.titles[-1]), (change, said))
    )
    return (
        "<h2>The first layer's filters</h2>\n<p>Each is what it looks for, grey where it "
        "does not care; before and after on one scale, the change on another.</p>\n"
        f'<div class="row">{figures}</div>'
    )


def _layers(diff: Diff) -> str:
    rows = [
        [
            layer.name,
            *(cell for move in layer.moves for cell in (shown(move), turned(move))),
            shown(layer.statistics[-1]) if layer.statistics else "",
            *(map(filters_text, layer.filters) if layer.filters else [""] * len(diff.spans)),
        ]
        for layer in diff.layers
    ]
    spans = [cell for span in diff.spans for cell in (span, "1 - cosine")]
    filters = [f"filters that moved most, {span}" for span in diff.spans]
    header = ["layer", *spans, "statistics", *filters]
    last = " Statistics are those in all." if len(diff.spans) > 1 else ""
    return (
        "<h2>Layer by layer</h2>\n<p>How far the weights went, |after - before| / |before|, and "
        f"how far they turned, one minus the cosine between the two.{last}</p>\n"
        + table(header, rows)
    )


def _similarity(diff: Diff) -> str:
    if not diff.similarity:
        return ""
    rows = [[name, *values] for name, values in diff.similarity.items()]
    return (
        "<h2>Do the features still find the same pictures alike?</h2>\n"
        f"<p>Linear CKA (Kornblith and others, 2019; unbiased) on {diff.pictures} pictures. 1: "
        "which pictures are alike did not change, whatever the rotation and the scale of the "
        "features.</p>\n" + table(["features of", *diff.spans], rows)
    )
