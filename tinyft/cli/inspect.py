"""`tinyft inspect`: one step of a run under the microscope, made again to the bit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyft.cli.failures import RequestError
from tinyft.cli.options import GRAPHS, PAGES, Parser, add_json, add_moved, expect_replaceable, whole
from tinyft.cli.output import answer, has_terminal, json_result, result, say, write
from tinyft.display import aligned, fitted, terminal_width

if TYPE_CHECKING:
    from tinyft.inspection.step.moment import Moment
    from tinyft.inspection.step.why import Explanation
    from tinyft.inspection.trace.activations import Change
    from tinyft.inspection.trace.kernel_watch import KernelCall
    from tinyft.inspection.trace.recorder import Trace

HELP = "make one step of a run again, and show it op by op"
EXAMPLE = """\
tinyft inspect runs/photos-resnet18-1 --step 17
tinyft inspect runs/photos-resnet18-1 --step 17 --node 37 --html step.html
tinyft inspect runs/photos-resnet18-1 --step 17 --why --what-if
tinyft inspect runs/photos-resnet18-1 --step 17 --change layer3.0:ablate:7"""
CHANGES = "LAYER:ablate:CHANNEL, LAYER:swap:CHANNEL,CHANNEL or LAYER:clamp:LOW,HIGH"


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("run_folder", metavar="RUN", help="the folder of a run")
    add("--step", type=whole(0), required=True, metavar="K", help="0 is the first")
    opens = "open this node: formula, inputs, the reference's answer, a check of its gradient"
    add("--node", type=whole(0), action="append", metavar="I", help=f"{opens} (repeatable)")
    add("--html", metavar="FILE", help="write a page to click through")
    add("--dot", metavar="FILE", help="write the graph for Graphviz (dot -Tsvg FILE)")
    add("--why", action="store_true", help="why the loss of the step's pictures changed")
    add("--what-if", action="store_true", help="what other rates, or freezing, would have done")
    changed = "what if a layer had put out something else (repeatable)"
    add("--change", action="append", metavar="LAYER:...", help=f"{changed}: {CHANGES}")
    add_moved(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from tinyft.inspection.step.moment import Moment
    from tinyft.inspection.trace.recorder import trace_step

    nodes = sorted(set(args.node or []))
    explains, change = args.why or args.what_if or args.change, changes_of(args.change or [])
    if explains and (args.node or args.html or args.dot):
        raise RequestError(
            "--why, --what-if and --change answer in text or JSON; --node, --html and --dot show "
            "the trace; ask for one or the other"
        )
    if args.html and args.dot and Path(args.html).resolve() == Path(args.dot).resolve():
        raise RequestError(f"--html and --dot would both be written to {args.html}; name two files")
    expect_replaceable("--html", args.html, PAGES)
    expect_replaceable("--dot", args.dot, GRAPHS)
    say(f"making step {args.step} of {args.run_folder} again")
    moment = Moment.of_run(args.run_folder, args.step, args.data)
    args.working = True
    for notice in moment.notices:
        say(f"note: {notice}")
    if explains:
        return _explain(args, moment, change)
    trace = trace_step(moment, open=nodes)
    if nodes and nodes[-1] >= len(trace):
        raise RequestError(
            f"--node {nodes[-1]}: the step has nodes 0 to {len(trace) - 1}; without --node they "
            "are listed"
        )
    trace.facts.append(comparison(Path(args.run_folder), args.step, trace.loss))
    for file, text in ((args.html, trace.html), (args.dot, trace.dot)):
        if file:
            write(file, text())
    if args.json:
        json_result(plain(trace, nodes))
    elif nodes:
        head = "; ".join([trace.title, *trace.facts])
        result("\n\n".join([head, *(str(trace[number]) for number in nodes)]))
    else:
        show(trace)
    return 0


def recorded_loss(run: Path, step: int) -> float | None:
    """Read the loss of a step from metrics.csv; None if it does not have the step.

    Raises: RunError if it is damaged
    """
    from tinyft.finetune.run.reading import read_metrics

    metrics = read_metrics(run / "metrics.csv")
    if not {"step", "loss"} <= set(metrics):
        return None
    losses = metrics["loss"][metrics["step"] == step]
    return float(losses[-1]) if len(losses) else None


def comparison(run: Path, step: int, loss: float | None) -> str:
    """Tell if the step came out as it did in the run."""
    recorded = recorded_loss(run, step)
    if recorded is None:
        return "metrics.csv does not have this step"
    if recorded == loss:
        return "to the bit the loss of metrics.csv"
    return f"metrics.csv has {recorded!r}: not the same bits"


def show(trace: Trace) -> None:
    """The trace on stdout: in colours where there is a terminal."""
    if not has_terminal():
        result(str(trace))
        return
    from rich.console import Console

    from tinyft.inspection.trace.table import headline, stop_lines, table_lines

    console = Console(highlight=False, markup=False, soft_wrap=True)
    lines = table_lines(trace)
    for line in headline(trace):
        console.print(fitted(line, terminal_width()), style="bold")
    console.print(f"\n{lines[0]}", style="cyan")
    for line, node in zip(lines[1:], trace, strict=True):
        console.print(line, style=None if node.backward is not None else "dim")
    console.print()
    for line in stop_lines(trace):
        console.print(fitted(line, terminal_width()))


def plain(trace: Trace, nodes: list[int]) -> dict[str, Any]:
    """The trace as JSON is to hold it; with `nodes`, of those only."""

    def plain_calls(calls: list[KernelCall] | None) -> list[dict[str, Any]] | None:
        names = ("kernel", "by", "milliseconds", "started", "difference")
        if calls is None:
            return None
        return [{name: getattr(call, name) for name in names} for call in calls]

    return {
        "title": trace.title,
        "facts": trace.facts,
        "loss": trace.loss,
        "milliseconds": trace.elapsed_ms,
        "kept_bytes": trace.kept_bytes,
        "nodes": [
            vars(node)
            | {"forward": plain_calls(node.forward), "backward": plain_calls(node.backward)}
            for node in ([trace[number] for number in nodes] if nodes else trace.nodes)
        ],
        "others": plain_calls(trace.others),
    }


# -------------------------------------------------------------------- --why, --what-if and --change


def changes_of(asked: list[str]) -> dict[str, Change]:
    """What --change asks for, by layer. Raises: RequestError"""
    from tinyft.inspection.trace import activations

    changes: dict[str, Change] = {}
    for text in asked:
        try:
            layer, kind, numbers = text.split(":")
            number = {"ablate": int, "swap": int, "clamp": float}[kind]
            change = getattr(activations, kind)(*map(number, numbers.split(",")))
        except (ValueError, KeyError, TypeError):
            raise RequestError(f"--change {text}: expected {CHANGES}") from None
        if changes.setdefault(layer, change) is not change:
            raise RequestError(f"--change {text}: {layer} has a change already")
    return changes


def changed_looks(moment: Moment, change: dict[str, Change]) -> tuple[list[str], dict[str, Any]]:
    """How a change of activations moves the batch's loss, and each picture's probability of its
    class, as lines and as JSON is to hold it: pairs, without and with it.
    """
    looks = {m: (moment.look(m), moment.look(m, change)) for m in ("training", "evaluation")}
    losses = {mode: [look.loss for look in pair] for mode, pair in looks.items()}
    lines = [f"loss in {m}: {a:.5f} -> {b:.5f} ({b - a:+.5f})" for m, (a, b) in losses.items()]
    files, classes = moment.learner.own_data().files("train"), moment.learner.classes
    rows, pictures = [("picture", "class", "probability", "says")], {}
    both = (look.probabilities for look in looks["evaluation"])
    for i, label, *two in zip(moment.batch.ids, moment.batch.labels, *both, strict=True):
        shares, said = [p[label] for p in two], [classes[p.argmax()] for p in two]
        words = " -> ".join(f"{share:.4f}" for share in shares), " -> ".join(dict.fromkeys(said))
        rows.append((files[i], classes[label], *words))
        pictures[files[i]] = {"probability": shares, "says": said}
    return [*lines, "in evaluation:", *aligned(rows)], {"losses": losses, "pictures": pictures}


def _explain(args: argparse.Namespace, moment: Moment, change: dict[str, Change]) -> int:
    """Say why the step changed the loss, and what other steps and activations would have done."""
    from tinyft.inspection.step.what_if import what_if
    from tinyft.inspection.step.why import explain_step, jump

    texts, answers = [], {"where": moment.where, "ids": moment.batch.ids.tolist()}
    if args.why:
        previous = recorded_loss(Path(args.run_folder), args.step - 1)
        explanation, looks = explain_step(moment), jump(moment, previous)
        texts += [str(explanation), str(looks)]
        answers |= {"why": plain_explanation(explanation), "jump": vars(looks).copy()}
        del answers["jump"]["where"], answers["jump"]["pictures"]  # they are said of the whole
    if args.what_if:
        outcomes = what_if(moment)
        texts.append(str(outcomes))
        answers["what_if"] = outcomes.outcomes
    if change:
        try:
            lines, answers["change"] = changed_looks(moment, change)
        except ValueError as error:  # a layer or a channel that is not there
            raise RequestError(str(error)) from None
        asked = f"what if {', '.join(args.change)} before {moment.where}?"
        texts.append("\n".join([asked, *lines]))
    answer(args, "\n\n".join(texts), answers)
    return 0


def plain_explanation(explanation: Explanation) -> dict[str, Any]:
    """An explanation as JSON is to hold it: losses are pairs, before and after."""
    parts = ("predicted", "curvature", "in_training", "dropout", "batch_norm", "statistics",
             "in_evaluation", "groups")  # fmt: skip
    losses = zip(
        explanation.before["training"].each, explanation.after["training"].each, strict=True
    )
    return {
        **{part: getattr(explanation, part) for part in parts},
        "losses": {
            m: [explanation.before[m].loss, explanation.after[m].loss] for m in explanation.before
        },
        "pictures": dict(zip(explanation.names, losses, strict=True)),
    }
