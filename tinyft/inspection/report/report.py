"""The report of a run: one HTML page that shows a colleague what was done and what came of it.

Each section is a function of RunFiles. What cannot be shown is not left out in silence: its place
says why.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tinyft.display import counted, duration, first_few
from tinyft.errors import TinyftError
from tinyft.inspection.comparison.result import diff_section
from tinyft.inspection.html import Markup, escape, page, table
from tinyft.inspection.ledger.reading import LedgerReading
from tinyft.inspection.report.charts import Line, heat_map, line_chart
from tinyft.inspection.report.images import first_batch
from tinyft.inspection.report.learned import Judgements, confusions, mistakes, scores, wilson
from tinyft.inspection.report.run_files import RunFiles
from tinyft.nn.resnet import stage_of
from tinyft.weights.files import write_page

if TYPE_CHECKING:
    from tinyft.finetune.run.reading import MaybeMoved

Part = TypeVar("Part")

MOST_COLUMNS = 200  # of a heat map: more steps than that are averaged
HOW_TO_READ = (
    "A row is a layer's weights, the input's at the top, a column is a step, and bright is large. "
    "An update ratio, |update| / |weights|, of about 1e-3 a step is usual (CS231n notes, Neural "
    "networks 3); at 1e-2 the learning rate is probably too high, at 1e-6 the layer hardly moves. "
    "In fine-tuning it should get brighter downwards. Empty: frozen, or exactly 0."
)


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
    write_page(path, text)
    return path


def report_html(run: RunFiles) -> str:
    """The whole page: what whoever took the photos asks for first, and the rest folded away."""
    judged, ledger, changes = run.judged, run.ledger, run.changes
    wrong, compared = partial(_mistakes, run), partial(diff_section, level=3)
    shown = [  # title, anchor, content
        ("What it takes for what", "learned", _section(run, "judged", judged, confusions)),
        ("Its largest mistakes", "mistakes", _section(run, "judged", judged, wrong)),
        ("Curves", "curves", _section(run, "metrics", run, _curves)),
        ("What was frozen, and the proof", "proof", _section(run, "ledger", ledger, _proofs)),
    ]
    folded = [
        ("Class by class, and how sure it is", "classes", _section(run, "judged", judged, scores)),
        ("What was done, and why", "plan", _section(run, "metrics", run, recipe_section)),
        ("Inside each step", "steps", _section(run, "ledger", ledger, partial(_inside_steps, run))),
        ("Before and after", "changes", _section(run, "changes", changes, compared)),
        ("To make it again", "again", _section(run, "description", run, _environment)),
    ]
    parts = [_head(run)]
    parts += [
        f'<section><h2 id="{anchor}">{title}</h2>\n{content}</section>'
        for title, anchor, content in shown
    ]
    parts += [
        f'<details class="fold"><summary><h2 id="{anchor}">{title}</h2></summary>\n'
        f"{content}</details>"
        for title, anchor, content in folded
    ]
    return page(_title(run), "\n".join(parts))


def _section(run: RunFiles, name: str, part: Part | None, make: Callable[[Part], str]) -> str:
    """What is made of a part of the run, or why there is none: one picture that cannot be read is
    no reason to have no report.
    """
    if part is None:
        needed = next((n for n in (name, "learner", "pictures") if n in run.missing), name)
        return _not_shown(run.missing.get(needed, f"the {name} is not there"))
    try:
        return (_judged_with(run) if name == "judged" else "") + make(part)
    except (TinyftError, OSError) as error:
        return _not_shown(str(error))


def _not_shown(reason: str) -> str:
    return f'<p class="soft">Not shown: {escape(reason)}.</p>'


def _title(run: RunFiles) -> str:
    return f"{run.description['arch']} fine-tuned: {run.path.resolve().name}"


def _head(run: RunFiles) -> str:
    """The title, and the four figures that are asked for first."""
    description = run.description
    tiles = [(f"{len(run.steps):,}", f"steps in {counted(len(run.borders), 'phase')}")]
    if (seconds := description.get("seconds")) is not None:
        tiles.append((duration(seconds), "from first to last step"))
    accuracy = run.metrics["valid_accuracy"][np.isfinite(run.metrics["valid_accuracy"])]
    if accuracy.size:
        n = len(run.judged.labels) if run.judged else description["data"].get("n_valid", 0)
        low, high = wilson(round(accuracy[-1] * n), n)
        interval = (
            f"accuracy on {counted(n, 'picture')} ({100 * low:.0f} to {100 * high:.0f} % at 95 %)"
        )
        tiles.insert(0, (f"{100 * accuracy[-1]:.1f} %", interval))
        tiles.append((f"{100 * accuracy.max():.1f} %", "in the best epoch"))
    fair = run.judged.evaluation.balanced_accuracy if run.judged else None
    if fair is not None:
        tiles.insert(1, (f"{100 * fair:.1f} %", "balanced accuracy: every class counts alike"))
    row = "".join(f'<div class="tile"><b>{a}</b>{escape(b)}</div>' for a, b in tiles)
    state = "" if description["finished"] else "<p><b>This run is not finished.</b></p>"
    classes = description["classes"]
    names = escape(", ".join(classes))
    return (
        f"<h1>{escape(_title(run))}</h1>\n{state}"
        f'<p class="cut" title="{names}">{len(classes)} classes: {names}</p>'
        f'<div class="row">{row}</div>'
    )


def recipe_section(run: RunFiles) -> str:
    """Show the recipe in words and as rates, a batch of it, the plan as it was printed."""
    metrics, steps, borders = run.metrics, run.steps, run.borders
    rates = [Line(name, steps, metrics[f"lr {name}"]) for name in run.groups]
    charts = [
        line_chart("Learning rate of each group", rates, log=True, borders=borders),
        line_chart("Momentum", [Line("momentum", steps, metrics["momentum"])], borders=borders),
    ]
    return "\n".join(
        [
            *(f"<p>{paragraph}</p>" for paragraph in _in_words(run)),
            f'<div class="row">{"".join(charts)}</div>',
            _batch(run),
            f"<details><summary>The plan, as it was printed before the first step</summary>"
            f"<pre>{escape(run.description['plan_text'])}</pre></details>",
        ]
    )


def _batch(run: RunFiles) -> str:
    """Draw the batch that the run began with; without its pictures, nothing."""
    learner = run.learner
    if learner is None or learner.data is None or not learner.data.n_train:
        return ""
    epoch = run.description["first_step"] // learner.data.steps_per_epoch
    try:
        return first_batch(learner.data, learner.preprocess, epoch)
    except (TinyftError, OSError) as error:
        return _not_shown(str(error))


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
    if left_out := run.description.get("left_out"):
        names, step = first_few(sorted(left_out)), min(left_out.values())
        each.append(escape(f"Gone or changed, and left out, from step {step} on: {names}."))
    return [*each, escape(told["decay"])]


def _curves(run: RunFiles) -> str:
    """Draw loss and accuracy."""
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
    charts = [
        line_chart("Loss", loss, borders=borders),
        line_chart("Accuracy on the validation pictures, in %", accuracy, borders=borders),
    ]
    words = (
        '<p class="soft">Thin: each batch; thick: a running mean (fastai\'s, 0.98). Point at a '
        "place for values.</p>"
    )
    return f'<div class="row">{"".join(charts)}</div>{words}'


def _inside_steps(run: RunFiles, ledger: LedgerReading) -> str:
    """Draw gradient norm and update ratio: lines by group, heat maps by layer."""
    steps, borders = ledger.steps["step"].astype(float), run.borders
    lacking = len(run.steps) - len(ledger.ids)
    words = f"<p>{escape(HOW_TO_READ)}</p>"
    if lacking > 0:
        words = f"<p>The ledger lacks {lacking} of the {len(run.steps)} steps.</p>{words}"
    columns = ("Gradient norm", "gradient_norm"), ("Update ratio", "update_ratio")
    charts = []
    for title, column in columns:
        groups = ledger.steps[column].T
        lines = [Line(n, steps, values) for n, values in zip(ledger.groups, groups, strict=True)]
        charts.append(line_chart(f"{title} of each group", lines, log=True, borders=borders))
    places = layers_of(ledger.parameters, ledger.norms)
    for title, column in columns:
        values = binned(ledger.layers[column][:, [*places.values()]].T)
        span = float(steps[0]), float(steps[-1])
        charts.append(heat_map(f"{title} of each layer", values, [*places], span, borders=borders))
    problems = ledger.balance()
    books = (
        f"<p>The ledger does not balance: {escape('; '.join(problems[:3]))}.</p>"
        if problems
        else "<p>The ledger balances: each step starts from the weights that the last one ended "
        "with.</p>"
    )
    return f'{words}<div class="row">{"".join(charts)}</div>{books}'


def _proofs(ledger: LedgerReading) -> str:
    """Count for each phase and stage which tensors are bit-identical; folded, which moved, how far
    and why.
    """
    proofs = ledger.proofs
    if not proofs:
        return _not_shown("no phase is finished yet")
    rows = []
    for proof in proofs:
        same: dict[str, list[bool]] = {}  # of each stage's tensors, the same ones in each phase
        for tensor in proof.tensors:
            same.setdefault(stage_of(tensor.name), []).append(tensor.identical)
        rows.append([proof.title, *(f"{sum(stage)} of {len(stage)}" for stage in same.values())])
    shown = []
    for proof in proofs:
        told = f"{counted(len(proof.identical), 'tensor')} bit-identical, {len(proof.moved)} moved"
        notes = "".join(f"<p>{escape(note)}.</p>" for note in proof.diagnosis())
        shown.append(
            f"<div><h3>{escape(proof.title)}: {told}</h3>{proof._repr_html_()}{notes}</div>"
        )
    return (
        "<p>So many tensors of each part were the same, bit for bit, after a phase as before.</p>"
        f"{table(['phase', *same], rows)}<details><summary>What moved, how far and why</summary>"
        "<p>A weight moves because of a gradient, of weight decay or of momentum; running "
        "statistics move when batches pass in training. A tensor that the plan says is frozen and "
        "that moved would have stopped the run.</p>"
        f'<div class="row">{"".join(shown)}</div></details>'
    )


def _mistakes(run: RunFiles, judged: Judgements) -> str:
    return mistakes(run.learner, judged) if run.learner else ""


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
    bits = "With the same versions, processor, weights and pictures it ends in the same bits."
    if description.get("left_out"):
        bits = "Pictures were lost on its way, so it does not end so again."
    return f"{how}<p>{bits}</p>{table(['what', 'which'], rows)}"


def layers_of(parameters: Sequence[str], norms: Sequence[str]) -> dict[str, int]:
    """A heat map's rows: of each layer that is no batch norm the place of its weight."""
    names = {name.removesuffix(".weight"): i for i, name in enumerate(parameters)}
    return {n: i for n, i in names.items() if n != parameters[i] and n not in norms}


def binned(values: np.ndarray, most: int = MOST_COLUMNS) -> np.ndarray:
    """Take means of neighbours, so that at most `most` columns are left.

    Shapes: values (rows, columns) -> (rows, min(columns, most))
    """
    if values.shape[1] <= most:
        return values
    edges = np.linspace(0, values.shape[1], most + 1).astype(int)
    return np.add.reduceat(values, edges[:-1], axis=1) / np.diff(edges)
