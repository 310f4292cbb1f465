"""The report of a run: one HTML page that shows a colleague what was done and what came of it.

Each section is a function of RunFiles. What cannot be shown is not left out in silence: its place
says why.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinyft.display import counted
from tinyft.errors import TinyftError
from tinyft.inspection.comparison.result import diff_section
from tinyft.inspection.html import Markup, escape, page, table
from tinyft.inspection.report.charts import Line, heat_map, line_chart
from tinyft.inspection.report.learned import learned, mistakes, wilson
from tinyft.inspection.report.run_files import RunFiles
from tinyft.weights.files import replacing

if TYPE_CHECKING:
    from tinyft.finetune.run.reading import MaybeMoved

MOST_COLUMNS = 200  # of a heat map: more steps than that are averaged
MOST_ROWS = 60  # of a heat map: more layers than that are taken together by block
HOW_TO_READ = (
    "How to read them: a row is a layer's weights, from the input at the top to the output, a "
    "column is a step, and bright is large. The update ratio is |update| / |weights|: about 1e-3 "
    "in a step is usual (CS231n notes, Neural networks 3); 1e-2 and more says that the learning "
    "rate is probably too high, 1e-6 that the layer hardly moves. In fine-tuning it should get "
    "brighter downwards, since early layers have smaller rates. An empty cell is a layer "
    "that was frozen, or a number that is exactly 0."
)
TILE_STYLE = """<style>
.tile { background: var(--panel); border-radius: 8px; padding: 0.7rem 1rem; min-width: 9rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; }
nav { margin: 1rem 0; }
nav a { margin-right: 0.9rem; white-space: nowrap; }
.chart { flex: 0 1 440px; min-width: 0; margin: 0.6rem 0; }
table.matrix td, table.matrix th { padding: 0.2rem 0.45rem; }
</style>"""


def write_report(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    data: MaybeMoved = None,
    device: str = "auto",
) -> Path:
    """Read the run at `run` and write its report to `out` (default: report.html in its folder);
    where it was written.

    `data` is the folder that its pictures were moved to, or the arrays in memory that it had.
    Raises: RunError if it is no run or has made no step; OSError
    """
    return save_report(RunFiles.read(run, data, device=device), out)


def save_report(run: RunFiles, out: str | os.PathLike[str] | None = None) -> Path:
    """Write the report whole, or leave an old one as it is; where it was written."""
    path = run.path / "report.html" if out is None else Path(out)
    text = report_html(run)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def report_html(run: RunFiles) -> str:
    """The whole page."""
    sections = [  # title, anchor, the part of the run that it needs, what makes it
        ("What was done", "plan", "metrics", _recipe),
        ("Curves", "curves", "metrics", _curves),
        ("Inside each step", "steps", "ledger", _inside_steps),
        ("What was frozen, and the proof", "proof", "ledger", _proofs),
        ("Before and after", "changes", "changes", lambda run: diff_section(run.changes, level=3)),
        ("What it learned", "learned", "judged", _learned),
        ("Its largest mistakes", "mistakes", "judged", _mistakes),
        ("To make it again", "again", "description", _environment),
    ]
    links = "".join(f'<a href="#{anchor}">{title}</a> ' for title, anchor, *_ in sections)
    parts = [_head(run), f"<nav>{links}</nav>"]
    parts += [
        f'<section><h2 id="{anchor}">{title}</h2>\n{_section(run, part, make)}</section>'
        for title, anchor, part, make in sections
    ]
    return page(_title(run), TILE_STYLE + "\n".join(parts))


def _section(run: RunFiles, part: str, make: Callable[[RunFiles], str]) -> str:
    """A section's content, or why there is none: one picture that cannot be read is no reason to
    have no report.
    """
    if getattr(run, part) is None:
        needed = next((n for n in (part, "learner", "pictures") if n in run.missing), part)
        return _not_shown(run.missing.get(needed, f"the {part} is not there"))
    try:
        return make(run)
    except (TinyftError, OSError) as error:
        return _not_shown(str(error))


def _not_shown(reason: str) -> str:
    return f'<p class="soft">Not shown: {escape(reason)}.</p>'


def _title(run: RunFiles) -> str:
    return f"{run.description.get('arch', 'a network')} fine-tuned: {run.path.resolve().name}"


def _head(run: RunFiles) -> str:
    """The title, and the four figures that are asked for first."""
    description = run.description
    tiles = [(f"{len(run.steps):,}", f"steps in {counted(len(run.phases), 'phase')}")]
    if (seconds := description.get("seconds")) is not None:
        minutes, rest = divmod(round(seconds), 60)
        duration = f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
        tiles.append((duration, "from first to last step"))
    accuracy = run.metrics["valid_accuracy"][np.isfinite(run.metrics["valid_accuracy"])]
    if accuracy.size:
        n = description["data"].get("n_valid", 0)
        low, high = wilson(round(accuracy[-1] * n), n)
        interval = (
            f"accuracy on {counted(n, 'picture')} ({100 * low:.0f} to {100 * high:.0f} % at 95 %)"
        )
        tiles.insert(0, (f"{100 * accuracy[-1]:.1f} %", interval))
        tiles.append((f"{100 * accuracy.max():.1f} %", "in the best epoch"))
    row = "".join(f'<div class="tile"><b>{a}</b>{escape(b)}</div>' for a, b in tiles)
    state = "" if description["finished"] else "<p><b>This run is not finished.</b></p>"
    classes = escape(", ".join(description.get("classes", [])))
    return (
        f"<h1>{escape(_title(run))}</h1>\n{state}<p>Classes: {classes}.</p>"
        f'<div class="row">{row}</div>'
    )


def _recipe(run: RunFiles) -> str:
    """The recipe in words, then the plan as it was printed before the first step."""
    rows = []
    for name, start, end in run.phases:
        resting = run.resting(start)  # a rate means nothing there
        for group in run.groups:
            lr = run.metrics[f"lr {group}"][start:end]
            rates = [float(lr[0]), float(np.nanmax(lr)), float(lr[-1])]
            rows.append([name, group, *(["-"] * 3 if group in resting else rates)])
    return "\n".join(
        [
            *(f"<p>{paragraph}</p>" for paragraph in _in_words(run)),
            table(["phase", "group", "lr at first", "at its peak", "at last"], rows),
            f"<details><summary>The plan, as it was printed before the first step</summary>"
            f"<pre>{escape(run.description.get('plan_text', ''))}</pre></details>",
        ]
    )


def _in_words(run: RunFiles) -> list[Markup]:
    """Tell the phases, a paragraph each, in the plan's own words, and what weight decay does."""
    told = run.description.get("plan_in_words", {"phases": [], "decay": ""})
    each = [
        Markup(
            f"<b>{escape(phase['title'])}</b>: {escape(phase['text'])}"
            f'<br><span class="soft">Where: {escape(phase["where"])}</span>'
        )
        for phase in told["phases"]
    ]
    return [*each, escape(told["decay"])]


def _curves(run: RunFiles) -> str:
    """Draw loss, validation, learning rates of every group, momentum."""
    metrics, steps, borders = run.metrics, run.steps, run.borders
    validated = np.isfinite(metrics["valid_loss"])
    at = steps[validated]
    loss = [
        Line("training", steps, metrics["loss"], thin=True),
        Line("training", steps, metrics["smooth_loss"]),
        Line("validation", at, metrics["valid_loss"][validated], dots=True),
    ]
    accuracy = [
        Line("accuracy", steps[[0, -1]], np.full(2, np.nan)),  # all charts have one x axis
        Line("accuracy", at, 100 * metrics["valid_accuracy"][validated], dots=True),
    ]
    rates = [Line(name, steps, metrics[f"lr {name}"]) for name in run.groups]
    charts = [
        line_chart("Loss", loss, borders=borders),
        line_chart("Accuracy on the validation pictures, in %", accuracy, borders=borders),
        line_chart("Learning rate of each group", rates, log=True, borders=borders),
        line_chart("Momentum", [Line("momentum", steps, metrics["momentum"])], borders=borders),
    ]
    words = (
        "<p>The thin line is the loss of each batch, the thick one its running mean (fastai's, "
        "beta 0.98), which starts anew with each phase. Learning rates are on a logarithmic "
        "scale.</p>"
    )
    return f'{words}<div class="row">{"".join(charts)}</div>'


def _inside_steps(run: RunFiles) -> str:
    """Draw gradient norm and update ratio: lines by group, heat maps by layer."""
    ledger, borders = run.ledger, run.borders
    steps, lacking = ledger.steps["step"].astype(float), len(run.steps) - len(ledger.ids)
    words = f"<p>{escape(HOW_TO_READ)}</p>"
    if lacking > 0:
        words = f"<p>The ledger lacks {lacking} of the {len(run.steps)} steps.</p>{words}"
    columns = ("Gradient norm", "gradient_norm"), ("Update ratio", "update_ratio")
    charts = []
    for title, column in columns:
        groups = ledger.steps[column].T
        lines = [Line(n, steps, values) for n, values in zip(ledger.groups, groups, strict=True)]
        charts.append(line_chart(f"{title} of each group", lines, log=True, borders=borders))
    names, members = rows_of(ledger.parameters, ledger.norms)
    for title, column in columns:
        values = binned(combined(ledger.layers, column, members))
        span = float(steps[0]), float(steps[-1])
        charts.append(heat_map(f"{title} of each layer", values, names, span, borders=borders))
    problems = ledger.balance()
    books = (
        f"<p>The ledger does not balance: {escape('; '.join(problems[:3]))}.</p>"
        if problems
        else "<p>The ledger balances: each step starts from the weights that the last one ended "
        "with.</p>"
    )
    return f'{words}<div class="row">{"".join(charts)}</div>{books}'


def _proofs(run: RunFiles) -> str:
    """List for each phase which tensors are bit-identical, which moved, how far and why."""
    words = (
        "<p>Every tensor's bits were compared before and after each phase. A weight moves because "
        "of a gradient, of weight decay or of momentum; running statistics move when batches pass "
        "in training. A tensor that the plan says is frozen and that moved would have stopped the "
        "run.</p>"
    )
    if not run.ledger.proofs:
        return words + _not_shown("no phase is finished yet")
    shown = []
    for proof in run.ledger.proofs:
        counts = (
            f"{counted(len(proof.identical), 'tensor')} bit-identical, {len(proof.moved)} moved"
        )
        notes = "".join(f"<p>{escape(note)}.</p>" for note in proof.diagnosis())
        shown.append(
            f"<div><h3>{escape(proof.title)}: {counts}</h3>{proof._repr_html_()}{notes}</div>"
        )
    return f'{words}<div class="row">{"".join(shown)}</div>'


def _learned(run: RunFiles) -> str:
    return _judged_with(run) + learned(run.judged)


def _mistakes(run: RunFiles) -> str:
    return _judged_with(run) + mistakes(run.learner, run.judged)


def _judged_with(run: RunFiles) -> str:
    """Say which network was judged, where it is not the last."""
    if run.judged_file == "learner.h5":
        return ""
    why = "the run is not finished"
    if run.description["finished"]:
        there = (run.path / "learner.h5").exists()
        why = "learner.h5 cannot be read" if there else "learner.h5 is gone"
    return f"<p>Judged with the best epoch's network ({escape(run.judged_file)}), since {why}.</p>"


def _environment(run: RunFiles) -> str:
    """The command, the versions that the bits depend on, the hashes of what went in."""
    description = run.description
    command = description["settings"].get("command")
    rows = [[name, value] for name, value in description["versions"].items()]
    rows += [
        ["weights, sha256", description["weights_sha256"] or "random, from the seed"],
        ["pictures, sha256 of pictures.csv", description["data"]["sha256"]],
        ["seed", str((description["learner"] or {}).get("seed", "the caller's own"))],
    ]
    if command:
        how = f"<p>The command:</p><pre>{escape(shlex.join(command))}</pre>"
    else:  # the calls that made the plan and executed it
        given = dict(description["plan"])
        method = given.pop("method", "plan")
        arguments = ", ".join(f"{name}={value!r}" for name, value in given.items())
        call = f"learner.execute(learner.{method}({arguments}))"
        how = f"<p>It was started from Python, with {escape(call)}</p>"
    bits = (
        "<p>With the same versions, processor, weights and pictures it ends in the same bits.</p>"
    )
    return how + bits + table(["what", "which"], rows)


# ------------------------------------------------------------------------- the heat maps' rows


def rows_of(parameters: Sequence[str], norms: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """A heat map's rows: the weight of each layer that is not among the batch norms; of a deep
    network, those of each block together. Names, and the places of each row's parameters.
    """
    layers = [(i, name.removesuffix(".weight")) for i, name in enumerate(parameters)
              if name.endswith(".weight")]  # fmt: skip
    matrices = [(i, layer) for i, layer in layers if layer not in norms]
    rows: dict[str, list[int]] = {}
    for i, layer in matrices:
        is_deep = len(matrices) > MOST_ROWS and layer.startswith("layer")
        rows.setdefault(".".join(layer.split(".")[:2]) if is_deep else layer, []).append(i)
    return list(rows), list(rows.values())


def combined(
    layers: Mapping[str, np.ndarray], column: str, members: Sequence[Sequence[int]]
) -> np.ndarray:
    """A column for rows of several parameters: the norm of them all together.

    Shapes: layers[column] (steps, parameters) -> (rows, steps)
    """

    def norms(values: np.ndarray) -> np.ndarray:
        squares = np.square(values, dtype=np.float64)
        return np.sqrt(np.stack([squares[:, row].sum(axis=1) for row in members]))

    if column != "update_ratio":
        return norms(layers[column])
    # The ledger has the weights' norms after each step; before it they differ, but where nothing
    # moved.
    ratios, after = layers["update_ratio"], layers["weight_norm"].astype(np.float64)
    before = np.divide(layers["update_norm"], ratios, out=after, where=ratios > 0)
    updates, weights = norms(layers["update_norm"]), norms(before)
    return np.divide(updates, weights, out=np.zeros_like(weights), where=weights > 0)


def binned(values: np.ndarray, most: int = MOST_COLUMNS) -> np.ndarray:
    """Take means of neighbours, so that at most `most` columns are left.

    Shapes: values (rows, columns) -> (rows, min(columns, most))
    """
    if values.shape[1] <= most:
        return values
    edges = np.linspace(0, values.shape[1], most + 1).astype(int)
    return np.add.reduceat(values, edges[:-1], axis=1) / np.diff(edges)
