"""What is seen while a run goes on, without a terminal."""

import errno
import io
import re
from types import SimpleNamespace

import pytest

from tinyft.cli import output
from tinyft.cli.output import json_result
from tinyft.display import first_few


@pytest.mark.slow
def test_a_long_epoch_shows_lines_in_between(tinyft, pictures, tiny, monkeypatch):
    monkeypatch.setattr(output, "SECONDS_BETWEEN_LINES", -1.0)
    done = tinyft("finetune", pictures, *tiny)
    assert re.search(r"^  step 1 of 2: loss \d+\.\d{4}; \d+ s left$", done.err, re.MULTILINE)
    assert re.search(r"^epoch 1 of 1 \(everything\): .*; done$", done.err, re.MULTILINE)


def test_the_time_left_forgets_the_first_step_which_compiles(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(output.time, "monotonic", lambda: now.seconds)
    shown = output.PlainDisplay(SimpleNamespace(steps=10), start=2)
    shown.begin(None, None)
    record = SimpleNamespace(validation=None, proof=None)
    left = []
    for seconds in (15.0, 17.0, 19.0):
        now.seconds = seconds
        shown.last_line = seconds
        shown.after_step(None, record)
        left.append(shown.time_left())
    assert left == ["1 min 45 s left", "12 s left", "10 s left"]


def test_a_terminal_that_goes_away_does_not_stop_the_bar(monkeypatch):
    written = []

    class Gone(io.StringIO):
        def write(self, text):
            written.append(text)
            raise OSError(errno.EIO, "Input/output error")

        def isatty(self):
            return True

    monkeypatch.setattr(output, "has_terminal", lambda: True)
    monkeypatch.setattr("sys.stderr", Gone())
    plan = SimpleNamespace(steps=10, phases=[SimpleNamespace(name="head alone")])
    with output.progress(plan, 0) as bar:
        bar.line("epoch 1 of 2")
        bar.progress.refresh()
    assert any("epoch 1 of 2" in text for text in written)


def test_an_infinite_loss_is_no_json(capsys):
    json_result({"loss": float("inf"), "more": [float("nan"), 1.5, "x"]})
    assert capsys.readouterr().out == '{"loss": null, "more": [null, 1.5, "x"]}\n'


def test_few_names_and_many():
    assert first_few(["a", "b"], 2) == "a, b"
    assert first_few(["a", "b", "c", "d"], 2) == "a, b and 2 more"


def test_colours_need_a_terminal_that_wants_them(monkeypatch):
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert output.has_terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not output.has_terminal()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not output.has_terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert not output.has_terminal()
