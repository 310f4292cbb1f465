"""`tinyft inspect`: a step made again, a node opened, files, JSON, and requests that are wrong."""

import json
import shutil
from pathlib import Path

import pytest

import tinyft as ft
from tinyft.cli import inspect


def contents(run):
    return {p: p.read_bytes() for p in sorted(Path(run).rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_a_step_is_shown_op_by_op(tinyft, trained):
    before = contents(trained)
    done = tinyft("inspect", trained, "--step", 1, "--html", "s.html", "--dot", "s.dot")
    assert done.code == 0, done.err
    assert "step 1, in epoch 1" in done.out
    assert "to the bit the loss of metrics.csv" in done.out
    assert "layer3.2.conv2" in done.out and "cross_entropy" in done.out
    assert "where backward stopped, and why:" in done.out
    assert "written: s.html" in done.err and "written: s.dot" in done.err
    assert Path("s.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert Path("s.dot").read_text().startswith("digraph")
    assert contents(trained) == before


@pytest.mark.parametrize(("columns", "places"), [(300, True), (100, False)])
def test_in_a_terminal_places_are_shown_where_they_fit(capsys, monkeypatch, columns, places):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(inspect, "has_terminal", lambda: True)
    x = ft.Tensor([1.0, 2.0], requires_grad=True)
    with ft.trace() as trace:
        ft.ops.sum(ft.ops.relu(x)).backward()
    inspect.show(trace)
    out = capsys.readouterr().out
    assert "relu" in out and "backward went all the way" in out
    assert ("ops/elementwise.py:" in out) == places


@pytest.mark.slow
def test_a_node_is_opened(tinyft, trained):
    done = tinyft("inspect", trained, "--step", 0, "--node", 2, "--node", 0)
    assert done.code == 0, done.err
    assert done.out.index("node 0: conv2d in conv1") < done.out.index("node 2: conv2d in layer1.0")
    assert "by differences" in done.out and "Slide F filters over a picture" in done.out


@pytest.mark.slow
def test_json(tinyft, trained):
    done = tinyft("inspect", trained, "--step", 0, "--node", 2, "--json")
    found = json.loads(done.out.splitlines()[-1])
    (node,) = found["nodes"]
    assert node["number"] == 2 and node["layer"] == "layer1.0.conv1" and node["op"] == "conv2d"
    assert all(e["kink"] or e["difference"] < 1e-4 for e in node["entries"])
    assert node["forward"][0]["difference"] < 1e-5
    whole = json.loads(tinyft("inspect", trained, "--step", 0, "--json").out.splitlines()[-1])
    assert len(whole["nodes"]) == 51
    assert whole["kept_bytes"] == sum(node["kept_bytes"] for node in whole["nodes"])
    assert whole["loss"] == found["loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--step", 99), "has no step 99: its steps are 0 to "),
        (("--step", 0, "--node", 999), "--node 999: the step has nodes 0 to 50"),
        (("--step", 0, "--html", "x", "--dot", "./x"), "would both be written to x; name two"),
        (("--step", -1), "expected a whole number >= 0"),
        ((), "required: --step"),
    ],
)
def test_a_step_or_a_node_that_is_not_there(tinyft, trained, options, said):
    done = tinyft("inspect", trained, *options)
    assert done.code == 2 and said in done.error


def test_runs_that_cannot_be_made_again(tinyft, trained, pictures):
    assert "is no run" in tinyft("inspect", "nothing", "--step", 0).error
    described = Path(trained, "run.json")
    text = described.read_text()
    described.write_text(json.dumps(json.loads(text) | {"learner": None}))
    assert "network, head or optimizer of its own" in tinyft("inspect", trained, "--step", 0).error
    described.write_text(text)
    (pictures / "cat" / "0.png").unlink()
    assert "the pictures of" in tinyft("inspect", trained, "--step", 0).error


@pytest.mark.slow
def test_metrics_that_are_damaged_are_named_and_a_line_cut_short_is_left_out(tinyft, trained):
    metrics = Path(trained, "metrics.csv")
    text = metrics.read_bytes()
    metrics.write_bytes(text + b"1,0,every")
    assert "to the bit the loss" in tinyft("inspect", trained, "--step", 1).out
    metrics.write_bytes(text + b"\xff")
    for command in (("inspect", trained, "--step", 1), ("report", trained), ("diff", trained)):
        assert f"{trained}/metrics.csv is damaged: 'utf-8' codec" in tinyft(*command).error


@pytest.mark.slow
def test_without_checkpoints_it_is_replayed_from_the_seed(tinyft, trained):
    shutil.rmtree(Path(trained, "checkpoints"))
    done = tinyft("inspect", trained, "--step", 1)
    assert done.code == 0 and "to the bit the loss of metrics.csv" in done.out


@pytest.mark.slow
def test_a_loss_that_differs_from_the_records_is_said(tinyft, trained):
    metrics = Path(trained, "metrics.csv")
    lines = metrics.read_text().splitlines()
    loss = lines[1].split(",")[3]
    metrics.write_text("\n".join([lines[0], lines[1].replace(loss, "0.5", 1)]) + "\n")
    assert "metrics.csv has 0.5: not the same bits" in tinyft("inspect", trained, "--step", 0).out
    assert "does not have this step" in tinyft("inspect", trained, "--step", 1).out


@pytest.mark.slow
def test_a_changed_activation_moves_losses_and_probabilities(tinyft, trained):
    before = contents(trained)
    options = "--step", 1, "--change", "layer3.0:ablate:7", "--change", "layer2:clamp:0,0.5"
    done = tinyft("inspect", trained, *options)
    assert done.code == 0, done.err
    assert done.out.startswith("what if layer3.0:ablate:7, layer2:clamp:0,0.5 before step 1")
    assert "loss in evaluation: " in done.out and contents(trained) == before
    found = json.loads(tinyft("inspect", trained, *options, "--json").out.splitlines()[-1])
    without, with_it = found["change"]["losses"]["evaluation"]
    assert without != with_it and len(found["change"]["pictures"]) == len(found["ids"])
    for change, said in (("layer9:ablate:7", "no layer 'layer9'"), ("layer1:ablate:99", "0 to 15")):
        done = tinyft("inspect", trained, "--step", 1, "--change", change)
        assert done.code == 2 and said in done.error


@pytest.mark.parametrize(
    "change",
    ["layer1", "layer1:ablate:x", "layer1:ablate:1,2", "a:clamp:1", "a:clamp:1,0", "a:b:0"],
)
def test_a_change_that_says_nothing(tinyft, trained, change):
    done = tinyft("inspect", trained, "--step", 0, "--change", change)
    assert done.code == 2 and "expected LAYER:ablate:CHANNEL" in done.error
