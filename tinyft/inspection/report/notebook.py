"""The engine's objects in a notebook: tables and charts in place of printed text.

`print` says the same, but for the curves of a plan; see tinyft/display.py for who calls this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from tinyft.data.folder import whole_picture
from tinyft.data.loader import PictureData
from tinyft.display import as_preformatted
from tinyft.engine.tensor import Tensor, facts
from tinyft.errors import TinyftError
from tinyft.finetune.describe import COLUMNS as LAYER_COLUMNS
from tinyft.finetune.describe import Description, describe
from tinyft.finetune.plan import Plan
from tinyft.finetune.records import GROUP_COLUMNS, Prediction, StepRecord
from tinyft.finetune.training import Training
from tinyft.finetune.trials import LrFinding
from tinyft.inspection.html import escape, picture, table
from tinyft.inspection.ledger.ledger import Ledger
from tinyft.inspection.report.charts import Line, line_chart
from tinyft.inspection.report.images import first_batch
from tinyft.inspection.trace.page import node_html, trace_section
from tinyft.inspection.trace.table import TracedNode, TraceTable
from tinyft.nn.layer_table import COLUMNS, Summary, summary
from tinyft.nn.module import Module
from tinyft.weights.preprocess import Preprocess

# A notebook may be light or dark and does not say which: colours that both can show.
STYLE = (
    "--line:#8886;--soft:#888;--series-1:#3d8ad6;--series-2:#d97a1f;--series-3:#2c9a6c;"
    "--series-4:#a565c9"
)


def as_html(value: Any) -> str:
    """Draw an object for a notebook's cell; one that has no drawing here is printed."""
    for kind, draw in DRAWN.items():
        if isinstance(value, kind):
            return f'<div style="{STYLE}">{draw(value)}</div>'
    return as_preformatted(value)


def _tensor(tensor: Tensor) -> str:
    """Its facts, then its values."""
    return f"<b>{escape(facts(tensor))}</b><pre>{escape(tensor.data)}</pre>"


def _summary(shown: Summary) -> str:
    return f"{table(COLUMNS, shown.cells())}<p>{escape(shown.total)}</p>"


def _module(module: Module) -> str:
    return f"<b>{escape(type(module).__name__)}</b>{_summary(summary(module))}"


def _plan(plan: Plan) -> str:
    """The plan's text, the curves that it stands for, and the batch that it begins with."""
    lr = np.concatenate([phase.lr for phase in plan.phases])  # (steps, groups)
    momentum = np.concatenate([phase.momentum for phase in plan.phases])
    first, borders = plan.first_step, []
    steps = np.arange(first, first + len(lr))
    for phase in plan.phases:
        borders.append((float(first), phase.name))
        first += phase.steps
    names = [state.name for state in plan.states[0]]
    rates = [Line(name, steps, lr[:, g]) for g, name in enumerate(names)]
    charts = (
        line_chart("Learning rate of each group", rates, log=True, borders=borders),
        line_chart("Momentum", [Line("momentum", steps, momentum)], borders=borders),
    )
    row = f'<div style="display:flex;flex-wrap:wrap;gap:1rem">{"".join(charts)}</div>'
    batch = ""
    if plan.data is not None:
        with contextlib.suppress(TinyftError, OSError):  # training will say which picture is gone
            epoch = plan.first_step // plan.data.steps_per_epoch
            batch = first_batch(plan.data, plan.subject.preprocess, epoch)
    return f"<pre>{escape(plan)}</pre>{row}{batch}"


def _step(record: StepRecord) -> str:
    lines = "<br>".join(map(escape, record.lines()))
    return f"<p>{lines}</p>{table(GROUP_COLUMNS, record.rows())}"


def _data(data: PictureData) -> str:
    return f"<pre>{escape(data)}</pre>{first_batch(data, Preprocess.for_architecture('resnet18'))}"


def _learner(learner: Training) -> str:
    return f"<b>{escape(learner)}</b>{_description(describe(learner))}"


def _description(description: Description) -> str:
    return table(LAYER_COLUMNS, list(map(astuple, description.lines)))


def _rates(finding: LrFinding) -> str:
    """The curve up to where it stopped, and the rates that the rules read from it."""
    x = np.log10(finding.lrs)
    lines = [Line("loss", x, finding.losses, thin=True), Line("loss", x, finding.smooth_losses)]
    borders = sorted((float(np.log10(s.lr)), rule) for rule, s in finding.suggestions.items())
    chart = line_chart(
        "Loss, by learning rate", lines, borders=borders, x_label="log10 of the rate"
    )
    return f"{chart}<pre>{escape(finding)}</pre>"


def _prediction(prediction: Prediction) -> str:
    """Its picture, if that is a file, and what it might be."""
    unlike = ", unlike anything it learned from" if prediction.unlike else ""
    said = f"{prediction.label}, {100 * prediction.probability:.1f} %{unlike}"
    with contextlib.suppress(TinyftError, OSError, ValueError):
        shown = picture(whole_picture(Path(prediction.file)), said, width=160, lossless=False)
        said = f"{shown}<br>{escape(said)}"
    return f"<p>{said}</p>"


def _ledger(ledger: Ledger) -> str:
    return ledger.reading._repr_html_() if ledger.file else f"<p>{escape(ledger)}</p>"


DRAWN: dict[type, Callable[[Any], str]] = {
    Tensor: _tensor,
    Summary: _summary,
    Module: _module,
    Plan: _plan,
    StepRecord: _step,
    PictureData: _data,
    Training: _learner,
    Description: _description,
    LrFinding: _rates,
    Prediction: _prediction,
    Ledger: _ledger,
    TracedNode: node_html,
    TraceTable: trace_section,
}
