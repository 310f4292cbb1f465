"""A trace as text, as a graph, as a page, and in a notebook."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import shutil
import subprocess

import numpy as np
import pytest

import tinyft as ft
from tests.inspection.test_html import balanced
from tinyft.inspection.html import escape
from tinyft.inspection.trace.open_node import FUSED, composition_of
from tinyft.nn.folding import fold
from tinyft.nn.head import LinearHead
from tinyft.nn.module import Module


@pytest.fixture(scope="module")
def trace():
    draw = np.random.default_rng(0)
    head = LinearHead(16, 3)
    head.linear.bias.requires_grad = False

    class Network(Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, x):
            return self.head(x)

    network = Network()
    x = ft.Tensor(draw.standard_normal((2, 4, 4, 16)).astype(np.float32), name='a "quoted" <x>')
    with ft.trace(network, open=[1]) as found:
        ft.ops.cross_entropy(network(x), np.array([0, 1])).backward()
    return found


def test_the_table_has_a_line_a_node(trace):
    lines = str(trace).splitlines()
    head = next(i for i, line in enumerate(lines) if line.lstrip().startswith("node"))
    table = lines[head + 1 : head + 1 + len(trace)]
    for line, node in zip(table, trace, strict=True):
        assert line.split()[0] == str(node.number) and node.op in line
        assert node.call.removeprefix("tinyft/") in line
        start = lines[head].index("op's source")
        assert line[start:].startswith(node.source.removeprefix("tinyft/"))
    assert "3 nodes: forward" in lines[1] and "backward keeps" in lines[1]
    assert "frozen (1): head.linear.bias" in str(trace)


@pytest.mark.slow
def test_a_fused_op_is_shown_as_the_plain_ops_that_it_stands_for():
    """In training, with given statistics, and where the batch norms are folded into convolutions;
    the kernel keeps its own name.
    """
    model = ft.nn.build("resnet10s", 2, seed=0)
    x = ft.Tensor(np.ones((2, 32, 32, 3), np.float32))
    with ft.trace() as trained:
        model(x)
    model.train(False)
    with ft.trace() as evaluated:
        model(x)
    with ft.trace() as folded, ft.no_grad():
        fold(model)(x)
    for found, name in ((trained, "batch_norm"), (evaluated, "batch_norm_eval")):
        shown = {n.layer: n.composition for n in found}
        assert shown["bn1"] == shown["layer1.0.bn1"] == f"{name} + relu"
        assert shown["layer1.0.bn2"] == f"{name} + add + relu"
        assert shown["layer2.0.downsample.1"] == name
        assert shown["conv1"] == "conv2d" and shown["fc"] == "linear"
    shown = {n.layer.removeprefix("network."): n.composition for n in folded}
    assert shown["layer1.0.conv1"] == "conv2d + relu"
    assert shown["layer1.0.conv2"] == "conv2d + add + relu"
    assert shown["layer2.0.downsample.0"] == "conv2d"
    node = trained["layer1.0.bn2"]
    assert [node.op, node.forward[0].kernel] == ["batch_norm_train", "batch_norm_train"]
    assert re.search(r"layer1\.0\.bn2 +batch_norm \+ add \+ relu +2x16x16x32 ", str(trained))
    assert str(node).startswith(f"node {node.number}: batch_norm + add + relu in layer1.0.bn2 ")
    for text in (trained.html(), trained.dot(), node._repr_html_()):
        assert "batch_norm + add + relu" in text


def test_taken_apart_a_fused_op_is_what_its_composition_says():
    """So the words are those of the ops that `unfused` runs, and no fused op is without words."""
    ones = ft.Tensor(np.ones(3, np.float32))
    x = ft.Tensor(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32))
    with ft.trace() as found:
        ft.ops.batch_norm(x, ones, ones, residual=x, relu=True)
    with ft.trace() as apart, ft.ops.unfused():
        ft.ops.batch_norm(x, ones, ones, residual=x, relu=True)
    assert found[0].composition == " + ".join(node.composition for node in apart)
    files = [f"tinyft.ops.{file.name}" for file in pkgutil.iter_modules(ft.ops.__path__)]
    files.append("tinyft.engine.primitives")
    functions = [f for file in files for f in vars(importlib.import_module(file)).values()]
    ops = [f for f in functions if hasattr(f, "__wrapped__") and inspect.isfunction(f)]
    fused = {f.__name__ for f in ops if "residual" in inspect.signature(f).parameters}
    assert fused == set(FUSED)
    assert composition_of("mine", {"residual": x, "relu": True}) == "mine"


def test_an_opened_node_says_all(trace):
    text = str(trace[1])
    assert text.startswith("node 1: linear in head.linear -> 2x3 float32")
    assert "x @ weight.T + bias: each output is a weighted sum of all inputs." in text
    assert "backward: out = x @ weight.T + bias; so: dx = dout @ weight" in text
    assert re.search(r"^bias +3 +head\.linear\.bias +none: frozen$", text, re.M)
    assert re.search(r"^forward +matmul +\w+ +[\d.]+ .*e-0\d$", text, re.M)
    assert len(re.findall(r"^weight\[\d+, \d+\] ", text, re.M)) == 3
    assert "matmul is defined in tinyft/backends/reference.py:" in text
    assert "(..., M, K) @ (..., K, N) -> (..., M, N)" in text


NODE = re.compile(r'^  (\w+) \[((?:\w+=(?:\w+|"(?:[^"\\]|\\.)*")(?:, )?)*)\];$')
EDGE = re.compile(r'^  (\w+) -> (\w+) \[((?:\w+=(?:\w+|"(?:[^"\\]|\\.)*")(?:, )?)*)\];$')


def test_the_graph_follows_the_grammar_of_dot(trace):
    first, *lines, last = trace.dot().splitlines()
    assert first == "digraph trace {" and last == "}"
    names, edges = set(), []
    for line in lines:
        if found := EDGE.match(line):
            edges.append(found.groups())
        else:
            found = NODE.match(line)
            assert found, line
            names.add(found.group(1))
    assert {"n0", "n1", "n2"} <= names
    assert all({start, end} <= names for start, end, _ in edges)
    assert len(edges) == sum(len(node.inputs) for node in trace)
    solid = {(start, end) for start, end, style in edges if "style=solid" in style}
    assert ("n1", "n2") in solid and ("n0", "n1") not in solid
    assert r"a \"quoted\" <x>" in trace.dot()


def test_the_page_has_every_node_and_asks_for_nothing(trace):
    text = trace.html()
    tags = balanced(text)
    ids = [attributes.get("id") for tag, attributes in tags if tag == "details"]
    assert ids == ["node-0", "node-1", "node-2"]
    opened = [attributes["id"] for tag, attributes in tags if "open" in attributes]
    assert opened == ["node-1"]
    links = {a["href"] for tag, a in tags if tag == "a"}
    assert links == {"#node-0", "#node-1"}
    assert "http" not in text.replace("http-equiv", "")
    for node in trace:
        assert node.source in text and escape(node.formula) in text
    assert "a &quot;quoted&quot; &lt;x&gt;" in text and "<x>" not in text


def test_in_a_notebook(trace):
    for text in (trace._repr_html_(), trace[1]._repr_html_()):
        balanced(text)
        assert "<script" not in text and "head.linear" in text


def test_an_empty_trace_can_be_shown():
    with ft.trace() as found:
        pass
    assert "0 nodes" in str(found)
    balanced(found.html())
    assert found.dot().startswith("digraph")


@pytest.mark.slow
def test_a_browser_opens_what_a_link_points_to(trace, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    page = tmp_path / "trace.html"
    page.write_text(trace.html(), encoding="utf-8")
    done = subprocess.run(
        [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--log-level=0", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         f"{page.as_uri()}#node-2"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert '<details id="node-2" open="">' in done.stdout, done.stderr[-2000:]
    assert '<details id="node-0">' in done.stdout
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
