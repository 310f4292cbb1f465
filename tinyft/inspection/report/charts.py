"""Charts as SVG by hand: lines over steps, a heat map of layers over steps, a confusion matrix, a
reliability diagram.

A few dozen lines for each, where matplotlib would be 60 MB to install for the reports of a package
that needs few others, and would bake its colours in: these follow the page's, light or dark, and
their text stays text. A chart is narrow, so that a phone shows it whole and readable and a wide
screen several in a row. What a place in it stands for is said on hover, by <title>, which needs no
script and works in a notebook.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyft.display import counted
from tinyft.inspection.html import Markup, data_uri, escape

WIDTH, HEIGHT = 400, 210  # of a chart, in CSS pixels; then the margins around its axes
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 30, 34
LETTER = 6.2  # CSS pixels, the width of one at 11 pixels, about
MOST_POINTS = 600  # of a line, more than there are pixels
MOST_STRIPS = 60  # of a chart, places to hover over
MOST_CELLS, MOST_NAMED = 2000, 20  # cells of a confusion matrix, classes that it names
MOST_ROWS = 60  # of a heat map that are high enough for a name each
FRAME = "fill:none;stroke:var(--line)"
SERIES = 4  # colours that html.STYLE has
# Dark to bright in even steps of lightness, so that it also reads in grey: matplotlib's "inferno"
# (version 3.9) at 0, 1/4, 1/2, 3/4 and 1.
HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], float)


@dataclass(frozen=True)
class Line:
    """One line of a chart. NaN and infinite values leave a gap.

    Shapes: x, y (points,)
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    thin: bool = False  # in the background, as a noisy line behind its mean
    dots: bool = False  # each point is marked: they are few, or stand alone


@dataclass(frozen=True)
class Axis:
    """A scale from values to pixels, with ticks at round numbers."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: np.ndarray, start: float, end: float, *, log: bool = False) -> Axis:
        """A scale that holds all finite values (on a logarithmic one, all above 0)."""
        fit = values[np.isfinite(values) & ((values > 0) if log else True)]
        low, high = (float(fit.min()), float(fit.max())) if fit.size else (1.0, 1.0)
        if low == high:  # a constant stands in the middle
            low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
        return cls(low, high, start, end, log)

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        """Places in pixels; NaN for what a logarithmic scale has no place for."""
        position = (self._scaled(values) - self._scaled(self.low)) / (
            self._scaled(self.high) - self._scaled(self.low)
        )
        return self.start + position * (self.end - self.start)

    def _scaled(self, values: np.ndarray | float) -> np.ndarray:
        if not self.log:
            return np.asarray(values, float)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log10(np.asarray(values, float))

    def ticks(self) -> list[float]:
        """About five round numbers within the scale; on a logarithmic one, powers of ten."""
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            if last > first:
                every = math.ceil((last - first + 1) / 6)
                return [10.0**power for power in range(first, last + 1, every)]
            return [self.low, self.high]
        rough = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(rough))
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
        count = math.floor(self.high / step + 1e-9) - math.ceil(self.low / step - 1e-9) + 1
        return [(math.ceil(self.low / step - 1e-9) + i) * step for i in range(count)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    log: bool = False,
    borders: Sequence[tuple[float, str]] = (),
    x_label: str = "step",
) -> Markup:
    """Draw lines over the steps. `borders` are steps at which something begins, and its name."""
    xs = np.concatenate([line.x for line in lines]) if lines else np.zeros(0)
    ys = np.concatenate([line.y for line in lines]) if lines else np.zeros(0)
    x_axis = Axis.over(np.asarray(xs, float), LEFT, WIDTH - RIGHT)
    y_axis = Axis.over(np.asarray(ys, float), HEIGHT - BOTTOM, TOP, log=log)
    parts = [_grid(x_axis, y_axis, x_label), *_borders(x_axis, borders)]
    names = dict.fromkeys(line.name for line in lines)  # a thin line has the name of its mean
    colours = {name: i % SERIES + 1 for i, name in enumerate(names)}
    for line in sorted(lines, key=lambda line: not line.thin):
        kind = "stroke-width:1;opacity:0.35" if line.thin else "stroke-width:2"
        colour = f"var(--series-{colours[line.name]})"
        style = f"fill:none;stroke:{colour};{kind}"
        parts.append(f'<path d="{_path(x_axis, y_axis, line)}" style="{style}"/>')
        places = zip(x_axis(line.x), y_axis(line.y), strict=True) if line.dots else ()
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" style="fill:{colour}"/>'
            for x, y in places
            if np.isfinite(y)
        ]
    parts += _strips(x_axis, lines, borders)
    swatches = [(colours[line.name], line.name) for line in lines if not line.thin]
    legend = "".join(
        f'<span style="color:var(--series-{colour})">&#9644;</span> {escape(name)} '
        for colour, name in dict.fromkeys(swatches)
    )
    return _figure(title, parts, legend if len(colours) > 1 else "")


def heat_map(
    title: str,
    values: np.ndarray,
    rows: Sequence[str],
    columns: tuple[float, float],
    *,
    borders: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Draw values above 0 as colours on a logarithmic scale, dark to bright; cells that are 0,
    NaN or infinite stay empty.

    `columns` are the steps of the first and last column.

    Shapes: values (len(rows), columns) float
    """
    values = np.asarray(values, float)
    positive = np.isfinite(values) & (values > 0)
    scale = Axis.over(values[positive], 0, 1, log=True)
    pixels = np.zeros((*values.shape, 4), np.uint8)
    pixels[positive, :3] = heat_colours(scale(values[positive])).round()
    pixels[positive, 3] = 255
    names = [_short(name) for name in rows]
    left = 14 + LETTER * max(map(len, names), default=0)
    step = max(12.0 if len(rows) <= MOST_ROWS else 4.0, min(26.0, 200 / max(1, len(rows))))
    bottom = TOP + step * len(rows)
    x_axis = Axis(columns[0], columns[1] + 1, left, WIDTH - RIGHT)  # a column reaches to the next
    parts = [
        f'<image href="{data_uri(pixels)}" x="{left:.0f}" y="{TOP}" '
        f'width="{WIDTH - RIGHT - left:.0f}" height="{bottom - TOP:.0f}" '
        'preserveAspectRatio="none" style="image-rendering:pixelated"/>',
        f'<rect x="{left:.0f}" y="{TOP}" width="{WIDTH - RIGHT - left:.0f}" '
        f'height="{bottom - TOP:.0f}" style="{FRAME}"/>',
        *(
            _text(left - 6, TOP + step * (i + 0.5) + 4, name, "end", whole=whole)
            for i, (name, whole) in enumerate(zip(names, rows, strict=True))
            if i % math.ceil(12 / step) == 0  # of low rows every third, so that names have room
        ),
        *_borders(x_axis, borders, bottom),
        *(
            _text(float(x_axis(tick)), bottom + 14, f"{tick:g}", "middle")
            for tick in x_axis.ticks()
            if tick % 1 == 0
        ),
        _text((left + WIDTH - RIGHT) / 2, bottom + 28, "step", "middle"),
    ]
    strip = heat_colours(np.linspace(0, 1, 64))[None].round().astype(np.uint8)
    legend = (
        f'{scale.low:.1e} <img src="{data_uri(strip)}" alt="to" width="120" height="10"> '
        f"{scale.high:.1e} (logarithmic); none: empty"
    )
    return _figure(title, parts, legend, height=bottom + 32)


def matrix_chart(title: str, matrix: np.ndarray, classes: Sequence[str]) -> Markup:
    """Draw how often the class of a row was taken for that of a column, the darker the more often;
    names and numbers of up to MOST_NAMED classes, and on hover those of all. Of more than
    MOST_CELLS cells it draws those of most pictures.

    Shapes: matrix (C, C) int, C = len(classes)
    """
    few = len(classes) <= MOST_NAMED
    names = [_short(f"{i} {name}") if few else "" for i, name in enumerate(classes, 1)]
    left, top = (8 + LETTER * max(map(len, names)), 16.0) if few else (1.0, 1.0)
    cell = min(44, (WIDTH - 1 - left) / len(classes))
    right = left + cell * len(classes)
    end, size = top + cell * len(classes), min(11, 0.6 * cell)
    parts = [f'<path d="M{left:.1f} {top}H{right:.1f}V{end:.1f}H{left:.1f}z" style="{FRAME}"/>']
    for i, name in enumerate(names if few else ()):
        at = (i + 0.5) * cell
        parts.append(_text(left - 5, top + at + 4, name, "end", whole=classes[i]))
        parts.append(_text(left + at, top - 5, f"{i + 1}", "middle", whole=classes[i], size=size))
    totals = np.maximum(1, matrix.sum(axis=1))
    order = np.argsort(-matrix, axis=None, kind="stable")[: np.count_nonzero(matrix)]
    for i, j in zip(*np.unravel_index(order[:MOST_CELLS], matrix.shape), strict=True):
        colour = "var(--good)" if i == j else "var(--bad)"
        opacity = 0.2 + 0.5 * matrix[i, j] / totals[i]  # one of many is to be seen, too
        what = "found" if i == j else f"taken for {classes[j]}"
        words = escape(f"{classes[i]} {what}: {matrix[i, j]} of {totals[i]}")
        x, y = left + cell * j, top + cell * i
        count = (
            f'<text x="{x + cell / 2:.1f}" y="{y + cell / 2 + size / 3:.1f}" text-anchor="middle" '
            f'style="fill:currentColor;font-size:{size:.3g}px">{matrix[i, j]}</text>'
        )
        parts.append(
            f'<g class="mark"><title>{words}</title><rect x="{x:.1f}" y="{y:.1f}" '
            f'width="{cell:.1f}" height="{cell:.1f}" style="fill:{colour};'
            f'fill-opacity:{opacity:.2f}"/>{count if few else ""}</g>'
        )
    left_out = len(order) - MOST_CELLS
    more = f"; {left_out} cells of fewest pictures left out" if left_out > 0 else ""
    return _figure(title, parts, f"rows were shown, columns said{more}", height=end + 2)


def reliability_chart(
    title: str, confidence: np.ndarray, accuracy: np.ndarray, counts: np.ndarray
) -> Markup:
    """Draw accuracy over confidence, one disc a bin, its area as the bin's pictures; on the
    diagonal the network is as sure as it may be.

    Shapes: confidence, accuracy, counts (bins,)
    """
    x_axis = Axis(0, 1, LEFT, WIDTH - RIGHT)
    y_axis = Axis(0, 1, HEIGHT - BOTTOM, TOP)
    parts = [
        _grid(x_axis, y_axis, "confidence"),
        f'<path d="M{LEFT} {HEIGHT - BOTTOM}L{WIDTH - RIGHT} {TOP}" '
        'style="stroke:var(--soft);stroke-dasharray:4 4"/>',
    ]
    for x, y, count in zip(confidence, accuracy, counts, strict=True):
        if count:
            radius = 3 + 11 * math.sqrt(count / max(counts))
            parts.append(
                f'<circle class="mark" cx="{x_axis(x):.1f}" cy="{y_axis(y):.1f}" '
                f'r="{radius:.1f}" style="fill:var(--series-1);fill-opacity:0.6"><title>'
                f"{counted(int(count), 'picture')}: {100 * x:.0f} % sure, {100 * y:.0f} % right"
                "</title></circle>"
            )
    return _figure(title, parts, "accuracy over confidence; the area is the number of pictures")


def _grid(x_axis: Axis, y_axis: Axis, x_label: str) -> str:
    """Give ticks, their lines and their labels."""
    parts = []
    for tick in y_axis.ticks():
        y = float(y_axis(tick))
        line = f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}"
        parts.append(f'<path d="{line}" style="stroke:var(--line)"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{tick:.3g}", "end"))
    for tick in x_axis.ticks():
        parts.append(_text(float(x_axis(tick)), HEIGHT - BOTTOM + 15, f"{tick:g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label, "middle"))
    return "".join(parts)


def _borders(
    x_axis: Axis, borders: Sequence[tuple[float, str]], bottom: float = HEIGHT - BOTTOM
) -> list[str]:
    """A dashed line where something begins, and above it, in the lower of two rows that has room
    for it, its name; if none has, that is said on hover alone.
    """
    parts, ends = [], [0.0, 0.0]  # how far each row is written on
    for place, name in borders:
        x, width = float(x_axis(place)), LETTER * len(name)
        parts.append(
            f'<path d="M{x:.1f} {TOP}V{bottom:.1f}" '
            'style="stroke:var(--soft);stroke-dasharray:2 3"/>'
        )
        start = min(x + 2, WIDTH - width)
        row = next((row for row, end in enumerate(ends) if end <= start), None)
        if row is not None:
            ends[row] = start + width + LETTER
            parts.append(_text(start, TOP - 5 - 13 * row, name, "start"))
    return parts


def _strips(x_axis: Axis, lines: Sequence[Line], borders: Sequence[tuple[float, str]]) -> list[str]:
    """Invisible strips over a chart, at most MOST_STRIPS, which say on hover what is under them: of
    each line the last value there.
    """
    shown = [(line, np.isfinite(line.y)) for line in lines if not line.thin]
    xs = np.unique(np.concatenate([line.x[there] for line, there in shown] or [np.zeros(0)]))
    if not xs.size:
        return []
    groups = np.array_split(xs, min(len(xs), MOST_STRIPS))
    middles = [float(x_axis((a[-1] + b[0]) / 2)) for a, b in itertools.pairwise(groups)]
    edges = itertools.pairwise([x_axis.start, *middles, x_axis.end])
    parts = []
    for group, (left, right) in zip(groups, edges, strict=True):
        first, last = group[0], group[-1]
        said = [f"step {last:g}" if first == last else f"steps {first:g} to {last:g}"]
        said[0] += "".join([f", {name}" for place, name in borders if place <= last][-1:])
        for line, there in shown:
            values = line.y[there & (line.x >= first) & (line.x <= last)]
            said += [f"{line.name}: {values[-1]:.4g}"] if values.size else []
        words = escape("\n".join(said))
        parts.append(
            f'<rect class="strip" x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" '
            f'height="{HEIGHT - BOTTOM - TOP}" fill="transparent"><title>{words}</title></rect>'
        )
    return parts


def _path(x_axis: Axis, y_axis: Axis, line: Line) -> str:
    """A line as an SVG path, pen up over gaps."""
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    if len(x) > MOST_POINTS:
        chosen = np.linspace(0, len(x) - 1, MOST_POINTS).astype(int)
        x, y = x[chosen], y[chosen]
    moves, down = [], False
    for px, py in zip(x_axis(x), y_axis(y), strict=True):
        if np.isfinite(py):
            moves.append(f"{'L' if down else 'M'}{px:.1f} {py:.1f}")
        down = bool(np.isfinite(py))
    return "".join(moves)


def _short(name: str) -> str:
    return name if len(name) <= 22 else name[:10] + "…" + name[-11:]


def _text(x: float, y: float, text: str, anchor: str, *, whole: str = "", size: float = 11) -> str:
    """A line of text; `whole` is what it stands for, said on hover."""
    title = f"<title>{escape(whole)}</title>" if whole not in ("", text) else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
        f'style="fill:var(--soft);font-size:{size:.3g}px">{title}{escape(text)}</text>'
    )


def _figure(title: str, parts: Sequence[str], legend: str, height: float = HEIGHT) -> Markup:
    words = f"<b>{escape(title)}</b><br>{legend or '&nbsp;'}"  # so that charts in a row are level
    return Markup(
        f'<figure class="chart"><figcaption>{words}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" '
        f'role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Colours for values from 0 to 1, dark to bright: (...) -> (..., 3) float, 0 to 255."""
    places = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(values, places, HEAT[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1)
