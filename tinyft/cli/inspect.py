"""`tinyft inspect`: one step of a run under the microscope, made again to the bit."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyft.cli import why
from tinyft.cli.display import has_terminal
from tinyft.cli.failures import RequestError
from tinyft.cli.options import GRAPHS, PAGES, expect_replaceable
from tinyft.cli.output import json_result, result, say
from tinyft.cli.parser import add_command, add_json, whole

if TYPE_CHECKING:
    from tinyft.inspection.trace.recorder import Trace
    from tinyft.inspection.trace.table import TracedNode


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "inspect",
        run,
        help="make one step of a run again, and show it op by op",
        example="tinyft inspect runs/photos-resnet18-1 --step 17\n"
        "  tinyft inspect runs/photos-resnet18-1 --step 17 --node 37 --html step.html\n"
        "  tinyft inspect runs/photos-resnet18-1 --step 17 --why --what-if",
    )
    add = parser.add_argument
    add("run_folder", metavar="RUN", help="the folder of a run")
    add("--step", type=whole(0), required=True, metavar="K", help="as counted in metrics.csv")
    opens = "open this node: formula, inputs, the reference's answer, a check of its gradient"
    add("--node", type=whole(0), action="append", metavar="I", help=f"{opens} (repeatable)")
    add("--html", metavar="FILE", help="write a page to click through")
    add("--dot", metavar="FILE", help="write the graph for Graphviz (dot -Tsvg FILE)")
    why.add_options(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from tinyft.inspection.step.moment import Moment
    from tinyft.inspection.trace.recorder import trace_step

    nodes = sorted(set(args.node or []))
    explains = why.asked(args)
    if args.html and args.dot and Path(args.html).resolve() == Path(args.dot).resolve():
        raise RequestError(f"--html and --dot would both be written to {args.html}; name two files")
    expect_replaceable("--html", args.html, PAGES)
    expect_replaceable("--dot", args.dot, GRAPHS)
    say(f"making step {args.step} of {args.run_folder} again")
    moment = Moment.of_run(args.run_folder, args.step)
    args.working = True
    for notice in moment.notices:
        say(f"note: {notice}")
    if explains:
        return why.answer(args, moment, recorded_loss(Path(args.run_folder), args.step - 1))
    found = trace_step(moment, open=nodes)
    if nodes and nodes[-1] >= len(found):
        raise RequestError(
            f"--node {nodes[-1]}: the step has nodes 0 to {len(found) - 1}; without --node they "
            "are listed"
        )
    found.facts.append(comparison(Path(args.run_folder), args.step, found.loss))
    for file, text in ((args.html, found.html), (args.dot, found.dot)):
        if file:
            Path(file).write_text(text(), encoding="utf-8", errors="backslashreplace")
            say(f"wrote {file}")
    if args.json:
        json_result(plain(found, nodes))
    elif nodes:
        head = "; ".join([found.title, *found.facts])
        result("\n\n".join([head, *(str(found[number]) for number in nodes)]))
    else:
        show(found)
    return 0


def recorded_loss(run: Path, step: int) -> float | None:
    """What metrics.csv has for a step; None if it does not have the step.

    Raises: RunError if it is damaged
    """
    from tinyft.finetune.run.reading import metrics_lines

    head, *lines = metrics_lines(run / "metrics.csv") or [[]]
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    found = [row["loss"] for row in rows if row.get("step") == str(step)]
    return float(found[-1]) if found else None


def comparison(run: Path, step: int, loss: float) -> str:
    """Whether the step came out as it did in the run."""
    recorded = recorded_loss(run, step)
    if recorded is None:
        return "metrics.csv does not have this step"
    if recorded == loss:
        return "to the bit the loss of metrics.csv"
    return f"metrics.csv has {recorded!r}: not the same bits"


def show(found: Trace) -> None:
    """The trace on stdout: in colours where there is a terminal."""
    if not has_terminal():
        result(str(found))
        return
    from rich.console import Console

    from tinyft.inspection.trace.table import HEADER, PLACES, headline, stop_lines, table_lines

    console = Console(highlight=False, markup=False, soft_wrap=True)
    lines = table_lines(found)
    if max(map(len, lines)) > shutil.get_terminal_size().columns:
        lines = table_lines(found, len(HEADER) - PLACES)
    for line in headline(found):
        console.print(line, style="bold")
    console.print(f"\n{lines[0]}", style="cyan")
    for line, node in zip(lines[1:], found, strict=True):
        console.print(line, style=None if node.backward is not None else "dim")
    console.print()
    for line in stop_lines(found):
        console.print(line)


def plain(found: Trace, nodes: list[int]) -> dict[str, Any]:
    """The trace as JSON holds it; with `nodes`, of those only."""
    listed = [found[number] for number in nodes] if nodes else found.nodes
    return {
        "title": found.title,
        "facts": found.facts,
        "loss": found.loss,
        "milliseconds": found.elapsed_ms,
        "kept_bytes": found.kept_bytes,
        "nodes": [plain_node(node) for node in listed],
        "others": [_plain_call(call) for call in found.others],
    }


def plain_node(node: TracedNode) -> dict[str, Any]:
    described = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
    described["inputs"] = [dataclasses.asdict(given) for given in node.inputs]
    described["entries"] = [dataclasses.asdict(entry) for entry in node.entries]
    described["forward"] = [_plain_call(call) for call in node.forward]
    if node.backward is not None:
        described["backward"] = [_plain_call(call) for call in node.backward]
    return _listed(described)


def _plain_call(call: Any) -> dict[str, Any]:
    return {
        "kernel": call.kernel,
        "by": call.by,
        "milliseconds": call.milliseconds,
        "started": list(call.started),
        "difference": call.difference,
    }


def _listed(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
