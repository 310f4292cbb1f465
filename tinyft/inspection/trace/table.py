"""A trace as a table: a line a node, and where backward stopped."""

from __future__ import annotations

from collections.abc import Iterator

from tinyft.display import Displayed, aligned, counted, first_few
from tinyft.inspection.trace.kernel_watch import KernelCall
from tinyft.inspection.trace.nodes import Input, TracedNode, kernels, number, shape_text, size

HEADER = (
    "node", "layer", "op", "output", "forward", "ms", "kept", "backward", "ms", "|dout|",
    "|dweights|", "op's source", "called from",
)  # fmt: skip
NUMERIC = (0, 5, 6, 8, 9, 10)  # columns that are flush right
PLACES = 2  # the last columns say where the source is: left out where a terminal is too narrow


class TraceTable(Displayed):
    """What happened: `nodes` in order, `others` (kernels outside of ops: pictures, optimizer).

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
            found = [node for node in self.nodes if node.layer == key]
            if not found:
                raise KeyError(f"no op was called in a layer named {key!r}")
            return found[0]
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
        """What all nodes keep for backward."""
        return sum(node.kept_bytes for node in self.nodes)

    def stops(self) -> list[tuple[TracedNode, Input]]:
        """Where backward came and did not go on: each input that got no gradient."""
        reached = [node for node in self.nodes if node.backward is not None]
        return [(node, i) for node in reached for i in node.inputs if i.gradient_norm is None]

    def __str__(self) -> str:
        return trace_text(self)


def trace_text(trace: TraceTable) -> str:
    """Facts, a table, and where backward stopped."""
    return "\n".join([*headline(trace), "", *table_lines(trace), "", *stop_lines(trace)]).rstrip()


def table_lines(trace: TraceTable, columns: int = len(HEADER)) -> list[str]:
    """The table with its first `columns` columns."""
    rows = [HEADER, *map(cells, trace.nodes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    for i in NUMERIC:
        rows = [[*row[:i], row[i].rjust(widths[i]), *row[i + 1 :]] for row in rows]
    return aligned([row[:columns] for row in rows])


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
    found: dict[str, list[float]] = {}
    for call in trace.others:
        found.setdefault(call.kernel, []).append(call.milliseconds)
    longest_first = sorted(found.items(), key=lambda item: -sum(item[1]))
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
    """Where backward stopped and why; inputs of one reason together."""
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
