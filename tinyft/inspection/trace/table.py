"""A trace as text: each node with all that is known of it, and a table, a line a node."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from tinyft.backends import Backend
from tinyft.display import Displayed, aligned, counted, first_few, terminal_width
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
        """All that is known of it."""
        lines = [
            f"node {self.number}: {self.composition}{f' in {self.layer}' if self.layer else ''} "
            f"-> {shape_text(self.shape)} {self.dtype}",
            f"  source {self.source}, called from {self.call}",
            "",
            *(f"    {line}".rstrip() for line in self.formula.splitlines()),
        ]
        lines += [f"    {line}".rstrip() for line in derivative_lines(self)]
        lines += ["", *aligned(input_rows(self)), "", *aligned(kernel_rows(self))]
        for title, text in definitions(self):
            lines += ["", f"  {title}", *(f"    {line}".rstrip() for line in text.splitlines())]
        if self.is_open:
            nothing = ["no gradient to check by differences"]
            lines += ["", *(aligned(entry_rows(self)) if self.entries else nothing)]
        return "\n".join(lines)


def derivative_lines(node: TracedNode) -> list[str]:
    """Wrap what the source says of an op's backward; nothing where it says nothing."""
    if not node.derivative:
        return []
    width = min(92, (terminal_width() or 100) - 8)  # it will be indented
    return ["", *textwrap.wrap(f"backward: {node.derivative}", width, subsequent_indent="  ")]


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
    """Quote what defines each kernel of a node, and where: the reference's docstring."""
    by_title = {}
    for call in [*node.forward, *(node.backward or [])]:
        method = getattr(Backend, call.kernel)
        line = method.__code__.co_firstlineno
        title = f"{call.kernel} is defined in tinyft/backends/reference.py:{line}"
        by_title[title] = inspect.getdoc(method) or ""
    return list(by_title.items())


def entry_rows(node: TracedNode) -> list[list[str]]:
    """One row an entry of a gradient that was checked by finite differences."""
    rows = [["gradient of", "backward", "by differences", "differ by"]]
    for entry in node.entries:
        place = f"{entry.input}[{', '.join(map(str, entry.index))}]"
        verdict = "a kink: no derivative there" if entry.kink else f"{entry.difference:.1e}"
        rows.append([place, f"{entry.backward:.6e}", f"{entry.numeric:.6e}", verdict])
    return rows


# ------------------------------------------------------------------------------------ the trace

HEADER = (
    "node", "layer", "op", "output", "forward", "ms", "kept", "backward", "ms", "|dout|",
    "|dweights|", "op's source", "called from",
)  # fmt: skip
NUMERIC = (0, 5, 6, 8, 9, 10)  # columns that are flush right
PLACES = 2  # the last columns say where the source is: left out where a terminal is too narrow


class TraceTable(Displayed):
    """The ops of a block: `nodes` in order, `others` (kernels outside of ops: pictures, optimizer).

    `trace[37]` is a node, `trace["layer2.0.conv1"]` the first one of a layer. Printed it is a
    table.
    """

    def __init__(self, title: str = "trace") -> None:
        self.title = title
        self.facts: list[str] = []  # sentences on the whole
        self.loss: float | None = None  # of a step
        self.nodes: list[TracedNode] = []
        self.others: list[KernelCall] = []
        self.elapsed_ms = 0.0  # the block, without what tracing itself took

    def __getitem__(self, key: int | str) -> TracedNode:
        if isinstance(key, str):
            of_layer = [node for node in self.nodes if node.layer == key]
            if not of_layer:
                raise KeyError(f"no op was called in a layer named {key!r}")
            return of_layer[0]
        if not 0 <= key < len(self.nodes):
            last = len(self.nodes) - 1
            raise IndexError(f"there is no node {key}: the trace has nodes 0 to {last}")
        return self.nodes[key]

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[TracedNode]:
        return iter(self.nodes)

    @property
    def kept_bytes(self) -> int:
        """The bytes that all nodes keep for backward."""
        return sum(node.kept_bytes for node in self.nodes)

    def stops(self) -> list[tuple[TracedNode, Input]]:
        """List where backward came and did not go on: each input that got no gradient."""
        reached = [node for node in self.nodes if node.backward is not None]
        return [(node, i) for node in reached for i in node.inputs if i.gradient_norm is None]

    def __str__(self) -> str:
        """Facts, a table, and where backward stopped."""
        return "\n".join([*headline(self), "", *table_lines(self), "", *stop_lines(self)]).rstrip()


def table_lines(trace: TraceTable) -> list[str]:
    """The table, a text a row; without PLACES on a terminal that is too narrow for all columns."""
    rows = [HEADER, *map(cells, trace.nodes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    for i in NUMERIC:
        rows = [[*row[:i], row[i].rjust(widths[i]), *row[i + 1 :]] for row in rows]
    if sum(widths) + 2 * len(widths) - 2 > (terminal_width() or sys.maxsize):
        rows = [row[:-PLACES] for row in rows]
    return aligned(rows)


def headline(trace: TraceTable) -> list[str]:
    """The whole in sentences."""
    forward = sum(node.forward_ms for node in trace)
    backward = sum(node.backward_ms or 0 for node in trace)
    nodes = counted(len(trace), "node")
    keeps = f"; backward keeps {size(trace.kept_bytes)}" if backward else ""
    lines = [
        "; ".join([trace.title, *trace.facts]),
        f"{nodes}: forward {forward:.1f} ms, backward {backward:.1f} ms of "
        f"{trace.elapsed_ms:.1f} ms in all{keeps}",
    ]
    broken = next((node for node in trace if not node.is_finite), None)
    if broken is not None:
        lines.append(
            f"the first NaN or infinity came out of node {broken.number} "
            f"({f'{broken.layer}, ' if broken.layer else ''}{broken.composition})"
        )
    if trace.others:
        lines.append(f"kernels outside of ops: {', '.join(other_kernels(trace))}")
    return lines


def other_kernels(trace: TraceTable) -> list[str]:
    """ "62 adam_step (2.9 ms)", the longest first"""
    by_kernel: dict[str, list[float]] = {}
    for call in trace.others:
        by_kernel.setdefault(call.kernel, []).append(call.milliseconds)
    longest_first = sorted(by_kernel.items(), key=lambda item: -sum(item[1]))
    return [f"{len(ms)} {kernel} ({sum(ms):.1f} ms)" for kernel, ms in longest_first]


def cells(node: TracedNode) -> list[str]:
    """The columns of one node."""
    return [
        str(node.number),
        node.layer,
        node.composition,
        shape_text(node.shape),
        kernels(node.forward),
        f"{node.forward_ms:.2f}",
        size(node.kept_bytes) if node.recorded else "",
        "" if node.backward is None else kernels(node.backward),
        "" if node.backward_ms is None else f"{node.backward_ms:.2f}",
        number(node.gradient_norm),
        number(node.parameter_gradient_norm),
        node.source.removeprefix("tinyft/"),
        node.call.removeprefix("tinyft/"),
    ]


def stop_lines(trace: TraceTable) -> list[str]:
    """Say where backward stopped and why; inputs of one reason together."""
    if not any(node.backward is not None for node in trace):
        recorded = any(node.recorded for node in trace)
        return ["there was no backward" + ("" if recorded else ": nothing was recorded")]
    groups: dict[str, list[str]] = {}
    for node, given in trace.stops():
        where = f"node {node.number} ({node.layer or node.composition})"
        if given.made_by is not None:
            groups.setdefault(f"at {where}, {given.name} from {given.label}: {given.stop}", [])
        else:
            groups.setdefault(given.stop, []).append(given.label)
    frozen = [i.label for n in trace if not n.recorded for i in n.inputs if i.stop == "frozen"]
    if frozen:
        groups["frozen, in nodes that backward had no reason to visit"] = frozen
    unreached = [n for n in trace if n.recorded and n.backward is None]
    if unreached:
        numbers = ", ".join(str(node.number) for node in unreached[:8])
        more = ", ..." if len(unreached) > 8 else ""
        groups[
            f"it did not come to {counted(len(unreached), 'recorded node')}: {numbers}{more}"
        ] = []
    if not groups:
        return ["backward went all the way: every input got a gradient"]
    lines = ["where backward stopped, and why:"]
    for reason, labels in groups.items():
        lines.append(f"  {reason}" + (f" ({len(labels)}): {first_few(labels)}" if labels else ""))
    return lines


# ------------------------------------------------------------------------------- short words


def kernels(calls: Sequence[KernelCall]) -> str:
    """Name what computed: "Winograd, implicit GEMM"; "numpy" for an op that needs no kernel."""
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
