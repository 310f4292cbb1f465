"""Whatever a command prints fits the terminal, with its words whole."""

from __future__ import annotations

import re

import pytest

from tinyft.cli.main import COMMANDS
from tinyft.display import aligned, fitted, paragraph

WIDTHS = (60, 80, 120)
RUN = "runs/pictures-cifar_resnet20-1"
DATA = ("pictures", "--weights", "none", "--arch", "cifar_resnet20", "--batch-size", "4")
THAT_COMPUTE = [
    ("plan", *DATA, "--freeze-epochs", "1"),
    ("plan", *DATA, "--freeze-epochs", "1", "--explain", "--table"),
    ("inspect", RUN, "--step", "1"),
    ("inspect", RUN, "--step", "1", "--node", "3"),
    ("inspect", RUN, "--step", "1", "--why", "--what-if"),
    ("diff", RUN),
    ("predict", RUN, "pictures"),
    ("report", RUN),
    ("selftest", "relu"),
]
LINES = [
    *(pytest.param(line, marks=pytest.mark.slow) for line in THAT_COMPUTE),
    ("summary", "cifar_resnet20"),
    ("evaluate", RUN),
    ("gradcheck", "relu"),
    ("weights", "list"),
    ("weights", "verify", f"{RUN}/learner.h5"),
    ("doctor",),
    ("plan", "nothing"),
    ("nothing",),
    *((command.__name__.rpartition(".")[2].replace("_", "-"), "--help") for command in COMMANDS),
]


def expect_fitting(text, width, whole):
    """No line is longer than `width`, but for a word or a command, and no word is in pieces."""
    for line in text.splitlines():
        alone = len(line.split()) == 1 or re.match(" *tinyft [a-z]", line)
        assert len(line) <= width or alone, line
    words = [set(re.findall(r"[A-Za-z_]{3,}", each)) for each in (text, whole)]
    assert words[0] <= words[1], words[0] - words[1]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", LINES, ids=" ".join)
def test_what_a_command_prints_fits(tinyft, trained, monkeypatch, arguments):
    def said(width):
        monkeypatch.setenv("COLUMNS", str(width))
        done = tinyft(*arguments)
        return done.out + done.err

    whole = said(10_000)
    for width in WIDTHS:
        expect_fitting(said(width), width, whole)


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_training_fits(tinyft, pictures, tiny, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    done = tinyft("finetune", pictures, *tiny, "--freeze-epochs", "1")
    assert done.code == 0 and "accuracy" in done.out
    expect_fitting(done.out + done.err, width, done.out + done.err)


def test_a_pipe_gets_long_lines(tinyft, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert len(tinyft("plan", "nothing").error) > 120


def test_lines_are_broken_between_words(monkeypatch):
    assert fitted("  one two three", 9) == "  one two\n    three"
    assert fitted("a-hyphenated-word stays", 12) == "a-hyphenated-word\n  stays"
    command = "tinyft finetune --resume runs/a"
    assert fitted(f"go on with: {command}", 20) == f"go on with:\n  {command}"
    assert fitted("first pip install torch then", 20) == "first\n  pip install torch\n  then"
    assert fitted("as long as it is", None) == "as long as it is"
    monkeypatch.setenv("COLUMNS", "1")  # too narrow to be taken at its word
    assert paragraph("word " * 10, first="- ").splitlines()[0] == "- " + " ".join(["word"] * 7)


def test_a_table_that_is_too_wide_goes_on_below(monkeypatch):
    rows = [("group", "x" * 20, "y" * 20), ("head", "1", "2"), ("body", "3", "")]
    monkeypatch.setenv("COLUMNS", "40")
    assert aligned(rows, indent=" ") == [
        f" group  {'x' * 20}\n     {'y' * 20}",
        " head   1\n     2",
        " body   3",
    ]
    monkeypatch.setenv("COLUMNS", "60")
    assert aligned(rows)[1] == "head   1" + " " * 21 + "2"
