"""One op of a trace: what is known of it, and how that reads in a terminal."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tinyft.backends import Backend
from tinyft.display import Displayed, aligned
from tinyft.inspection.trace.kernel_watch import KernelCall
from tinyft.inspection.trace.open_node import GradientEntry


@dataclass
class Input:
    """One tensor argument of an op: `made_by` is a node's number, or None for a leaf.

    `gradient_norm` is that of the gradient that the op passed on; where there is none, `stop` says
    why.
    """

    name: str
    shape: tuple[int, ...]
    made_by: int | None
    label: str
    gradient_norm: float | None = None
    stop: str = ""


@dataclass
class TracedNode(Displayed):
    """One call of one op. `number` counts within the trace, from 0; `op` is what the engine
    recorded, `composition` what it computed in plain ops: "batch_norm + add + relu".

    `kept_bytes` is what backward needs, without parameters and without what an earlier node keeps
    already. `is_finite` says that the result holds neither NaN nor infinity. `gradient_norm` is
    that of the gradient that arrived; `backward` is None where backward did not come. `source`
    and `call` are "file:line": the op's, and that of its caller.
    """

    number: int
    op: str
    composition: str
    layer: str
    inputs: list[Input]
    shape: tuple[int, ...]
    dtype: str
    source: str
    call: str
    formula: str
    derivative: str
    forward: list[KernelCall]
    forward_ms: float
    kept_bytes: int
    recorded: bool
    is_finite: bool
    backward: list[KernelCall] | None = None
    backward_ms: float | None = None
    gradient_norm: float | None = None
    entries: list[GradientEntry] = field(default_factory=list)
    is_open: bool = False

    @property
    def parameter_gradient_norm(self) -> float | None:
        """The norm over the gradients of all leaves (weights and biases) of this op."""
        norms = [i.gradient_norm for i in self.inputs if i.made_by is None]
        known = [one for one in norms if one is not None]
        return float(np.sqrt(sum(one * one for one in known))) if known else None

    def __str__(self) -> str:
        return node_text(self)


def node_text(node: TracedNode) -> str:
    """One node with all that is known of it."""
    lines = [
        f"node {node.number}: {node.composition}{f' in {node.layer}' if node.layer else ''} "
        f"-> {shape_text(node.shape)} {node.dtype}",
        f"  source {node.source}, called from {node.call}",
        "",
        *(f"    {line}".rstrip() for line in node.formula.splitlines()),
    ]
    lines += [f"    {line}".rstrip() for line in derivative_lines(node)]
    lines += ["", *aligned(input_rows(node)), "", *aligned(kernel_rows(node))]
    for title, text in definitions(node):
        lines += ["", f"  {title}", *(f"    {line}".rstrip() for line in text.splitlines())]
    if node.is_open:
        lines += ["", *_entry_lines(node)]
    return "\n".join(lines)


def derivative_lines(node: TracedNode) -> list[str]:
    """What the source says of an op's backward, wrapped; nothing where it says nothing."""
    if not node.derivative:
        return []
    return ["", *textwrap.wrap(f"backward: {node.derivative}", 92, subsequent_indent="  ")]


def input_rows(node: TracedNode) -> list[list[str]]:
    """One row an input: where it came from, and the gradient that it got or why it got none."""
    rows = [["input", "shape", "from", "|gradient|"]]
    for given in node.inputs:
        gradient = number(given.gradient_norm) or f"none: {given.stop}"
        rows.append([given.name, shape_text(given.shape), given.label, gradient])
    return rows


def kernel_rows(node: TracedNode) -> list[list[str]]:
    """One row a kernel; the last column, where the node was opened, compares it with the reference
    in float64.
    """
    rows = [["", "kernel", "by", "ms", "compiled functions", "from the reference"]]
    for direction, calls in (("forward", node.forward), ("backward", node.backward or [])):
        for call in calls:
            differs = "" if call.difference is None else f"{call.difference:.1e}"
            started = ", ".join(call.started)
            ms = f"{call.milliseconds:.3f}"
            rows.append([direction, call.kernel, call.by, ms, started, differs])
    if len(rows) == 1:
        rows.append(["", "none: NumPy's own arithmetic", "", "", "", ""])
    return rows if node.is_open else [row[:-1] for row in rows]


def definitions(node: TracedNode) -> list[tuple[str, str]]:
    """What defines each kernel of a node, and where: the reference's docstring."""
    found = {}
    for call in [*node.forward, *(node.backward or [])]:
        method = getattr(Backend, call.kernel)
        line = method.__code__.co_firstlineno
        title = f"{call.kernel} is defined in tinyft/backends/reference.py:{line}"
        found[title] = inspect.getdoc(method) or ""
    return list(found.items())


def entry_rows(node: TracedNode) -> list[list[str]]:
    """One row an entry of a gradient that was checked."""
    rows = [["gradient of", "backward", "by differences", "differ by"]]
    for entry in node.entries:
        place = f"{entry.input}[{', '.join(map(str, entry.index))}]"
        verdict = "a kink: no derivative there" if entry.kink else f"{entry.difference:.1e}"
        rows.append([place, f"{entry.backward:.6e}", f"{entry.numeric:.6e}", verdict])
    return rows


def _entry_lines(node: TracedNode) -> list[str]:
    if not node.entries:
        return ["no gradient to check by differences"]
    return aligned(entry_rows(node))


def kernels(calls: Sequence[KernelCall]) -> str:
    """What computed: "Winograd, implicit GEMM"; "numpy" for an op that needs no kernel."""
    return ", ".join(dict.fromkeys(call.by for call in calls)) or "numpy"


def shape_text(shape: Sequence[int]) -> str:
    """ "16x112x112x64"; "()" for a single number"""
    return "x".join(map(str, shape)) or "()"


def number(value: float | None) -> str:
    """Three digits; nothing for None."""
    return "" if value is None else f"{value:.3g}"


def size(nbytes: int) -> str:
    """ "3.2 MB", in powers of ten"""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes} B"
