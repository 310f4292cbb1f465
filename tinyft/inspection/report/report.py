"""The report of a run: one HTML page that shows a colleague what was done and what came of it.

Each section is a function of RunFiles. What cannot be shown is not left out in silence: its place
says why.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinyft.display import counted
from tinyft.errors import TinyftError
from tinyft.finetune.in_words import decay, phases
from tinyft.inspection.comparison.result import diff_section
from tinyft.inspection.html import Markup, escape, page, table
from tinyft.inspection.report.curves import curves, inside_steps
from tinyft.inspection.report.learned import wilson
from tinyft.inspection.report.mistakes import learned, mistakes
from tinyft.inspection.report.run_files import RunFiles
from tinyft.weights.files import replacing

if TYPE_CHECKING:
    from tinyft.data.loader import PictureData

FROZEN = " with {} frozen: the weights of their convolutions get no gradient"
RANDOM_HEAD = ", so that the random head's first errors do not move them"
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
    data: PictureData | None = None,
    device: str = "auto",
) -> Path:
    """Read the run at `run` and write its report to `out` (default: report.html in its folder);
    where it was written.

    `data` is needed where the run was made from arrays in memory.
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
    sections = [
        ("What was done", "plan", lambda: _recipe(run)),
        ("Curves", "curves", lambda: curves(run)),
        ("Inside each step", "steps", lambda: _or_missing(run, "ledger", _inside_steps)),
        ("What was frozen, and the proof", "proof", lambda: _or_missing(run, "ledger", _proofs)),
        (
            "Before and after",
            "changes",
            lambda: _or_missing(run, "changes", lambda run: diff_section(run.changes, level=3)),
        ),
        ("What it learned", "learned", lambda: _or_missing(run, "judged", _learned)),
        ("Its largest mistakes", "mistakes", lambda: _or_missing(run, "judged", _mistakes)),
        ("To make it again", "again", lambda: _environment(run)),
    ]
    links = "".join(f'<a href="#{anchor}">{title}</a> ' for title, anchor, _ in sections)
    parts = [_head(run), f"<nav>{links}</nav>"]
    parts += [
        f'<section><h2 id="{anchor}">{title}</h2>\n{_section(make)}</section>'
        for title, anchor, make in sections
    ]
    return page(_title(run), TILE_STYLE + "\n".join(parts))


def _section(make: Callable[[], str]) -> str:
    """A section's content, or why there is none: one picture that cannot be read is no reason to
    have no report.
    """
    try:
        return make()
    except (TinyftError, OSError) as error:
        return _not_shown(str(error))


def _or_missing(run: RunFiles, part: str, make: Callable[[RunFiles], str]) -> str:
    """The section, if the part of the run that it needs is there."""
    if getattr(run, part) is None:
        needed = next((n for n in (part, "learner", "pictures") if n in run.missing), part)
        return _not_shown(run.missing.get(needed, f"the {part} is not there"))
    return make(run)


def _not_shown(reason: str) -> str:
    return f'<p class="soft">Not shown: {escape(reason)}.</p>'


def _title(run: RunFiles) -> str:
    return f"{run.description.get('arch', 'a network')} fine-tuned: {run.path.resolve().name}"


def _head(run: RunFiles) -> str:
    """The title, and the four numbers that are asked first."""
    description = run.description
    tiles = [(f"{len(run.steps):,}", f"steps in {counted(len(run.phases), 'phase')}")]
    if (seconds := description.get("seconds")) is not None:
        tiles.append((_duration(seconds), "from first to last step"))
    accuracy = run.metrics["valid_accuracy"][np.isfinite(run.metrics["valid_accuracy"])]
    if accuracy.size:
        n = description["data"].get("n_valid", 0)
        low, high = wilson(round(accuracy[-1] * n), n)
        interval = f"accuracy on {n} pictures ({100 * low:.0f} to {100 * high:.0f} % at 95 %)"
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
    """What each phase did, a paragraph each: the plan's own words, or without a plan what
    metrics.csv tells.
    """
    if run.plan is not None:
        each = [
            Markup(
                f"<b>{escape(phase.title)}</b>: {escape(phase.text)}"
                f'<br><span class="soft">Where: {escape(phase.where)}</span>'
            )
            for phase in phases(run.plan)
        ]
        return [*each, escape(decay(run.plan))]
    said = []
    for number, (name, start, end) in enumerate(run.phases, 1):
        momentum, rate = (
            run.metrics[column][start:end] for column in ("momentum", f"lr {run.groups[-1]}")
        )
        peak = int(np.nanargmax(rate))
        falls = f", then falls to {rate[-1]:.2g}" if peak < len(rate) - 1 else ""
        back = " and back" if falls else ""
        frozen = run.frozen(start)
        held = FROZEN.format(" and ".join(frozen)) if frozen else ""
        if frozen and number == 1 and not run.description["first_step"]:
            held += RANDOM_HEAD
        text = (
            f"{counted(end - start, 'step')}{held}. The "
            f"learning rate of the {run.groups[-1]} rises from {rate[0]:.2g} to {rate[peak]:.2g} "
            f"in {counted(peak + 1, 'step')}{falls}"
        )
        if momentum.any():
            text += (
                f"; momentum goes the other way, {momentum[0]:.2f} to "
                f"{np.nanmin(momentum):.2f}{back}"
            )
        said.append(Markup(f"<b>Phase {number}, {escape(name)}</b>: {escape(text)}."))
    return said


def _inside_steps(run: RunFiles) -> str:
    lacking = len(run.steps) - len(run.ledger.ids)
    words = (
        f"<p>The ledger lacks {lacking} of the {len(run.steps)} steps.</p>" if lacking > 0 else ""
    )
    return words + inside_steps(run.ledger, run.borders)


def _proofs(run: RunFiles) -> str:
    """Per phase: which tensors are bit-identical, which moved, how far and why."""
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
        counts = f"{len(proof.identical)} tensors bit-identical, {len(proof.moved)} moved"
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
    """Which network was judged, where it is not the last."""
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
    how = (
        f"<p>The command:</p><pre>{escape(shlex.join(command))}</pre>"
        if command
        else f"<p>It was started from Python, with {escape(_call(description['plan']))}</p>"
    )
    bits = (
        "<p>With the same versions, processor, weights and pictures it ends in the same bits.</p>"
    )
    return how + bits + table(["what", "which"], rows)


def _call(plan: dict) -> str:
    """The call that made a plan and executed it."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in plan.items() if name != "method")
    return f"learner.execute(learner.{plan.get('method', 'plan')}({arguments}))"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
