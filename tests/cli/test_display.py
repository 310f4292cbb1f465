"""What is seen while a run goes on, without a terminal."""

import re

import pytest

from tinyft import progress
from tinyft.cli import output
from tinyft.cli.output import json_result
from tinyft.display import first_few


@pytest.mark.slow
def test_a_long_epoch_shows_lines_in_between(tinyft, pictures, tiny, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    done = tinyft("finetune", pictures, *tiny)
    lines = (
        r"  reading every picture once: 4 of 12 pictures; \d+ s left",
        r"  everything: 1 of 2 steps; \d+ s left; loss \d+\.\d{4}",
        r"  judging: 2 of 2 pictures; done",
        r"epoch 1 of 1 \(everything\): .*; done",
    )
    for line in lines:
        assert re.search(f"^{line}$", done.err, re.MULTILINE), line
    assert "train_loss" not in done.out + done.err


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
