"""Commands that were given no folder: the sample pictures and the weights that travel along."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

import tinyft as ft
from tinyft.cli import finetune, opening
from tinyft.weights import find, load_weights


@pytest.mark.slow
def test_the_sample_run_is_what_the_readme_shows(tinyft, monkeypatch):
    monkeypatch.setenv("TINYFT_OFFLINE", "1")
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    shown = readme.partition("```text\n")[2].partition("\n```")[0]
    done = tinyft("finetune", "--json")
    assert done.code == 0, done.err
    for line in shown.partition("\nbackend: ")[0].splitlines():
        assert line == "..." or line in done.err.splitlines()
    for words in (
        "head alone: proved unchanged, 12 of 70 tensors",
        "everything: all 70 tensors changed, as planned",
        "the head alone had ",
        "guessing: 12.50 %",
        "tinyft predict runs/animals8-resnet10s-1 ",
        "tinyft report runs/animals8-resnet10s-1\n",
        "tinyft inspect runs/animals8-resnet10s-1 --step 65\n",
        "with your own pictures",
    ):
        assert words in shown
        assert words in done.err
    figures = json.loads(done.out)
    assert 0.8 < figures["valid_accuracy"] < 0.95
    assert (Path(figures["run"]) / "learner.h5").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan", "lr-find --steps 10"])
def test_other_commands_take_the_sample_too(tinyft, command):
    done = tinyft(*command.split())
    assert done.code == 0, done.err


def test_what_was_given_is_kept():
    given = {"dir": None, "weights": "mine.h5", "arch": None, "epochs": None}
    args = argparse.Namespace(**given)
    opening.complete_sample(args)
    assert args.dir.endswith("animals8")
    assert (args.weights, args.arch, args.epochs) == ("mine.h5", None, None)
    args = argparse.Namespace(**given | {"weights": None, "epochs": 3})
    opening.complete_sample(args)
    assert (args.arch, args.epochs) == ("resnet10s", 3)
    args = argparse.Namespace(**given | {"dir": "photos"})
    opening.complete_sample(args)
    assert vars(args) == given | {"dir": "photos"}


def test_the_weights_that_travel_along_are_those_that_the_registry_names():
    entry, weights = find("resnet10s"), load_weights("resnet10s")
    metrics = json.loads(weights.metadata["metrics"])
    assert (entry.top1, entry.top5) == (metrics["top1"], metrics["top5"])
    assert entry.num_classes == len(weights.classes) == 200
    assert weights.preprocess == entry.preprocess
    assert weights.metadata["licence"] == entry.licence


def test_what_knowing_nothing_gets_is_the_share_of_the_largest_class(draw):
    metrics = {"phase": ["head alone", "everything"], "valid_accuracy": [0.75, 0.9]}
    data = ft.ImageFolder(draw({"cat": 60, "dog": 10}), batch_size=2)
    assert finetune.comparison(metrics, 0.9, data).endswith(
        "made it 90.00 % (always naming cat, the largest class: 85.71 %)"
    )
    even = ft.ImageFolder(draw({"cat": 10, "dog": 10}, "even"), batch_size=2)
    assert finetune.comparison(metrics, 0.9, even).endswith("(guessing: 50.00 %)")
    assert "it has learnt nothing: try" in finetune.comparison(metrics, 0.5, even)
