"""HTML by hand: one page in the project's common style, tables, and pictures inside the page.

A page is one file that asks for nothing from outside: styles, scripts and pictures stand in it, and
its Content-Security-Policy forbids the browser to load anything else. So it can be sent to
somebody, and opened in ten years. It reads on a phone and on a wide screen, in light and in dark.
"""

from __future__ import annotations

import base64
import html
import io
import numbers
from collections.abc import Sequence

import numpy as np

from tinyft.errors import ShapeError

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

# Colours are variables, so that light and dark differ in one place. --series-1 to --series-4 are
# for lines: told apart by colour-blind readers, and darker or lighter than the ground by 3:1.
STYLE = """
:root { color-scheme: light dark;
  --ground: #fcfcfa; --panel: #f2f2ee; --line: #d5d5cf; --text: #20211f; --soft: #63645f;
  --accent: #1763a8; --good: #17714a; --bad: #b3261e;
  --series-1: #1763a8; --series-2: #c05a00; --series-3: #17805a; --series-4: #9148b0; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #171816; --panel: #21231f; --line: #3c3e39; --text: #e8e8e2; --soft: #a3a49d;
  --accent: #7db8f0; --good: #6fcf9f; --bad: #ff8a80;
  --series-1: #6db1f2; --series-2: #f29b4b; --series-3: #5cc79a; --series-4: #cb93e6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 0.6rem clamp(0.8rem, 3vw, 2.5rem) 2rem;
  background: var(--ground); color: var(--text); font: 1rem/1.55 system-ui, sans-serif;
  overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.6rem 0 0.5rem; }
h2 { font-size: 1.25rem; margin: 1.6rem 0 0.5rem; padding-top: 0.7rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.03rem; margin: 1.5rem 0 0.4rem; }
p, ul, ol { max-width: 46rem; margin-block: 0.7rem; }
a { color: var(--accent); }
code, pre { font: 0.86rem/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
pre, .wide { overflow-x: auto; /* a shadow at a side where there is more */
  background: linear-gradient(90deg, var(--on) 50%, transparent) 0 / 2rem no-repeat local,
    linear-gradient(-90deg, var(--on) 50%, transparent) 100% / 2rem no-repeat local,
    linear-gradient(90deg, var(--soft), transparent) 0 / 0.5rem no-repeat,
    linear-gradient(-90deg, var(--soft), transparent) 100% / 0.5rem no-repeat var(--on); }
.wide { --on: var(--ground); margin: 0.6rem 0; }
pre { --on: var(--panel); border: 1px solid var(--line); padding: 0.7rem 0.9rem; }
table { border-collapse: collapse; font-size: 0.9rem; width: max-content; }
th, td { max-width: min(26rem, 50vw); text-align: left; vertical-align: top;
  padding: 0.25rem 0.9rem 0.25rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
figure { margin: 0.8rem 0; }
figcaption { color: var(--soft); font-size: 0.88rem; max-width: 46rem; }
img { max-width: 100%; height: auto; border-radius: 3px; }
img.enlarged { image-rendering: pixelated; }
.soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
.row { display: flex; flex-wrap: wrap; gap: 1rem 1.4rem; }
.row > * { min-width: 0; max-width: 100%; } /* a wide table scrolls, the page does not */
svg { max-width: 100%; height: auto; }
.chart { flex: 1 1 24rem; max-width: 30rem; min-width: 0; margin: 0.6rem 0; }
.chart svg { display: block; width: 100%; }
.strip:hover { fill: var(--soft); fill-opacity: 0.15; } .mark:hover { stroke: var(--text); }
.tile { flex: 1 1 8rem; max-width: 20rem; padding: 0.5rem 1rem; background: var(--panel);
  border-radius: 8px; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; }
.cut { display: inline-block; max-width: min(12rem, 32vw); overflow: hidden; white-space: nowrap;
  text-overflow: ellipsis; vertical-align: bottom; } /* of which a title says all */
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); }
.cards figure { margin: 0; min-width: 0; max-width: 22rem; } .cards .cut { max-width: 75%; }
p.cut, figcaption.cut { max-width: 100%; }
.cards img { display: block; width: 100%; }
.views { display: grid; grid-template-columns: 2fr 1fr; gap: 4px; max-width: 19rem; }
.views img:first-child { grid-row: span 2; }
.tight table { font-size: 0.85rem; line-height: 1.2; } .tight > :first-child { flex: 0 1 24rem; }
.tight td, .tight th { padding: 0.15rem 0.4rem; vertical-align: bottom; }
summary { cursor: pointer; padding: 0.5rem 0; } summary h2 { display: inline; }
.fold { border-top: 1px solid var(--line); } .fold h2 { font-size: 1.1rem; border: 0; }
@media print { body { max-width: none; } h2 { break-after: avoid; }
  details::details-content { content-visibility: visible; } }
"""


class Markup(str):
    """Text that is HTML already: `escape` leaves it as it is."""


def escape(text: object) -> Markup:
    """Escape any text so that a browser shows it as it is; Markup is returned unchanged."""
    return text if isinstance(text, Markup) else Markup(html.escape(str(text)))


def cut(text: object) -> Markup:
    """Text that ends in an ellipsis where it has no room, and says all on hover."""
    return Markup(f'<span class="cut" title="{escape(text)}">{escape(text)}</span>')


def page(title: str, body: str, script: str = "", *, policy: str = POLICY) -> str:
    """A whole page: `title` is text, `body` is HTML, `script` is JavaScript that runs at its end,
    `policy` says what the browser may load.

    Write it as UTF-8.
    """
    # Inside a script only its own end tag is special; in a JavaScript string \\/ is /.
    code = script.replace("</script", "<\\/script")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
{f"<script>{code}</script>" if script else ""}
</body>
</html>
"""


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    """A table that scrolls sideways where the screen is narrow. Numbers stand to the right, with
    four digits where they are not whole; None is an empty cell, and Markup stays HTML.

    Raises: ShapeError if a row has not as many cells as the header
    """
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise ShapeError(
                f"table: row {i} has {len(row)} cells, the header {len(header)}; give each column "
                "a cell (None is an empty one)"
            )
    # A column is numeric if it holds numbers and nothing else but empty cells.
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    numeric = [
        any(map(_is_number, column)) and all(c is None or _is_number(c) for c in column)
        for column in columns
    ]
    head = _row("th", header, numeric)
    body = "\n".join(_row("td", row, numeric) for row in rows)
    return Markup(
        f'<div class="wide"><table><thead>{head}</thead>\n<tbody>{body}</tbody></table></div>'
    )


def _row(tag: str, cells: Sequence[object], numeric: Sequence[bool]) -> str:
    """One line of a table."""
    opened = [f'<{tag} class="number">' if is_number else f"<{tag}>" for is_number in numeric]
    shown = [f"{o}{escape(_as_text(c))}</{tag}>" for o, c in zip(opened, cells, strict=True)]
    return f"<tr>{''.join(shown)}</tr>"


def _is_number(cell: object) -> bool:
    return isinstance(cell, numbers.Real) and not isinstance(cell, bool | np.bool_)


def _as_text(cell: object) -> object:
    """A cell as it is shown."""
    if cell is None:
        return ""
    if isinstance(cell, bool | np.bool_):
        return "yes" if cell else "no"
    if _is_number(cell):
        return f"{cell:,}" if isinstance(cell, numbers.Integral) else f"{cell:.4g}"
    return cell


def picture(
    array: np.ndarray, alt: str, *, width: int | None = None, lossless: bool = True
) -> Markup:
    """An `<img>` that holds the picture itself. `alt` says in words what it shows.

    `width` shows it that wide, its pixels as squares where it is enlarged. A photograph needs a
    fifth of the bytes with `lossless=False` (JPEG, quality 85).

    Shapes: array (H, W, 3) uint8; lossless, or (H, W, 4) with opacity
    Units: width in CSS pixels
    Raises: ShapeError if it is something else
    """
    depths = (3, 4) if lossless else (3,)
    if (
        array.dtype != np.uint8
        or array.ndim != 3
        or array.shape[2] not in depths
        or array.size == 0
    ):
        raise ShapeError(
            f"picture: expected a uint8 array (H, W, 3), got {array.dtype} {array.shape}; scale "
            "it to 0..255 and convert it first"
        )
    height, natural = array.shape[:2]
    shown = width or natural
    enlarged = ' class="enlarged"' if shown > natural else ""
    return Markup(
        f'<img{enlarged} src="{data_uri(array, lossless)}" alt="{escape(alt)}" '
        f'width="{shown}" height="{round(height * shown / natural)}">'
    )


def data_uri(array: np.ndarray, lossless: bool = True) -> str:
    """A picture file as the text of an address: PNG, or JPEG of quality 85.

    Shapes: array (H, W, 3) uint8, or (H, W, 4) with opacity, as PNG only
    """
    from PIL import Image

    image, file = Image.fromarray(np.ascontiguousarray(array)), io.BytesIO()
    if lossless:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{data}"
