"""The report of a run: each section says what the run's files say, and what is missing is said."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import bits, pictures, small_data, small_learner
from tinyft.errors import RunError
from tinyft.inspection.report import report, run_files
from tinyft.inspection.report.learned import Judgements, learned, mistakes
from tinyft.inspection.report.report import report_html, save_report
from tinyft.inspection.report.run_files import RunFiles, read_metrics
from tinyft.nn import build

SECTIONS = ("plan", "curves", "steps", "proof", "changes", "learned", "mistakes", "again")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four steps of the head alone, four of everything, with a ledger."""
    path = tmp_path_factory.mktemp("report") / "run"
    small_learner().fine_tune(1, out=path, observers=[ft.Ledger()])
    return path


@pytest.fixture(scope="module")
def files(run):
    return RunFiles.read(run, small_data())


@pytest.fixture(scope="module")
def html(files):
    return report_html(files)


class Sections(HTMLParser):
    """The text of each section, by its anchor."""

    def __init__(self):
        super().__init__()
        self.text, self.anchor, self.open = {}, "head", []

    def handle_starttag(self, tag, attributes):
        self.anchor = dict(attributes).get("id", self.anchor) if tag == "h2" else self.anchor
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "rect", "circle", "image"):  # <path/> ends itself
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_data(self, data):
        self.text[self.anchor] = self.text.get(self.anchor, "") + data


def sections_of(html):
    parser = Sections()
    parser.feed(html)
    assert parser.open == []
    return parser.text


@pytest.mark.slow
def test_nothing_is_missing_and_nothing_is_loaded(files, html):
    assert files.missing == {}
    assert set(SECTIONS) <= set(sections_of(html))
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert all(a.startswith(("data:", "#")) for a in addresses)
    assert {a for a in addresses if a.startswith("#")} == {f"#{name}" for name in SECTIONS}
    assert "Not shown" not in html and "NaN" not in html and "nan" not in html


def test_the_recipe_is_told_in_words_and_numbers(html):
    plan = sections_of(html)["plan"]
    assert "Phase 1 of 2, head alone: 1 epoch of 3 steps, steps 0 to 2. Frozen: stem" in plan
    assert "Phase 2 of 2, everything: 1 epoch of 3 steps" in plan
    assert "Learning rates" in plan and "Why:" in plan
    assert "weight decay 0.01" in plan  # of the plan as it was printed


def test_the_proof_is_that_of_the_ledger(run, html):
    proof = ft.Ledger.read(run).proofs[0]
    assert len(proof.identical) > 0
    expected = f"head alone: {len(proof.identical)} tensors bit-identical, {len(proof.moved)} moved"
    assert expected in sections_of(html)["proof"]


def test_what_it_learned_is_what_the_network_does(run, files, html):
    learner = ft.load_learner(run / "learner.h5")
    accuracy = learner.evaluate(small_data()).accuracy
    assert files.judged.accuracy == accuracy
    text = sections_of(html)
    assert f"is right in {100 * accuracy:.1f} %" in text["learned"]
    assert f"{100 * accuracy:.1f} %" in text["head"]
    assert all(f"({i})" in text["mistakes"] or "loss" in text["mistakes"] for i in range(9))
    assert html.count("evidence for") >= 9


def test_how_to_make_it_again(run, html):
    again = sections_of(html)["again"]
    assert "learner.execute(learner.plan(epochs=1, base_lr=0.002, freeze_epochs=1, " in again
    assert "weight_decay=0.01" in again
    assert json.loads((run / "run.json").read_text())["data"]["sha256"] in again
    assert np.__version__ in again


def test_making_it_changes_no_file_and_no_number(run, files):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    learner, state = files.learner, bits(files.learner)
    report_html(files)
    assert bits(learner) == state
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_it_is_written_whole_or_not_at_all(files, tmp_path, monkeypatch):
    target = tmp_path / "page.html"
    assert save_report(files, target) == target
    first = target.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save_report(files, target)
    assert target.read_bytes() == first and list(tmp_path.iterdir()) == [target]


# --------------------------------------------------------------------------------- what is missing


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


@pytest.mark.slow
def test_a_run_without_a_ledger_says_so(copied, monkeypatch):
    monkeypatch.setattr(run_files, "diff_run", lambda *_, **__: None)
    (copied / "ledger.bin").unlink()
    text = sections_of(report_html(RunFiles.read(copied, small_data())))
    assert "Not shown: this run kept no ledger" in text["steps"]
    assert "Not shown: this run kept no ledger" in text["proof"]
    assert "Phase 1 of 2, head alone" in text["plan"]


@pytest.mark.slow
def test_a_ledger_that_lacks_steps_says_so(copied, html):
    whole = (copied / "ledger.bin").read_bytes()
    (copied / "ledger.bin").write_bytes(whole[: len(whole) // 2])
    text = sections_of(report_html(RunFiles.read(copied)))
    assert re.search(r"The ledger lacks [1-5] of the 6 steps\.", text["steps"])
    assert "The ledger lacks" not in html


@pytest.mark.slow
def test_without_its_pictures_the_rest_is_shown(copied):
    text = sections_of(report_html(RunFiles.read(copied)))
    assert "trained on arrays in memory, which only Python can bring back" in text["learned"]
    assert "trained on arrays in memory" in text["mistakes"]
    assert "Layer by layer" in text["changes"]
    assert "features are not compared: " in text["changes"]
    assert (
        "Phase 1 of 2, head alone: 1 epoch of 3 steps, steps 0 to 2. Frozen: stem" in text["plan"]
    )
    assert "Phase 2 of 2, everything: 1 epoch of 3 steps" in text["plan"]


@pytest.mark.slow
def test_other_pictures_are_not_taken_for_the_run_s(copied):
    x, y = pictures(n=18)
    other = ft.ImageArrays((x, y), (x, y), classes=["blue", "green", "red"], size=24, batch_size=8)
    found = RunFiles.read(copied, other)
    assert found.judged is None and "have changed" in found.missing["pictures"]


@pytest.mark.slow
def test_a_run_is_told_as_it_began(tmp_path, monkeypatch):
    """A head that was trained before is not random, and plain SGD has no momentum."""
    monkeypatch.setattr(run_files, "diff_run", lambda *_, **__: None)  # takes longest
    learner = small_learner(optimizer="sgd")
    for name, is_random in [("first", True), ("second", False)]:
        out = tmp_path / name
        learner.fine_tune(0, freeze_epochs=1, out=out, observers=[ft.Ledger()])
        found = RunFiles.read(out, small_data())
        plan = told(found)
        assert "The optimizer has no momentum" in plan
        assert ("steps 0 to 2." if is_random else "steps 3 to 5.") in plan
        assert ("begins with random weights" in plan) == is_random


@pytest.mark.slow
def test_a_group_in_which_nothing_moves_has_no_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(run_files, "diff_run", lambda *_, **__: None)
    one_step = small_data(batch_size=24)
    small_learner(one_step, bn="frozen").fine_tune(1, out=tmp_path / "run", observers=[ft.Ledger()])
    found = RunFiles.read(tmp_path / "run", one_step)
    html, head = report_html(found), "<td>head alone</td><td>"
    assert f"{head}stem+layer1</td><td>-</td><td>-</td><td>-</td>" in html
    assert f"{head}head</td><td>-</td>" not in html
    assert "head alone: 1 epoch of 1 step" in told(found)


def told(files):
    """The recipe in words, without the plan as it was printed."""
    text = sections_of(report_html(files))["plan"].partition("The plan, as it was")[0]
    return " ".join(text.split())


def test_an_unfinished_run_is_reported(copied, monkeypatch):
    monkeypatch.setattr(run_files, "diff_run", lambda *_, **__: None)
    (copied / "learner.h5").unlink()
    description = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps(description | {"finished": False}))
    lines = (copied / "metrics.csv").read_text().splitlines()
    (copied / "metrics.csv").write_text("\n".join(lines[:5]) + "\n5,1,every")
    found = RunFiles.read(copied, small_data())
    assert found.steps.tolist() == [0, 1, 2, 3]  # the line that was cut off does not count
    text = sections_of(report_html(found))
    assert "This run is not finished." in text["head"]
    best = "Judged with the best epoch's network (best.h5), since the run is not finished."
    assert best in text["learned"] and best in text["mistakes"]


@pytest.mark.slow
def test_the_best_epochs_network_stands_in_for_a_damaged_last_one(copied, monkeypatch):
    monkeypatch.setattr(run_files, "diff_run", lambda *_, **__: None)
    whole = (copied / "learner.h5").read_bytes()
    (copied / "learner.h5").write_bytes(whole[: len(whole) // 2])
    text = sections_of(report_html(RunFiles.read(copied, small_data())))
    best = "Judged with the best epoch's network (best.h5), since learner.h5 cannot be read."
    assert best in text["learned"] and best in text["mistakes"]


def test_a_run_without_an_epoch_that_counts_has_no_network_to_judge(copied, monkeypatch):
    monkeypatch.setattr(run_files, "diff_run", lambda *_, **__: None)
    for name in ("learner.h5", "best.h5"):
        (copied / name).unlink()
    text = sections_of(report_html(RunFiles.read(copied, small_data())))
    assert "no epoch has ended with a finite loss" in text["learned"]


def test_what_is_no_run_is_refused(tmp_path, copied):
    with pytest.raises(RunError, match=r"is no run.*it has no run\.json"):
        RunFiles.read(tmp_path)
    (copied / "metrics.csv").write_text("")
    with pytest.raises(RunError, match="no step to report yet"):
        RunFiles.read(copied)


# ------------------------------------------------------------------------------------------- parts


def test_metrics_are_numbers_with_nan_for_nothing(run):
    metrics = read_metrics(run / "metrics.csv")
    assert metrics["phase"][0] == "head alone"
    assert np.isnan(metrics["valid_loss"][0]) and np.isfinite(metrics["valid_loss"][2])
    assert metrics["step"].tolist() == [0, 1, 2, 3, 4, 5]


def names_of(network):
    """Of its parameters and of its batch norms."""
    norms = [n for n, module in network.named_modules() if isinstance(module, ft.nn.BatchNorm)]
    return [n for n, _ in network.named_parameters()], norms


def test_a_linear_layer_may_be_called_like_a_batch_norm():
    rows, _ = report.rows_of(["bn1.weight", "bn1.bias", "head.bn_fc.weight"], ["bn1"])
    assert rows == ["head.bn_fc"]


def test_a_heat_map_has_a_row_for_each_layer_or_each_block_of_a_deep_network():
    names, norms = names_of(build("resnet10s"))
    rows, members = report.rows_of(names, norms)
    assert rows[:2] == ["conv1", "layer1.0.conv1"] and rows[-1] == "fc"
    assert "layer2.0.downsample.0" in rows and not any("bn" in row for row in rows)
    assert all(len(row) == 1 for row in members) and len(rows) == 13
    deep, norms = names_of(ft.cifar_resnet110())
    rows, members = report.rows_of(deep, norms)
    assert len(rows) == 56 and rows[0] == "conv1" and rows[-1] == "fc"
    assert [deep[i] for i in members[rows.index("layer2.17")]] == [
        f"layer2.17.conv{i}.weight" for i in (1, 2)
    ]


def test_norms_of_several_parameters_are_the_norm_of_all_their_numbers():
    layers = {
        "gradient_norm": np.array([[3.0, 4.0, 7.0, 0.0]]),
        "update_norm": np.array([[30.0, 40.0, 0.0, 0.0]]),
        "weight_norm": np.array([[35.0, 45.0, 0.0, 9.0]]),  # after the step
        "update_ratio": np.array([[5.0, 5.0, 0.0, 0.0]]),  # before it: 6 and 8
    }
    members = [[0, 1], [2], [3]]
    norms = report.combined(layers, "gradient_norm", members)
    assert norms.tolist() == [[5.0], [7.0], [0.0]]
    ratios = report.combined(layers, "update_ratio", members)
    assert ratios.tolist() == [[pytest.approx(5.0)], [0.0], [0.0]]


def test_bins_are_means_and_few_columns_stay():
    values = np.arange(10.0)[None]
    assert report.binned(values, 10) is values
    assert report.binned(values, 5).tolist() == [[0.5, 2.5, 4.5, 6.5, 8.5]]
    assert report.binned(np.arange(7.0)[None], 3).tolist() == [[0.5, 2.5, 5.0]]


def test_what_was_right_is_no_mistake():
    sure = np.array([[0.9, 0.1], [0.2, 0.8]])
    judged = Judgements(["cat", "dog"], ["0.png", "1.png"], np.array([0, 1]), sure)
    assert (
        mistakes(None, judged)
        == "<p>It was right about every picture, and more than half sure.</p>"
    )


def test_a_hundred_classes_have_a_picture_for_a_matrix():
    n = 100
    judged = Judgements(
        [f"class {i}" for i in range(n)], ["x"] * n, np.arange(n), np.eye(n) * 0.5 + 0.005
    )
    html = learned(judged)
    assert 'alt="confusion matrix' in html and '<table class="matrix">' not in html
    assert "Nobody." in html


# ----------------------------------------------------------------------------------------- browser


def test_a_browser_has_nothing_to_complain_about(html, tmp_path):
    """Chromium prints its page's console on stderr; the last line of the page proves that it ran
    scripts at all.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    page = tmp_path / "report.html"
    proof = "<script>console.log('the console is heard')</script></body>"
    page.write_text(html.replace("</body>", proof), encoding="utf-8")
    done = subprocess.run(
        [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--log-level=0", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert any("the console is heard" in line for line in said), done.stderr[-2000:]
    assert [line for line in said if "the console is heard" not in line] == []
    assert 'id="again"' in done.stdout
