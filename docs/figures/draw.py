"""Draw the figures of the pages from real runs of the bundled network on the bundled photos.

    python docs/figures/draw.py            writes the .svg files beside this script

Nothing in them is made up: each number and each picture comes out of the code that the figure is
about, run by the reference backend. tests/docs/test_figures.py draws them again and compares.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from svg import WIDTH, Figure, greys

import tinyft as ft
from tinyft.backends.cpu.conv.winograd.transforms import POINTS, winograd_matrices
from tinyft.backends.reference import pad, taps
from tinyft.bundled import bundled
from tinyft.finetune.groups import freeze_to
from tinyft.finetune.schedule import fine_tune_phases

FOLDER = Path(__file__).parent
PICTURE = 15  # of the batch, that is shown
WINOGRAD = 18, 19, 14, 12  # channel and filter of layer1.0.conv1; first row and column of the tile
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "head", "loss")


class Listener:
    """Keeps each operation's name, layer and result, and the gradients that backward made."""

    def __init__(self):
        self.ops, self.gradients = [], {}

    def after_forward(self, node):
        recorded = node.backward is not None
        self.ops.append((node.number, node.op, node.layer, node.call.out.data, recorded))

    def after_backward(self, node, gradient, input_gradients):
        self.gradients[node.number] = (gradient, *input_gradients)

    def find(self, op, layer):
        """The result of an operation, the gradient that it got, and those that it passed on."""
        number, *_, out, _ = next(row for row in self.ops if row[1:3] == (op, layer))
        return out, *self.gradients.get(number, ())


@cache
def learner():
    data = ft.ImageFolder(bundled("examples/animals8"), size=64, seed=0, augment=None)
    return ft.vision_learner(data, "resnet10s", seed=0, device="reference")


@cache
def batch():
    return next(learner().data.train_batches(0, learner().preprocess))


@cache
def step(first_trainable, bn):
    """One training step's forward and backward, with so many frozen groups."""
    freeze_to(learner().groups, first_trainable, bn)
    model = learner().model.train()
    with ft.observe(listener := Listener()), ft.ops.unfused():
        logits = model(learner().input(batch().images))
        ft.ops.cross_entropy(logits, batch().labels).backward()
    listener.trained = [n for n, p in model.named_parameters() if p.grad is not None]
    for _, parameter in model.named_parameters():
        parameter.grad = None
    return listener


def parameter(name):
    return dict(learner().model.named_parameters())[name].data


def length(array):
    return f"{np.linalg.norm(array):.3f}"


def nine_taps():
    """A convolution of the stem: each of its nine taps by itself, and their sum."""
    x = learner().input(batch().images).data[PICTURE : PICTURE + 1]
    f, place = 5, (10, 15)  # the filter; row and column of the result that is looked at
    conv = learner().model.conv1
    weight, stride, padding = conv.weight.data, conv.stride, conv.padding
    out = ft.backends.of(x).conv2d(x, weight, stride=stride, padding=padding)[0, ..., f]
    padded = pad(x, padding)
    maps = [
        (padded[index] @ weight[f, :, r, s])[0] for r, s, index in taps((3, 3), stride, out.shape)
    ]
    assert np.allclose(sum(maps), out, atol=1e-5)

    figure = Figure(
        478,
        "Nine shifted pictures, weighted and added",
        "A photo; one window of 3 x 3 pixels; nine maps, one for each place of the kernel; their "
        "sum, which is the result of the convolution.",
    )
    photo = batch().images[PICTURE]
    top, left = (i * stride - padding for i in place)
    figure.image(16, 44, 128, photo, photo=True)
    figure.rect(16 + 2 * left - 2, 44 + 2 * top - 2, 10, 10, stroke="orange", line=2)
    figure.path([(16 + 2 * left + 10, 44 + 2 * top + 2), (190, 108)], "orange", arrow=True)
    figure.image(196, 60, 96, photo[top : top + 3, left : left + 3])
    figure.rect(196, 60, 96, 96, stroke="orange")
    figure.lines(
        306, 76,
        ["One window: 9 pixels", "of 3 colours each,", "for one result.",
         f"Stride {stride}: the next is", f"{stride} pixels further."],
        colour="soft",
    )  # fmt: skip

    largest = max(np.abs(m).max() for m in maps)
    for i, values in enumerate(maps):
        x0, y0 = 16 + i % 3 * 92, 190 + i // 3 * 96
        figure.image(x0, y0, 72, greys(values, largest))
        size = 72 / len(values)
        figure.rect(x0 + place[1] * size - 1.5, y0 + place[0] * size - 1.5, 5, 5, stroke="orange")
        figure.text(x0 + 36, y0 + 87, f"{values[place]:+.2f}", anchor="middle", colour="orange")
        if i < 8:
            figure.text(x0 + 82, y0 + 41, "+", anchor="middle", size=16)
    figure.text(298, 424, "=", anchor="middle", size=18)
    figure.image(314, 300, 144, greys(out))
    size = 144 / len(out)
    x0, y0 = 314 + place[1] * size, 300 + place[0] * size
    figure.rect(x0 - 2, y0 - 2, 8.5, 8.5, stroke="orange")
    figure.text(386, 461, f"{out[place]:+.2f}", anchor="middle", colour="orange", bold=True)
    text = f"""Filter {f} of {len(weight)}, tap by
tap: the photo @
weight[f, :, r, s].
Grey is 0, white
positive. The sum:"""
    figure.lines(314, 206, text.splitlines(), colour="soft")
    return figure


def residual_block():
    """The block layer1.0, its operations, and how long the gradient is on each edge."""
    seen = step(0, "fastai")
    _, dout, _ = seen.find("relu", "layer1.0.bn2")
    x_shape = seen.find("relu", "bn1")[0].shape
    _, dsum, dbranch, dshortcut = seen.find("add", "layer1.0.bn2")
    _, _, dnorm2, *_ = seen.find("batch_norm_train", "layer1.0.bn2")
    _, _, dconv2, *_ = seen.find("conv2d", "layer1.0.conv2")
    _, _, dnorm1, *_ = seen.find("batch_norm_train", "layer1.0.bn1")
    _, _, dconv1, *_ = seen.find("conv2d", "layer1.0.conv1")
    _, dx, *_ = seen.find("relu", "bn1")

    figure = Figure(
        574,
        "A residual block and its gradient",
        "Forward, x goes through two convolutions with batch norm, and past them; both are added. "
        "Backward, the sum hands the gradient to both sides unchanged.",
    )
    figure.path([(24, 42), (24, 60)], "blue", arrow=True)
    figure.text(34, 56, "forward", colour="blue", bold=True)
    figure.path([(112, 60), (112, 42)], "orange", dash="4 3", arrow=True)
    figure.text(122, 56, "backward: the gradient's length", colour="orange", bold=True)

    middle, side = 130, 330

    def edge(x, start, end, gradient, note="", label=0.5):
        figure.path([(x, start), (x, end)], "blue", arrow=True)
        figure.path([(x + 14, end), (x + 14, start)], "orange", dash="4 3", arrow=True)
        y = start + (end - start) * label + 5
        figure.text(x + 24, y, length(gradient), colour="orange", bold=True)
        figure.text(x + 72, y, note, colour="soft")

    def box(top, text):
        figure.rect(middle - 75, top, 150, 30, fill="panel", stroke="line", radius=4)
        figure.text(middle, top + 20, text, anchor="middle")

    figure.text(middle, 92, f"x {x_shape}", anchor="middle")
    edge(middle, 100, 146, dx, f"sum of {length(dconv1)} and {length(dshortcut)}, as arrays", 0.3)
    figure.disc(middle, 150, 4, "blue")
    edge(middle, 154, 186, dconv1)
    box(188, "convolution 3x3")
    edge(middle, 218, 250, dnorm1)
    box(252, "batch norm, ReLU")
    edge(middle, 282, 314, dconv2)
    box(316, "convolution 3x3")
    edge(middle, 346, 378, dnorm2)
    box(380, "batch norm")
    edge(middle, 410, 442, dbranch)
    path = [(middle, 150), (side, 150), (side, 456), (middle + 13, 456)]
    figure.path(path, "blue", arrow=True)
    path = [(middle + 14, 464), (side + 14, 464), (side + 14, 136), (middle + 18, 136)]
    figure.path(path, "orange", dash="4 3", arrow=True)
    figure.text(side + 26, 290, length(dshortcut), colour="orange", bold=True)
    figure.lines(side + 26, 308, ["unchanged", "along the", "shortcut"], colour="soft")
    figure.rect(middle - 12, 444, 24, 24, fill="panel", stroke="blue", radius=12)
    figure.text(middle, 461, "+", anchor="middle", size=16)
    edge(middle, 470, 498, dsum)
    box(500, "ReLU")
    edge(middle, 530, 560, dout, "from the rest of the network")
    return figure


def frozen_border():
    """Which of a step's operations the tape holds, under three ways of freezing."""
    figure = Figure(
        376,
        "What the tape holds, and where backward ends",
        "A row of squares for each way to freeze, a square for each operation of a step: filled "
        "where the tape holds it.",
    )
    head = len(learner().groups) - 1
    rows = (
        ("The head alone, batch norms frozen too", head, "frozen"),
        ("The head alone, batch norms train (fastai's default)", head, "fastai"),
        ("Everything", 0, "fastai"),
    )
    total = len(list(learner().model.named_parameters()))

    def place(i, layer):
        stage = stage_of(layer)
        return 18 + 7.8 * i + 11 * STAGES.index(stage)

    for n, (name, first, bn) in enumerate(rows):
        seen, y = step(first, bn), 80 + 92 * n
        figure.text(16, y, name, bold=True)
        places = [place(i, layer) for i, (_, _, layer, *_) in enumerate(seen.ops)]
        for x, (*_, recorded) in zip(places, seen.ops, strict=True):
            fill, stroke = ("blue", "blue") if recorded else (None, "soft")
            figure.rect(x, y + 12, 5.5, 20, fill=fill, stroke=stroke, radius=1, line=1)
        on_tape = [x for x, row in zip(places, seen.ops, strict=True) if row[-1]]
        figure.path([(places[-1] + 3, y + 41), (on_tape[0] + 3, y + 41)], "orange", arrow=True)
        if n == 0:
            for stage in STAGES:
                xs = [
                    x for x, row in zip(places, seen.ops, strict=True) if stage_of(row[2]) == stage
                ]
                figure.text((xs[0] + xs[-1] + 5.5) / 2, 52, stage, colour="soft", anchor="middle")
        figure.text(
            16, y + 58,
            f"{len(on_tape)} of {len(seen.ops)} operations on the tape; {len(seen.trained)} of "
            f"{total} parameters get a gradient", colour="soft",
        )  # fmt: skip
        if first:
            border = min(x for x, row in zip(places, seen.ops, strict=True) if row[2][:4] == "head")
            figure.path([(border - 7, y + 5), (border - 7, y + 38)], "green", width=2.5)
    figure.rect(16, 348, 5.5, 14, fill="blue", stroke="blue", radius=1, line=1)
    figure.text(28, 360, "on the tape", colour="soft")
    figure.rect(122, 348, 5.5, 14, stroke="soft", radius=1, line=1)
    figure.text(134, 360, "ran, not recorded", colour="soft")
    figure.path([(276, 355), (258, 355)], "orange", arrow=True)
    figure.text(282, 360, "backward", colour="soft")
    figure.path([(362, 347), (362, 363)], "green", width=2.5)
    figure.text(370, 360, "frozen border", colour="soft")
    return figure


def stage_of(layer):
    """Which of STAGES a layer is in: "bn1" is the stem's, the loss has none."""
    first = layer.partition(".")[0]
    return "loss" if not first else first if first in STAGES else "stem"


def rates():
    """Learning rates of the three groups, and the momentum, through `tinyft finetune`'s plan."""
    steps_per_epoch, names = 13, [group.name for group in learner().groups]
    phases = fine_tune_phases(9, steps_per_epoch, len(names))
    lr = np.concatenate([phase.lr for phase in phases])
    momentum = np.concatenate([phase.momentum for phase in phases])
    border, steps = phases[0].steps, len(lr)
    figure = Figure(
        464,
        "Three learning rates and one momentum",
        "Learning rates of head, later and early layers over the steps of both phases, on a "
        "logarithmic scale, and the momentum below.",
    )
    left, right, top, bottom = 58, 464, 52, 278

    def across(i):
        return left + (right - left) * i / (steps - 1)

    def up(rate):
        return bottom - (bottom - top) * (np.log10(rate) + 7) / 4.5

    for power in range(-7, -2):
        y = up(10.0**power)
        figure.path([(left, y), (right, y)], "line", width=1)
        figure.text(left - 8, y + 4, f"1e{power}", colour="soft", anchor="end")
    figure.path([(across(border), top - 6), (across(border), 392)], "soft", dash="3 3", width=1)
    figure.text(across(border) - 6, top + 1, "head alone", colour="soft", anchor="end")
    figure.text(across(border) + 6, top + 1, "everything", colour="soft")
    for g, colour in enumerate(("green", "blue", "orange")):
        for start, phase in ((0, phases[0]), (border, phases[1])):
            points = [(across(start + i), up(r)) for i, r in enumerate(phase.lr[:, g]) if r >= 1e-7]
            if g >= phase.first_trainable:
                figure.path(points, colour, width=2.4)
            elif g == 0:  # the other frozen group's are the same
                figure.path(points, "soft", dash="3 3")
        peak = phases[1].lr[:, g]
        at = peak.argmax()
        figure.disc(across(border + at), up(peak[at]), 3.5, colour)
        label = f"{names[g]}: {peak[at]:.0e}".replace("e-0", "e-")
        x, y = across(border + at), up(peak[at]) - 9
        figure.text(x, y, label, colour=colour, bold=True, anchor="middle")
    low, high, floor = momentum.min(), momentum.max(), 386
    for value in (low, high):
        y = floor - 60 * (value - low) / (high - low)
        figure.path([(left, y), (right, y)], "line", width=1)
        figure.text(left - 8, y + 4, f"{value:.2f}", colour="soft", anchor="end")
    points = [(across(i), floor - 60 * (m - low) / (high - low)) for i, m in enumerate(momentum)]
    figure.path(points[:border], "ink", width=2)
    figure.path(points[border:], "ink", width=2)
    figure.text(across(border) + 8, 312, "momentum", bold=True)
    for i in (0, border, 65, steps - 1):
        figure.text(across(i), 408, str(i), colour="soft", anchor="middle")
    figure.text((across(65) + across(steps - 1)) / 2, 408, "step", colour="soft", anchor="middle")
    text = """Dashed: batch norms of the frozen groups, at a tenth.
All fall towards 1/100,000 of their peaks."""
    figure.lines(16, 434, text.splitlines(), colour="soft")
    return figure


def winograd_tile():
    """One tile of layer1.0.conv1, one channel and one filter, through F(4,3)."""
    x = step(0, "fastai").find("relu", "bn1")[0][PICTURE]
    channel, f, row, column = WINOGRAD
    tile = x[row : row + 6, column : column + 6, channel].astype(np.float64)
    weight = parameter("layer1.0.conv1.weight")[f, channel].astype(np.float64)
    A, G, B = winograd_matrices(POINTS, taps=3)
    values, filters = B @ tile @ B.T, G @ weight @ G.T
    products = values * filters
    out = A @ products @ A.T
    direct = ft.backends.of(x).conv2d(tile[None, :, :, None], weight[None, None])[0, :, :, 0]
    assert np.allclose(out, direct)
    n, m = products.size, out.size

    figure = Figure(
        416,
        f"{n} multiplications instead of {m * weight.size}",
        "A tile of 6 x 6 pixels and a filter of 3 x 3 weights become 36 values each; their "
        "products become 4 x 4 results.",
    )

    def grid(x0, y0, array, cell, stroke="line"):
        figure.image(x0, y0, cell * len(array), greys(array))
        for i in range(1, len(array)):
            figure.path(
                [(x0 + cell * i, y0), (x0 + cell * i, y0 + cell * len(array))], "soft", width=0.4
            )
            figure.path(
                [(x0, y0 + cell * i), (x0 + cell * len(array), y0 + cell * i)], "soft", width=0.4
            )
        figure.rect(x0, y0, cell * len(array), cell * len(array), stroke=stroke)

    cell = 17
    figure.text(16, 56, "6 x 6 pixels d", bold=True)
    grid(16, 66, tile, cell)
    figure.rect(16 + cell, 66 + cell, 4 * cell, 4 * cell, stroke="orange", line=2)
    figure.path([(124, 117), (172, 117)], "ink", arrow=True)
    figure.text(148, 108, "B' d B", anchor="middle")
    grid(178, 66, values, cell)
    figure.text(178, 56, f"{n} values", bold=True)

    figure.text(16, 220, "3 x 3 weights g", bold=True)
    grid(16 + 1.5 * cell, 230 + 1.5 * cell, weight, cell)
    figure.path([(124, 281), (172, 281)], "ink", arrow=True)
    figure.text(148, 272, "G g G'", anchor="middle")
    grid(178, 230, filters, cell)
    figure.text(178, 220, f"{n} values", bold=True)

    figure.path([(286, 117), (306, 117), (306, 142), (334, 142)], "ink", arrow=True)
    figure.path([(286, 281), (306, 281), (306, 166), (334, 166)], "ink", arrow=True)
    figure.text(340, 94, f"{n} products", bold=True)
    grid(340, 104, products, cell)
    figure.path([(391, 212), (391, 252)], "ink", arrow=True)
    figure.text(400, 237, "A' . A")
    grid(391 - 2 * cell, 258, out, cell, "orange")
    figure.text(391, 346, f"{m} results", bold=True, anchor="middle")
    text = f"""Sliding the filter takes {m} x {weight.size}. Framed: where the results lie.
Channels are added before A' . A, so each of the {n} places is
one matrix product, tiles by channels. Grey is 0, white positive."""
    figure.lines(16, 366, text.splitlines(), colour="soft")
    return figure


def batch_norm():
    """One channel of layer1.0.bn1 on a batch: as it comes, normalised, scaled and shifted."""
    seen, c = step(0, "fastai"), 8
    x = seen.find("conv2d", "layer1.0.conv1")[0][..., c].astype(np.float64).ravel()
    scale, shift = (float(parameter(f"layer1.0.bn1.{name}")[c]) for name in ("weight", "bias"))
    normalised = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    out = normalised * scale + shift
    assert np.allclose(
        out, seen.find("batch_norm_train", "layer1.0.bn1")[0][..., c].ravel(), atol=1e-4
    )
    figure = Figure(
        432,
        "What batch norm does to a channel",
        "Three histograms of one channel: as the convolution gives it, normalised, and scaled and "
        "shifted, where the ReLU behind it cuts.",
    )
    rows = (
        (x, "From the convolution", "blue"),
        (normalised, "Normalised: less the mean, by the deviation", "blue"),
        (out, f"Times the scale {scale:.2f}, plus the shift {shift:+.2f}", "blue"),
    )
    edges = np.linspace(-6, 6, 65)
    left, right = 16, WIDTH - 16

    def across(value):
        return left + (right - left) * (value + 6) / 12

    for n, (values, name, colour) in enumerate(rows):
        top, floor = 54 + 128 * n, 148 + 128 * n
        counts = np.histogram(np.clip(values, -5.99, 5.99), edges)[0]
        heights = 64 * counts / counts.max()
        steps = np.stack([np.repeat(across(edges), 2)[1:-1], floor - np.repeat(heights, 2)], axis=1)
        cut = len(steps) // 2 if n == 2 else 0  # the half below 0, if a ReLU follows
        for part, fill in ((steps[:cut], "line"), (steps[cut:], colour)):
            if len(part):
                figure.area([(part[0][0], floor), *part, (part[-1][0], floor)], fill)
        figure.path([(left, floor), (right, floor)], "soft", width=1)
        figure.path([(across(0), floor - 68), (across(0), floor)], "soft", width=1, dash="3 3")
        mean = across(values.mean())
        figure.path([(mean, floor - 68), (mean, floor + 5)], "orange", width=2)
        figure.text(left, top, name, bold=True)
        text = f"mean {abs(values.mean()):.2f}" if n == 1 else f"mean {values.mean():.2f}"
        figure.text(left, top + 18, text, colour="orange")
        figure.text(left + 92, top + 18, f"deviation {values.std():.2f}", colour="soft")
        for v in (-6, -3, 0, 3, 6):
            anchor = {-6: "start", 6: "end"}.get(v, "middle")
            figure.text(across(v), floor + 16, str(v), colour="soft", anchor=anchor)
    text = f"ReLU makes {np.mean(out < 0):.0%} of them 0 (grey)"
    figure.text(right, 54 + 128 * 2 + 18, text, colour="soft", anchor="end")
    return figure


FIGURES = {
    "taps": nine_taps,
    "block": residual_block,
    "tape": frozen_border,
    "rates": rates,
    "winograd": winograd_tile,
    "batch_norm": batch_norm,
}


def drawn(name: str) -> str:
    """The text of a figure's file."""
    with ft.backends.use("reference"):
        return str(FIGURES[name]())


if __name__ == "__main__":
    for name in FIGURES:
        (FOLDER / f"{name}.svg").write_text(drawn(name))
        print(name, (FOLDER / f"{name}.svg").stat().st_size, "bytes")
