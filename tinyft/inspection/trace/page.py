"""A trace as a page that one can click through: a row a node, and behind each row the whole node;
and as a graph for Graphviz: `dot -Tsvg step.dot -o step.svg`.

Rows are <details> elements, so the page works without its script too; the script opens and closes
them all, filters, and opens what a link points to.
"""

from __future__ import annotations

from tinyft.inspection.html import Markup, escape, page, table
from tinyft.inspection.trace.table import (
    TracedNode,
    TraceTable,
    definitions,
    derivative_lines,
    entry_rows,
    headline,
    input_rows,
    kernel_rows,
    kernels,
    number,
    shape_text,
    size,
    stop_lines,
)

STYLE = """
.trace details { border-bottom: 1px solid var(--line); }
.trace details[open] { background: var(--panel); }
.trace summary, .trace .head { display: grid; gap: 0 0.8rem; padding: 0.25rem 0.4rem;
  align-items: baseline; font-size: 0.9rem; font-variant-numeric: tabular-nums;
  grid-template-columns: 2.2rem minmax(8rem, 1.4fr) 7rem minmax(6rem, 1fr) minmax(6rem, 1fr)
    4.5rem 4rem 4rem; }
.trace summary { cursor: pointer; list-style: none; }
.trace summary::-webkit-details-marker { display: none; }
.trace summary:hover { background: var(--panel); }
.trace summary:focus-visible { outline: 2px solid var(--accent); outline-offset: -2px; }
.trace .head { color: var(--soft); font-weight: 600; position: sticky; top: 0;
  background: var(--ground); border-bottom: 1px solid var(--line); }
.trace summary > *, .trace .head > * { min-width: 0; overflow-wrap: anywhere; }
.trace .right { text-align: right; }
.trace .bar { display: block; height: 0.3rem; border-radius: 2px; min-width: 1px; }
.trace .forward { background: var(--series-1); } .trace .backward { background: var(--series-2); }
.trace .inside { padding: 0.2rem 0.8rem 1rem; }
.trace-tools { display: flex; flex-wrap: wrap; gap: 0.5rem; margin: 0.8rem 0; }
.trace-tools button, .trace-tools input { font: inherit; color: inherit; padding: 0.25rem 0.7rem;
  background: var(--panel); border: 1px solid var(--line); border-radius: 6px; }
@media (max-width: 44rem) {
  .trace .head { display: none; }
  .trace summary { grid-template-columns: 2.2rem 1fr 1fr; }
  .trace summary .name { grid-column: 2 / 4; }
  .trace summary .forward-cell { grid-column: 2; } .trace summary .backward-cell { grid-column: 3; }
  .trace summary .wide-only { display: none; } }
"""

SCRIPT = """
const rows = [...document.querySelectorAll('.trace details')];
const all = (open) => rows.forEach((row) => { if (!row.hidden) row.open = open; });
document.getElementById('open-all').onclick = () => all(true);
document.getElementById('close-all').onclick = () => all(false);
document.getElementById('filter').oninput = (event) => {
  const wanted = event.target.value.toLowerCase();
  rows.forEach((row) => {
    row.hidden = !row.querySelector('summary').textContent.toLowerCase().includes(wanted);
  });
};
const follow = () => {
  const row = rows.find((row) => '#' + row.id === location.hash);
  if (row) { row.hidden = false; row.open = true; row.scrollIntoView(); }
};
window.addEventListener('hashchange', follow);
follow();
"""

TOOLS = (
    '<div class="trace-tools"><button type="button" id="open-all">open all</button>'
    '<button type="button" id="close-all">close all</button>'
    '<input id="filter" type="search" placeholder="layer or op" aria-label="layer or op"></div>'
)


def as_page(trace: TraceTable) -> str:
    """The whole page."""
    body = f"<h1>{escape(trace.title)}</h1>\n{_facts(trace)}\n{TOOLS}\n{_rows(trace)}"
    return page(trace.title, body, SCRIPT)


def trace_section(trace: TraceTable) -> str:
    """The trace as HTML without a page around it: in a notebook, or in a report."""
    return f"<p><b>{escape(trace.title)}</b></p>\n{_facts(trace)}\n{_rows(trace)}"


def _facts(trace: TraceTable) -> str:
    facts = [*trace.facts, *headline(trace)[1:]]
    said = "".join(f"<p>{escape(fact)}</p>\n" for fact in facts)
    first, *reasons = stop_lines(trace)
    listed = "".join(f"<li>{escape(reason.strip())}</li>" for reason in reasons)
    return f"{said}<p>{escape(first)}</p>\n" + (f"<ul>{listed}</ul>" if reasons else "")


def _rows(trace: TraceTable) -> str:
    names = ("", "layer and op", "output", "forward, ms", "backward, ms", "kept", "|dout|", "|dw|")
    head = "".join(f"<span>{escape(name)}</span>" for name in names)
    longest = max([1e-9, *(max(n.forward_ms, n.backward_ms or 0) for n in trace)])
    rows = "\n".join(_row(node, longest) for node in trace)
    return (
        f'<style>{STYLE}</style>\n<div class="trace"><div class="head">{head}</div>\n{rows}</div>'
    )


def _row(node: TracedNode, longest: float) -> str:
    backward = ""
    if node.backward is not None and node.backward_ms is not None:
        backward = _timed("backward", node.backward_ms, kernels(node.backward), longest)
    kept = size(node.kept_bytes) if node.recorded else ""
    name = f'{escape(node.layer)} <span class="soft">{escape(node.composition)}</span>'
    return (
        f'<details id="node-{node.number}"{" open" if node.is_open else ""}><summary>'
        f"<span>{node.number}</span>"
        f'<span class="name">{name}</span>'
        f'<span class="wide-only">{shape_text(node.shape)}</span>'
        f'<span class="forward-cell">'
        f"{_timed('forward', node.forward_ms, kernels(node.forward), longest)}</span>"
        f'<span class="backward-cell">{backward}</span>'
        f'<span class="wide-only right">{kept}</span>'
        f'<span class="wide-only right">{number(node.gradient_norm)}</span>'
        f'<span class="wide-only right">{number(node.parameter_gradient_norm)}</span>'
        f'</summary><div class="inside">{node_html(node)}</div></details>'
    )


def _timed(direction: str, milliseconds: float, by: str, longest: float) -> str:
    width = 100 * milliseconds / longest
    return (
        f'{milliseconds:.2f} <span class="soft">{escape(by)}</span>'
        f'<span class="bar {direction}" style="width:{width:.1f}%"></span>'
    )


def node_html(node: TracedNode) -> str:
    """All that is known of a node."""
    where = f" in {node.layer}" if node.layer else ""
    formula = "\n".join([node.formula, *derivative_lines(node)])
    gradient = ""
    if node.gradient_norm is not None:
        gradient = f"; the gradient that arrived has norm {number(node.gradient_norm)}"
    kept = f"; keeps {size(node.kept_bytes)} for backward" if node.recorded else ""
    parts = [
        f"<p><b>{node.number}: {escape(node.composition)}{escape(where)}</b> &rarr; "
        f"{shape_text(node.shape)} {escape(node.dtype)}{kept}{gradient}<br>"
        f'<span class="soft">source <code>{escape(node.source)}</code>, called from '
        f"<code>{escape(node.call)}</code></span></p>",
        f"<pre>{escape(formula)}</pre>",
    ]
    tables = [_linked(node, input_rows(node)), kernel_rows(node)]
    if node.entries:
        tables.append(entry_rows(node))
    parts += [table(header, rows) for header, *rows in tables]
    for title, text in definitions(node):
        parts.append(f"<p>{escape(title)}</p><pre>{escape(text)}</pre>")
    return "\n".join(parts)


def _linked(node: TracedNode, rows: list[list[str]]) -> list[list[str]]:
    """The inputs, those that a node made as links to it."""
    for row, given in zip(rows[1:], node.inputs, strict=True):
        if given.made_by is not None:
            row[2] = Markup(f'<a href="#node-{given.made_by}">{escape(given.label)}</a>')
    return rows


# --------------------------------------------------------------------------------------- as a graph

# Colours of the nodes that backward reached, and of those that it did not.
REACHED, NOT_REACHED = "#cfe3f7", "#e4e4e0"


def dot(trace: TraceTable) -> str:
    """The trace in the DOT language (graphviz.org/doc/info/lang.html). Ops are boxes, grey where
    backward did not come; edges carry data downwards, dashed where no gradient came back; leaves
    are text.
    """
    lines = [
        "digraph trace {",
        '  node [shape=box, style="filled,rounded", fontname="sans-serif", fontsize=10];',
        '  edge [fontname="sans-serif", fontsize=8];',
    ]
    for node in trace:
        colour = NOT_REACHED if node.backward is None else REACHED
        lines.append(
            f"  n{node.number} [label={_quoted(_label(node))}, fillcolor={_quoted(colour)}];"
        )
        for i, given in enumerate(node.inputs):
            style = "dashed" if given.gradient_norm is None else "solid"
            label = number(given.gradient_norm) or given.stop
            origin = f"n{given.made_by}"
            if given.made_by is None:
                origin = f"n{node.number}_{i}"
                text = f"{given.label}\n{shape_text(given.shape)}"
                lines.append(f"  {origin} [shape=plaintext, style=solid, label={_quoted(text)}];")
            lines.append(f"  {origin} -> n{node.number} [style={style}, label={_quoted(label)}];")
    return "\n".join([*lines, "}"]) + "\n"


def _label(node: TracedNode) -> str:
    lines = [f"{node.number}: {node.composition}", node.layer, shape_text(node.shape)]
    lines.append(f"forward {node.forward_ms:.2f} ms ({kernels(node.forward)})")
    if node.backward is not None:
        lines.append(f"backward {node.backward_ms:.2f} ms ({kernels(node.backward)})")
        lines.append(f"|dout| {number(node.gradient_norm)}")
    return "\n".join(line for line in lines if line)


def _quoted(text: str) -> str:
    """A string of the DOT language."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
