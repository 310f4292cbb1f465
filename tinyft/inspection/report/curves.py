"""The report's curves and heat maps: what the numbers did, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinyft.inspection.html import escape
from tinyft.inspection.report.charts import Line, heat_map, line_chart

if TYPE_CHECKING:
    from tinyft.inspection.ledger.reading import LedgerReading
    from tinyft.inspection.report.run_files import RunFiles

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


def curves(run: RunFiles) -> str:
    """Loss, validation, learning rates of every group, momentum."""
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


def inside_steps(ledger: LedgerReading, borders: Sequence[tuple[float, str]]) -> str:
    """Gradient norm and update ratio: lines by group, heat maps by layer."""
    steps = ledger.steps["step"].astype(float)
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
    return f'<p>{escape(HOW_TO_READ)}</p><div class="row">{"".join(charts)}</div>{books}'


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
    """A column for rows of several parameters: the norm of all their numbers together.

    Shapes: layers[column] (steps, parameters) -> (rows, steps)
    """

    def norms(values: np.ndarray) -> np.ndarray:
        squares = np.square(values, dtype=np.float64)
        return np.sqrt(np.stack([squares[:, row].sum(axis=1) for row in members]))

    if column != "update_ratio":
        return norms(layers[column])
    updates, weights = norms(layers["update_norm"]), norms(_norms_before(layers))
    return np.divide(updates, weights, out=np.zeros_like(weights), where=weights > 0)


def _norms_before(layers: Mapping[str, np.ndarray]) -> np.ndarray:
    """The weights' norms before each step. The ledger has those after it, which are the same only
    for a parameter at rest.

    Shapes: out (steps, parameters) float64
    """
    ratios, after = layers["update_ratio"], layers["weight_norm"].astype(np.float64)
    return np.divide(layers["update_norm"], ratios, out=after, where=ratios > 0)


def binned(values: np.ndarray, most: int = MOST_COLUMNS) -> np.ndarray:
    """At most `most` columns, each the mean of neighbours.

    Shapes: values (rows, columns) -> (rows, min(columns, most))
    """
    if values.shape[1] <= most:
        return values
    edges = np.linspace(0, values.shape[1], most + 1).astype(int)
    return np.add.reduceat(values, edges[:-1], axis=1) / np.diff(edges)
