"""The report of a run: each section says what the run's files say, and what is missing is said."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import bits, pictures, small_data, small_learner
from tinyft.errors import DataError, RunError
from tinyft.inspection.report import learned, report, run_files
from tinyft.inspection.report.learned import Judgements, confusions, mistake_of, mistakes
from tinyft.inspection.report.report import report_html, save_report
from tinyft.inspection.report.run_files import RunFiles, read_metrics
from tinyft.nn import build

SHOWN = ("learned", "mistakes", "curves", "proof")
FOLDED = ("classes", "plan", "steps", "changes", "again")
WRONG = ft.finetune.Evaluation(1, 0.0, 2.3)  # of no picture below, and shown nowhere


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
    """The text of each section, by its anchor, and which are folded."""

    def __init__(self):
        super().__init__()
        self.text, self.anchor, self.open, self.folded = {}, "head", [], set()

    def handle_starttag(self, tag, attributes):
        if tag == "h2":
            self.anchor = dict(attributes)["id"]
            self.folded |= {self.anchor} if "summary" in self.open else set()
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
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
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert all(a.startswith("data:") for a in addresses)
    words = re.sub('base64,[^"]*', "", html)
    assert "Not shown" not in words and "nan" not in words.lower()


def test_what_is_asked_first_stands_first_and_the_rest_is_folded(html):
    parser = Sections()
    parser.feed(html)
    assert [name for name in parser.text if name != "head"] == [*SHOWN, *FOLDED]
    assert parser.folded == set(FOLDED)
    assert "What moved, how far and why" in parser.text["proof"]
    for tag in ("strip", "mark"):
        marks = re.findall(rf'<\w+ class="{tag}"[^>]*>(.{{7}})', html)
        assert marks and set(marks) == {"<title>"}
    assert "step 5, everything\ntraining: " in html and "validation: " in html
    assert not re.search("fff|white\\b(?!-)", re.sub('base64,[^"]*', "", html), re.IGNORECASE)


def test_balanced_accuracy_is_shown_where_classes_are_uneven(files, html):
    assert "every class counts alike" not in html
    evaluation = replace(files.judged.evaluation, balanced_accuracy=0.25)
    uneven = replace(files, judged=replace(files.judged, evaluation=evaluation))
    assert "<b>25.0 %</b>balanced accuracy: every class counts alike" in report_html(uneven)


def test_a_mistake_leads_to_its_file(tmp_path):
    file = tmp_path / "a" / "one & two.png"
    grey, heat = np.full((8, 8, 3), 128, np.uint8), np.ones((2, 2))
    judged = Judgements(
        ["a", "b"], ["a/one & two.png"], np.array([0]), np.array([[0.1, 0.9]]), WRONG
    )
    card = mistake_of(judged, 0, file, grey, heat, heat)
    assert f'<a href="{file.as_uri()}"><span class="cut" title="a/one &amp; two.png">' in card
    assert "<b>a</b> 10 %, taken for <b>b</b> 90 %" in card and card.count("<img") == 3
    assert "<a " not in mistake_of(judged, 0, grey, grey, heat, heat)


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


def test_a_batch_that_cannot_be_read_any_more_costs_only_itself(files, monkeypatch):
    def gone(*_):
        raise DataError("a.jpg is gone")

    monkeypatch.setattr(report, "first_batch", gone)
    text = report.recipe_section(files)
    assert "Not shown: a.jpg is gone." in text and "Phase 2 of 2, everything" in text


def test_what_it_learned_is_what_the_network_does(run, files, html):
    learner = ft.load_learner(run / "learner.h5")
    accuracy = learner.evaluate(small_data()).accuracy
    assert files.judged.accuracy == accuracy
    text = sections_of(html)
    assert f"is right in {100 * accuracy:.1f} %" in text["classes"]
    assert f"{100 * accuracy:.1f} %" in text["head"]
    assert text["mistakes"].count(" loss ") == html.count('class="views"') >= 6
    assert html.count("evidence for") >= 9
    assert "The first batch, as the network gets it" in text["plan"]


def test_of_many_mistakes_some_are_folded_and_the_others_counted(files, monkeypatch):
    monkeypatch.setattr(learned, "FIRST", 2)
    monkeypatch.setattr(learned, "FOLDED", 1)
    first, folded = mistakes(files.learner, files.judged).split("<details>")
    assert first.count('class="views"') == 2 and folded.count('class="views"') == 1
    missed = int((~files.judged.right).sum())
    assert f"<summary>… and {missed - 2} more" in folded
    assert f"… and {missed - 3} pictures more; <code>tinyft evaluate RUN --csv" in folded


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
    names = ["bn1.weight", "bn1.bias", "head.bn_fc.weight"]
    assert report.layers_of(names, ["bn1"]) == {"head.bn_fc": 2}


def test_a_heat_map_has_a_row_for_each_layer():
    names, norms = names_of(build("resnet10s"))
    rows = report.layers_of(names, norms)
    assert [*rows][:2] == ["conv1", "layer1.0.conv1"] and [*rows][-1] == "fc" and len(rows) == 13
    assert "layer2.0.downsample.0" in rows and not any("bn" in row for row in rows)
    assert all(names[i] == f"{name}.weight" for name, i in rows.items())


def test_bins_are_means_and_few_columns_stay():
    values = np.arange(10.0)[None]
    assert report.binned(values, 10) is values
    assert report.binned(values, 5).tolist() == [[0.5, 2.5, 4.5, 6.5, 8.5]]
    assert report.binned(np.arange(7.0)[None], 3).tolist() == [[0.5, 2.5, 5.0]]


def test_what_was_right_is_no_mistake():
    sure = np.array([[0.9, 0.1], [0.2, 0.8]])
    judged = Judgements(["cat", "dog"], ["0.png", "1.png"], np.array([0, 1]), sure, WRONG)
    assert (
        mistakes(None, judged)
        == "<p>It was right about every picture, and more than half sure.</p>"
    )


@pytest.mark.parametrize("n", [3, 100])
def test_a_matrix_names_few_classes_and_of_more_says_them_on_hover(n):
    names = [f"a class of number {i:012}" for i in range(n)]
    said = np.roll(np.eye(n), 1, axis=1)
    said[0] = np.eye(n)[0]
    html = confusions(Judgements(names, ["x"] * n, np.arange(n), said, WRONG))
    assert f"<title>{names[1]} taken for {names[2]}: 1 of 1</title>" in html
    assert ("1 a class …0000000000" in html) == (n == 3)  # and whole on hover
    assert f"… and {n - 9} pairs more" in html or n == 3
    assert html.count('class="mark"') == n


# ----------------------------------------------------------------------------------------- browser


@pytest.mark.slow
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
