"""docs/derivations.md is true: its code prints what it says, each formula is the package's, and the
lines that it quotes stand in the functions that it names."""

import ast
import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

import tinyft as ft
from tinyft.backends.reference import Backend
from tinyft.testing.gradient_check import _Comparison

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "derivations.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", PAGE, re.M | re.S)
ITEMS = re.findall(r"^- .*?(?=^- |^\n|\Z)", PAGE, re.M | re.S)

REFERENCE = Backend()
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def page():
    """The functions of the page, after its code was run as one program."""
    names, wrong = {}, []
    for code, expected in BLOCKS:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, names)
        if out.getvalue() != expected:
            wrong.append(out.getvalue())
    return names | {"wrong": wrong}


def test_the_code_prints_what_the_page_says(page):
    assert len(BLOCKS) == PAGE.count("```python") > 10
    assert not page["wrong"], "\n\n".join(page["wrong"])


def functions(tree, prefix=""):
    """Every function of a file by its dotted name, those in classes too."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")


@pytest.mark.slow
def test_the_lines_that_are_quoted_stand_where_the_page_says():
    """In an item of a list, a place (file and function) is followed by lines that it has."""
    lines = 0
    for item in ITEMS:
        body = None
        for text in re.findall(r"`([^`]+)`", " ".join(item.split())):
            if place := re.fullmatch(r"(tinyft/[\w/]+\.py): ([\w.]+)", text):
                source = (ROOT / place[1]).read_text()
                defined = dict(functions(ast.parse(source)))
                assert place[2] in defined, f"{place[1]} has no {place[2]}"
                body = " ".join(ast.get_source_segment(source, defined[place[2]]).split())
            elif body:
                assert text in body, f"no longer in the source: {text}"
                lines += 1
    assert lines >= 20


@pytest.mark.parametrize(
    ("stride", "padding", "size"), [(1, 1, (5, 6)), (2, 1, (6, 7)), (3, 0, (7, 9))]
)
def test_a_convolution(page, stride, padding, size):
    x, weight = RNG.normal(size=(2, *size, 3)), RNG.normal(size=(4, 3, 3, 2))
    window = {"stride": stride, "padding": padding}
    dout = RNG.normal(size=REFERENCE.conv2d(x, weight, **window).shape)
    dx, dweight = page["convolution_grads"](dout, x, weight, **window)
    same(dx, REFERENCE.conv2d_input_grad(dout, weight, x.shape, **window))
    same(dweight, REFERENCE.conv2d_weight_grad(dout, x, weight.shape, **window))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_convolution_of_one_dimension(page, stride):
    padded, w = RNG.normal(size=9), RNG.normal(size=3)
    dout = RNG.normal(size=len(page["convolve_1d"](padded, w, stride)))
    dpadded, dw = page["convolve_1d_grads"](dout, padded, w, stride)
    x, weight = padded[None, :, None, None], w[None, None, :, None]
    window = {"stride": stride, "padding": 0}
    up = dout[None, :, None, None]
    same(dpadded, REFERENCE.conv2d_input_grad(up, weight, x.shape, **window)[0, :, 0, 0])
    same(dw, REFERENCE.conv2d_weight_grad(up, x, weight.shape, **window)[0, 0, :, 0])
    spread = page["input_grad_as_convolution"](dout, w, stride)
    same(np.pad(spread, (0, len(padded) - len(spread))), dpadded)


@pytest.mark.parametrize("form", ["batch_norm_grads_in_steps", "batch_norm_grads"])
def test_batch_norm(page, form):
    x, dout = RNG.normal(3, 2, (12, 1)), RNG.normal(size=(12, 1))
    w, b, eps = np.array([1.7]), np.array([0.3]), 0.1
    out, mean, variance = REFERENCE.batch_norm_train(x, w, b, eps)
    same(page["batch_norm"](x[:, 0], w[0], b[0], eps)[0], out[:, 0])
    dx, dw, db, _ = REFERENCE.batch_norm_train_grad(dout, x, w, mean, variance, eps)
    by_hand = page[form](dout[:, 0], x[:, 0], w[0], b[0], eps)
    for ours, theirs in zip(by_hand, (dx[:, 0], dw[0], db[0]), strict=True):
        same(ours, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(page, smoothing):
    z, labels = RNG.normal(0, 3, (5, 4)), np.array([0, 3, 1, 1, 2])
    logits = ft.Tensor(z, requires_grad=True)
    loss = ft.ops.cross_entropy(logits, labels, label_smoothing=smoothing)
    loss.backward()
    by_hand, dz = page["cross_entropy"](z, labels, smoothing)
    same(by_hand, loss.data)
    same(dz, logits.grad)


def test_adam(page):
    gradients, momentums = RNG.normal(size=13), page["head_alone"].momentum
    parameter, average, average_square = np.zeros((3, 1))
    for step, (gradient, momentum) in enumerate(zip(gradients, momentums, strict=True), start=1):
        REFERENCE.adam_step(
            parameter, np.array([gradient]), average, average_square, step=step, lr=0.01,
            momentum=momentum, square_momentum=0.99, eps=1e-5, weight_decay=0,
        )  # fmt: skip
    same(page["adam"](gradients, momentums, 0.01), parameter[0])
    constant = [0.9] * 13
    same(
        page["adam"](gradients, constant, 0.01), page["adam"](gradients, constant, 0.01, exact=True)
    )


def test_winograd_is_a_convolution(page):
    from tinyft.backends.cpu.conv.winograd import transforms

    assert page["amplified"](transforms.POINTS) == pytest.approx(4.8, abs=0.05)  # its table
    x, weight = RNG.normal(size=(1, 6, 6, 1)), RNG.normal(size=(1, 1, 3, 3))
    A, G, B = transforms.winograd_matrices(transforms.POINTS, 3)
    tile = A @ ((G @ weight[0, 0] @ G.T) * (B @ x[0, :, :, 0] @ B.T)) @ A.T
    same(tile, REFERENCE.conv2d(x, weight)[0, :, :, 0])
    for ours, theirs in zip(
        (A, G, B), (transforms.A_TRANSPOSED, transforms.G, transforms.B_TRANSPOSED), strict=True
    ):
        same(ours, theirs)


class AtOne:
    """What gradcheck's comparison needs of a function of one number."""

    def __init__(self, f, x):
        self.f, self.x, self.n, self.upstreams, self.base = f, x, 0, [np.ones(1)], f(x)

    def _moved(self, step):
        return self.f(self.x + step)


def test_differences(page):
    for f, x in (
        (np.exp, np.ones(1)),
        (np.sin, np.ones(1)),
        (lambda x: np.maximum(x, 0), np.zeros(1)),
    ):
        slope, kink = _Comparison._differences(AtOne(f, x), 0, np.ones(1), 1e-3)
        same(page["richardson"](f, x, 1e-3), slope)
        np.testing.assert_allclose(page["bend"](f, x, 1e-3), kink, atol=1e-11)


def same(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
