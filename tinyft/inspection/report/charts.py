"""Charts as SVG by hand: lines over steps, a heat map of layers over steps, a reliability diagram.

A few dozen lines for each, where matplotlib would be 60 MB to install for the reports of a package
that needs few others, and would bake its colours in: these follow the page's, light or dark, and
their text stays text. A chart is narrow, so that a phone shows it whole and readable and a wide
screen several in a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyft.inspection.html import Markup, data_uri, escape

WIDTH, HEIGHT = 440, 240  # of a chart, in CSS pixels; then the margins around its axes
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 18, 34
MOST_POINTS = 600  # of a line, more than there are pixels
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

    def __call__(self, values: np.ndarray) -> np.ndarray:
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
) -> Markup:
    """Draw lines over the steps. `borders` are steps at which something begins, and its name."""
    xs = np.concatenate([line.x for line in lines]) if lines else np.zeros(0)
    ys = np.concatenate([line.y for line in lines]) if lines else np.zeros(0)
    x_axis = Axis.over(np.asarray(xs, float), LEFT, WIDTH - RIGHT)
    y_axis = Axis.over(np.asarray(ys, float), HEIGHT - BOTTOM, TOP, log=log)
    parts = [_grid(x_axis, y_axis, "step"), *_borders(x_axis, borders)]
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
    names = [name if len(name) <= 22 else name[:10] + "…" + name[-11:] for name in rows]
    left = 14 + 6.2 * max(map(len, names), default=0)  # a letter's width at 11 px, about
    step = max(12.0, min(26.0, 200 / max(1, len(rows))))
    bottom = TOP + step * len(rows)
    x_axis = Axis(columns[0], columns[1] + 1, left, WIDTH - RIGHT)  # a column reaches to the next
    parts = [
        f'<image href="{data_uri(pixels)}" x="{left:.0f}" y="{TOP}" '
        f'width="{WIDTH - RIGHT - left:.0f}" height="{bottom - TOP:.0f}" '
        'preserveAspectRatio="none" style="image-rendering:pixelated"/>',
        f'<rect x="{left:.0f}" y="{TOP}" width="{WIDTH - RIGHT - left:.0f}" '
        f'height="{bottom - TOP:.0f}" style="fill:none;stroke:var(--line)"/>',
        *(_text(left - 6, TOP + step * (i + 0.5) + 4, name, "end") for i, name in enumerate(names)),
        *_borders(x_axis, borders, bottom),
        *(_text(x_axis(t), bottom + 14, f"{t:g}", "middle") for t in x_axis.ticks() if t % 1 == 0),
        _text((left + WIDTH - RIGHT) / 2, bottom + 28, "step", "middle"),
    ]
    strip = heat_colours(np.linspace(0, 1, 64))[None].round().astype(np.uint8)
    legend = (
        f'{scale.low:.1e} <img src="{data_uri(strip)}" alt="to" width="120" height="10"> '
        f"{scale.high:.1e} (logarithmic); none: empty"
    )
    return _figure(title, parts, legend, height=bottom + 32)


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
                f'<circle cx="{x_axis(x):.1f}" cy="{y_axis(y):.1f}" r="{radius:.1f}" '
                'style="fill:var(--series-1);fill-opacity:0.6"/>'
            )
    return _figure(title, parts, "accuracy over confidence; the area is the number of pictures")


def _grid(x_axis: Axis, y_axis: Axis, x_label: str) -> str:
    """Ticks, their lines and their labels."""
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
    """A dashed line where something begins, and its name above."""
    parts = []
    for place, name in borders:
        x = float(x_axis(place))
        parts.append(
            f'<path d="M{x:.1f} {TOP}V{bottom:.1f}" '
            'style="stroke:var(--soft);stroke-dasharray:2 3"/>'
        )
        parts.append(_text(x + 2, TOP - 5, name, "start"))
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


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
        f'style="fill:var(--soft);font-size:11px">{escape(text)}</text>'
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
