"""A trace as a graph in Graphviz's language: `dot -Tsvg step.dot -o step.svg`.

Source: the DOT language, https://graphviz.org/doc/info/lang.html

Next: tinyft/inspection/why.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyft.inspection.trace_text import kernels, number, shape_text

if TYPE_CHECKING:
    from tinyft.inspection.microscope import Trace, TracedNode

# Colours of the nodes that backward reached, and of those that it did not.
REACHED, NOT_REACHED = "#cfe3f7", "#e4e4e0"


def dot(trace: Trace) -> str:
    """Ops are boxes, grey where backward did not come; edges carry data downwards, dashed where no
    gradient came back. Leaves are drawn as text.
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
