"""The tour: TOUR.md stop by stop, each with its source, and with the numbers of one real step."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from tinyft.engine.tape import observe

NUMBERS = re.compile(r"^```text\n(.*?)^```\n", re.M | re.S)
PLACE = re.compile(r"\*\*`(tinyft/[\w/]+\.py): ([\w.]+)`\*\*")
LAYER = "layer1.0"  # whose convolution and batch norm are looked at
ROW, COLUMN = 8, 8  # of the result that is computed by hand, filter 0 of photo 0
WEIGHT = "layer4.0.conv2.weight"  # whose first number Adam's screen follows

Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class Stop:
    """One stop: its words, without the numbers, and the numbers as the page has them."""

    number: int
    title: str
    words: str
    numbers: str
    places: tuple[tuple[str, str], ...]  # file and name of what is to be read, in bold on the page

    def source(self) -> Iterator[tuple[str, list[str]]]:
        """Where each function stands, and its lines."""
        for file, name in self.places:
            module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
            function = reduce(getattr, name.split("."), module)
            lines, first = inspect.getsourcelines(function)  # of an op, what it was made of
            yield f"{file}:{first}", textwrap.dedent("".join(lines)).splitlines()


def stops(page: str) -> list[Stop]:
    """Every stop of the page: its numbered headings and what stands below them."""
    made = []
    parts = re.split(r"^## (?:(\d+)\. )?(.*)\n", page, flags=re.M)[1:]
    for number, title, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if number:
            numbers = "".join(NUMBERS.findall(text))
            words, places = NUMBERS.sub("", text).strip(), tuple(PLACE.findall(text))
            made.append(Stop(int(number), title, words, numbers, places))
    return made


class Step:
    """One training step of a learner on its first batch, everything unfrozen, with all that passed
    through it. `rows(stop)` are the numbers of a stop.
    """

    def __init__(self, learner: Any):
        self.learner, self.plan = learner, learner.plan(9)
        self.parameters = dict(learner.model.named_parameters())
        phase = learner.plan(9, freeze_epochs=0).phases[0]
        learner.enter(phase, self.plan.switches["weight_decay"])
        learner.set_rates(phase, 0)
        self.batch = next(learner.own_data().train_batches(0, learner.preprocess))
        learner.model.train()
        self.calls: dict[tuple[str, str], Any] = {}
        self.order: list[Any] = []
        self.gradients: dict[tuple[str, str], tuple] = {}
        self.before = {name: p.data.copy() for name, p in self.parameters.items()}
        norm = dict(learner.model.named_modules())[f"{LAYER}.bn1"]
        old = norm.running_mean[0]
        with observe(self):
            self.loss = self._loss()
            self.loss.backward()
        self.running = old, norm.running_mean[0]
        learner.optimizer.step()
        self.after = {name: p.data for name, p in self.parameters.items()}
        self.loss_after = self._loss().item()

    def _loss(self) -> Any:
        for dropout in self.learner.dropouts:
            dropout.step = 0  # the same masks
        return self.learner.loss(self.learner.logits(self.batch), self.batch.labels)

    def after_forward(self, node: Any) -> None:
        self.calls[node.layer, node.op] = node.call

    def after_backward(self, node: Any, gradient: Any, input_gradients: tuple) -> None:
        self.order.append(node)
        self.gradients[node.layer, node.op] = (gradient, *input_gradients)

    def rows(self, stop: int) -> Rows:
        """The numbers of this stop: a row of words for each line."""
        screens = (
            self._begins, self._schedule, self._forward, self._convolution, self._batch_norm,
            self._head, self._surprise, self._backward, self._adam, self._moved,
        )  # fmt: skip
        return screens[stop - 1]()

    def _out(self, layer: str, op: str) -> np.ndarray:
        return self.calls[layer, op].out.data

    def _begins(self) -> Rows:
        photos, x = self.batch.images, self.learner.input(self.batch.images).data
        names = [self.learner.classes[label] for label in self.batch.labels[:4]]
        return [
            _row("photos", photos, f"bytes, mean {photos.mean():.1f}"),
            _row("x", x, f"numbers, mean {x.mean():.3f}, deviation {x.std():.3f}"),
            _row("labels", self.batch.labels, f"{', '.join(names)} ..."),
        ]

    def _schedule(self) -> Rows:
        rows: Rows = [("step", "phase", *(g.name for g in self.learner.groups), "momentum")]
        first = 0
        for phase in self.plan.phases:
            for i in (0, int(phase.lr[:, -1].argmax()), phase.steps - 1):
                rates = (f"{rate:.2e}" for rate in phase.lr[i])
                row = (str(first + i), phase.name, *rates, f"{phase.momentum[i]:.3f}")
                rows += [row] * (row not in rows)
            first += phase.steps
        return rows

    def _forward(self) -> Rows:
        stages = self.learner.model.stages
        outs = {"x": self.calls["conv1", "conv2d"].inputs[0].data}
        outs["stem"] = self._out("bn1", "batch_norm_train")
        outs |= {n: self._out(f"{n}.0.bn2", "batch_norm_train") for n in stages}
        rows = [
            _row(name, out, f"mean {out.mean():.3f}, largest {out.max():.2f}")
            for name, out in outs.items()
        ]
        return [*rows, _row("scores", self._out("head.linear2", "linear"), "8 for each photo")]

    def _convolution(self) -> Rows:
        call = self.calls[f"{LAYER}.conv1", "conv2d"]
        x, weight = (tensor.data for tensor in call.inputs)
        window = x[0, ROW - 1 : ROW + 2, COLUMN - 1 : COLUMN + 2]  # (3, 3, C), padding 1
        taps = np.einsum("rsc,crs->rs", window, weight[0])
        place, result = f"out[0, {ROW}, {COLUMN}, 0]", call.out.data[0, ROW, COLUMN, 0]
        return [
            _row("x", x, f"kept for dweight, {x.nbytes / 1e6:.1f} MB"),
            _row("weight", weight, f"kept for dx, {weight.nbytes / 1e3:.1f} kB"),
            _row("out", call.out.data, ""),
            *((f"its taps ({r}, :)", "", _spaced(row)) for r, row in enumerate(taps)),
            (place, "", f"{result:.3f}, the sum of its taps {taps.sum():.3f}"),
        ]

    def _batch_norm(self) -> Rows:
        layer = f"{LAYER}.bn1"
        call = self.calls[layer, "batch_norm_train"]
        dout, dx, dw, db = self.gradients[layer, "batch_norm_train"]
        x, w, b = (tensor.data for tensor in call.inputs)
        channel, mean, std = x[..., 0], x[..., 0].mean(), x[..., 0].std()
        normal = (channel - mean) / std
        at, wide = (normal * w[0] + b[0]).mean(), (normal * w[0] + b[0]).std()
        passed = (call.out.data[..., 0] > 0).mean()
        total, (old, new) = abs(dx[..., 0].sum()), self.running
        return [
            ("channel 0", str(channel.shape), f"mean {mean:.4f}, deviation {std:.4f}"),
            ("normalised", "", f"mean {abs(normal.mean()):.4f}, deviation {normal.std():.4f}"),
            (f"* {w[0]:.4f} + {b[0]:.4f}", "", f"mean {at:.4f}, deviation {wide:.4f}"),
            ("rectified", "", f"{passed:.0%} are above 0"),
            _row("dout", dout, f"length {_length(dout):.4f}"),
            _row("dx", dx, f"length {_length(dx):.4f}; channel 0 sums to {total:.4f}"),
            ("dw, db", str(dw.shape), f"of channel 0: {dw[0]:.5f}, {db[0]:.5f}"),
            ("running mean", "", f"was {old:.4f}; {new:.4f} is a tenth of the way further"),
        ]

    def _head(self) -> Rows:
        features = self.calls["head", "global_average_pool"].inputs[0].data
        dropped = self._out("head.dropout1", "dropout")
        largest, means = (self._out("head", f"global_{way}_pool") for way in ("max", "average"))
        return [
            _row("features", features, ""),
            _row("their largest", largest, f"photo 0: {_spaced(largest[0, :4])} ..."),
            _row("their means", means, f"photo 0: {_spaced(means[0, :4])} ..."),
            _row("both, dropped", dropped, f"{(dropped == 0).mean():.1%} are 0"),
            _row("linear1", self._out("head.linear1", "linear"), ""),
            _row("scores", self._out("head.linear2", "linear"), ""),
        ]

    def _surprise(self) -> Rows:
        scores = self._out("head.linear2", "linear")
        label = int(self.batch.labels[0])
        probabilities = np.exp(scores[0]) / np.exp(scores[0]).sum()
        right = probabilities[label]
        _, dscores = self.gradients["", "cross_entropy"]
        return [
            ("photo 0", "", f"{self.learner.classes[label]}, class {label}"),
            ("scores", "(8,)", _spaced(scores[0], 3)),
            ("probabilities", "(8,)", _spaced(probabilities, 3)),
            ("its loss", "", f"-log({right:.4f}) = {-np.log(right):.4f}"),
            ("loss", "()", f"{self.loss.item():.4f}, the mean of 16; of guesses log(8) = 2.0794"),
            ("dscores * 16", "(8,)", _spaced(16 * dscores[0], 3)),
        ]

    def _backward(self) -> Rows:
        newest = ", ".join(node.op for node in self.order[:5])
        stages = [*(f"{n}.0.bn2" for n in self.learner.model.stages[::-1]), "bn1"]
        weights = ("head.linear2.weight", WEIGHT, f"{LAYER}.conv1.weight", "conv1.weight")
        arrays = [(layer, self.gradients[layer, "batch_norm_train"][0]) for layer in stages]
        arrays += [(name, self.parameters[name].grad) for name in weights]
        return [
            ("nodes", f"{len(self.order)}", f"{newest} ..."),
            *(_row(f"d {name}", array, f"length {_length(array):.4f}") for name, array in arrays),
        ]

    def _adam(self) -> Rows:
        group = next(g for g in self.learner.groups if WEIGHT in g.parameters)
        old, new = self.before[WEIGHT][0, 0, 0, 0], self.after[WEIGHT][0, 0, 0, 0]
        g = self.parameters[WEIGHT].grad[0, 0, 0, 0]
        kept = self.learner.optimizer.state[WEIGHT]
        average, square = kept["average"][0, 0, 0, 0], kept["average_square"][0, 0, 0, 0]
        root = np.sqrt(square / (1 - 0.99))
        move, decay = -group.lr * g / (root + 1e-5), -group.lr * group.weight_decay * old
        return [
            ("one weight", f"{old:.6f}, the first of {WEIGHT}"),
            ("gradient", f"{g:.3e}"),
            ("average", f"{average:.3e}, a share of 1 - {group.momentum:g} of it"),
            ("corrected", f"{average / (1 - group.momentum):.3e}"),
            ("of its square", f"{square:.3e}, a share of 1 - 0.99 of it"),
            ("corrected root", f"{root:.3e}"),
            ("rate", f"{group.lr:.2e}, of {group.name}"),
            ("move", f"{move:.3e} = -rate * corrected / (root + 1e-5)"),
            ("decay", f"{decay:.3e} = -rate * {group.weight_decay:g} * weight"),
            ("afterwards", f"{new:.6f}, moved by {new - old:.2e}"),
        ]

    def _moved(self) -> Rows:
        rows: Rows = [("group", "rate", "gradient", "change", "change / weight")]
        for group in self.learner.groups:
            names = [*group.parameters]
            gradient = _length(*(self.parameters[n].grad for n in names))
            change = _length(*(self.after[n] - self.before[n] for n in names))
            size = _length(*(self.before[n] for n in names))
            figures = f"{gradient:.3f}", f"{change:.5f}", f"{change / size:.6f}"
            rows.append((group.name, f"{group.lr:.0e}", *figures))
        before, after = f"{self.loss.item():.4f}", f"{self.loss_after:.4f}"
        return [*rows, ("loss", "before", before, "after", after)]


def _row(name: str, array: np.ndarray, words: str) -> tuple[str, str, str]:
    return name, str(array.shape), words


def _spaced(numbers: np.ndarray, digits: int = 4) -> str:
    return " ".join(f"{number:.{digits}f}" for number in numbers)


def _length(*arrays: np.ndarray) -> float:
    return float(np.linalg.norm(np.concatenate([array.reshape(-1) for array in arrays])))
