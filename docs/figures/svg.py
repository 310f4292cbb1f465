"""Figures as SVG text: what draw.py draws with.

Colours have two values and follow the reader's setting, light or dark, by `prefers-color-scheme`; a
figure brings its own background, since the page around it may decide otherwise. Text stays text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from tinyft.inspection.html import data_uri

WIDTH = 480  # in the figure's own pixels; a page shows them larger, a phone smaller

# name: light, dark. GitHub's own, whose contrast is known.
COLOURS = {
    "paper": ("#ffffff", "#0d1117"),
    "panel": ("#eef1f4", "#21262d"),
    "line": ("#c4ccd4", "#3d444d"),
    "soft": ("#59636e", "#9198a1"),
    "ink": ("#1f2328", "#e6edf3"),
    "blue": ("#0969da", "#58a6ff"),
    "orange": ("#bc4c00", "#f0883e"),
    "green": ("#1a7f37", "#3fb950"),
}


def style() -> str:
    """A rule for each colour as fill (`f-`) and as stroke (`s-`), and for the dark scheme."""
    light, dark = (
        "".join(
            f".f-{name}{{fill:{pair[i]}}}.s-{name}{{stroke:{pair[i]}}}"
            for name, pair in COLOURS.items()
        )
        for i in (0, 1)
    )
    return (
        "text{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif}"
        "path{fill:none}image{image-rendering:pixelated}"
        f"{light}@media (prefers-color-scheme:dark){{{dark}}}"
    )


class Figure:
    """A drawing of WIDTH by `height` pixels, and its text for whoever cannot see it."""

    def __init__(self, height: int, title: str, description: str):
        self.height, self.title, self.description = height, title, description
        self.parts: list[str] = []
        self.rect(0, 0, WIDTH, height, fill="paper", radius=6)
        self.text(16, 27, title, size=16, bold=True)

    def text(
        self, x: float, y: float, text: str, *,
        colour: str = "ink", size: int = 13, anchor: str = "start", bold: bool = False,
    ) -> None:  # fmt: skip
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="f-{colour}" font-size="{size}"{weight}'
            f' text-anchor="{anchor}">{escape(text, quote=False)}</text>'
        )

    def lines(self, x: float, y: float, texts: Iterable[str], **options) -> None:
        """Texts below each other, as far apart as text of 13 pixels wants to be."""
        for i, text in enumerate(texts):
            self.text(x, y + 18 * i, text, **options)

    def rect(
        self, x: float, y: float, width: float, height: float, *,
        fill: str | None = None, stroke: str | None = None, radius: float = 0, line: float = 1.5,
    ) -> None:  # fmt: skip
        classes = " ".join(f"{k}-{v}" for k, v in (("f", fill), ("s", stroke)) if v)
        more = "" if fill else ' fill="none"'
        more += f' stroke-width="{line}"' if stroke else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
            f' rx="{radius}" class="{classes}"{more}/>'
        )

    def path(
        self, points: Sequence[tuple[float, float]], colour: str, *,
        width: float = 1.5, dash: str = "", arrow: bool = False,
    ) -> None:  # fmt: skip
        """A line through points; `arrow`: with a head at its end."""
        commands = "".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        shape = f'class="s-{colour}" stroke-width="{width}"'
        self.parts.append(f'<path d="{commands}" {shape}{dashed} stroke-linejoin="round"/>')
        if arrow:
            end, before = np.array(points[-1], float), np.array(points[-2], float)
            along = (end - before) / np.linalg.norm(end - before) * 7
            aside = np.array([-along[1], along[0]]) * 0.6
            (ax, ay), (bx, by) = end - along + aside, end - along - aside
            head = f"M{ax:.1f} {ay:.1f}L{end[0]:.1f} {end[1]:.1f}L{bx:.1f} {by:.1f}"
            self.parts.append(f'<path d="{head}" {shape} stroke-linejoin="round"/>')

    def area(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        """The inside of a closed line."""
        corners = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path d="M{corners}Z" class="f-{colour}"/>')

    def disc(self, x: float, y: float, radius: float, colour: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="f-{colour}"/>')

    def image(
        self, x: float, y: float, side: float, pixels: np.ndarray, *, photo: bool = False
    ) -> None:
        """A square picture: uint8 (H, W, 3), or numbers (H, W) as `greys` makes them."""
        smooth = ' style="image-rendering:auto"' if photo else ""
        self.parts.append(
            f'<image x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}"{smooth}'
            f' href="{data_uri(pixels, lossless=not photo)}"/>'
        )

    def __str__(self) -> str:
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}"'
            f' width="{WIDTH * 5 // 4}" height="{self.height * 5 // 4}" role="img">\n'
            f"<title>{escape(self.title)}</title>\n<desc>{escape(self.description)}</desc>\n"
            f"<style>{style()}</style>\n{body}\n</svg>\n"
        )


def greys(values: np.ndarray, largest: float | None = None) -> np.ndarray:
    """Numbers (H, W) as a picture: 0 is middle grey, `largest` white, -`largest` black, in 32 steps
    (which pack well).
    """
    largest = np.abs(values).max() if largest is None else largest
    level = np.clip(values / largest, -1, 1)
    grey = (np.round((level + 1) * 15.5) * (255 / 31)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
