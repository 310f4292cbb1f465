"""`tinyft plan --explain`, and the ledger that `tinyft finetune` keeps."""

from __future__ import annotations

import pytest

import tinyft as ft
from tinyft.cli.main import build_parser
from tinyft.finetune.optim import OPTIMIZERS, name_of
from tinyft.inspection import Ledger
from tinyft.weights import Preprocess, Weights, save_weights

SMALL = Preprocess(resize=32, crop=32)


@pytest.mark.slow
def test_a_plan_in_words(tinyft, pictures, tiny, tmp_path):
    done = tinyft("plan", pictures, *tiny, "--freeze-epochs", "1", "--explain")
    assert done.code == 0
    assert "Phase 1 of 2, head alone: 1 epoch of 2 steps, steps 0 to 1." in done.out
    assert "Where: phases and rates: tinyft/finetune/schedule.py" in done.out
    assert "forecast: about" in done.out
    table = tinyft("plan", pictures, *tiny, "--freeze-epochs", "1", "--table")
    assert "lr peak" in table.out and "Why:" not in table.out
    page = tmp_path / "plan.html"
    short = tinyft("plan", pictures, *tiny, "--freeze-epochs", "1", "--html", str(page))
    assert "The first batch, as the network gets it" in page.read_text("utf-8")
    assert "phase 1   head alone, 1 epoch of 2 steps." in short.out
    assert len(short.out.splitlines()) <= 20 and "--table shows every rate" in short.err


def test_every_optimizer_can_be_asked_for_and_is_known_again():
    for name in OPTIMIZERS:
        assert build_parser().parse_args(["plan", "--optimizer", name]).optimizer == name
    assert [name_of(make(())) for make in OPTIMIZERS.values()] == [*OPTIMIZERS]


@pytest.mark.slow
def test_optimizer_and_loss_on_the_command_line(tinyft, draw, tiny):
    options = ("--optimizer", "momentum", "--weight-decay", "0.1", "--label-smoothing", "0.2")
    uneven = draw({"cat": 9, "dog": 6})
    options += ("--class-weights", "balanced")
    done = tinyft("plan", uneven, *tiny, *options, "--table")
    assert "optimizer: momentum" in done.out
    assert "weight decay 0.1" in done.out
    assert "labels smoothed by 0.2, classes weighted: cat 0.857, dog 1.2" in done.out
    short = tinyft("plan", uneven, *tiny, *options).out
    assert (
        "optimizer momentum, weight decay 0.1." in short
        and "labels smoothed by 0.2, classes" in short
    )
    assert "loss " not in tinyft("plan", uneven, *tiny).out
    slow = tinyft("plan", uneven, *tiny, "--optimizer", "sgd").err
    assert "sgd often needs about 0.1, and `tinyft lr-find`" in slow


@pytest.mark.slow
def test_a_run_is_resumed_with_its_own_loss(tinyft, pictures, tiny):
    done = tinyft("finetune", pictures, *tiny, "--class-weights", "balanced", "--out", "run")
    assert done.code == 0
    again = tinyft("finetune", "--resume", "run", "--class-weights", "balanced")
    assert "run is finished" in again.error  # the option was no contradiction
    other = tinyft("finetune", "--resume", "run", "--label-smoothing", "0.5")
    assert "--label-smoothing 0.5 contradicts run, which began with 0.0" in other.error


@pytest.mark.slow
def test_a_run_with_a_table_of_labels_finds_its_pictures_again(tinyft, draw, tiny, tmp_path):
    pile = draw({"pile": 12})
    table = tmp_path / "labels.csv"
    lines = [f"pile/{i}.png,{'ab'[i % 2]},{i // 2}" for i in range(12)]
    table.write_text("\n".join(["file,label,group", *lines]))
    assert tinyft("finetune", pile, *tiny, "--labels", table, "--out", "run").code == 0
    assert "of 2), loss" in tinyft("evaluate", "run").out
    other = tinyft("finetune", "--resume", "run", "--label-regex", "(.)")
    assert "--label-regex (.) contradicts run, which began with none" in other.error
    table.write_text(table.read_text().replace("0.png,a", "0.png,b"))
    assert "the pictures of run have changed since it began" in tinyft("evaluate", "run").error


@pytest.mark.slow
def test_a_finished_run_is_trained_further(tinyft, trained, draw):
    done = tinyft("finetune", "--continue", trained, "--epochs", "1", "--out", "more")
    assert done.code == 0
    assert "kept as the weights have it" in done.err and "head alone" not in done.err
    assert (
        "--arch: what is continued is as runs/"
        in tinyft("finetune", "--continue", trained, "--arch", "resnet18").error
    )
    assert tinyft("finetune", "--continue", trained, "--seed", "1").error.startswith(
        "tinyft finetune: --seed: what is continued"
    )
    draw({"cat": 6, "dog": 6, "emu": 4})
    done = tinyft("finetune", "--continue", trained, "--epochs", "1", "--out", "changed")
    assert "have changed since it began" in done.error
    assert f"tinyft finetune --continue {trained} DIR" in done.error
    done = tinyft(
        *("finetune", "pictures", "--continue", trained, "--epochs", "1", "--out", "emus"),
        *("--seed", "3"),
    )
    assert done.code == 0
    assert "with random rows for emu" in done.err.replace("\n", " ").replace("  ", " ")
    assert "was trained on" in done.err and "so the accuracy will be too high" in done.err
    assert "head alone" in done.err  # its new row is random


@pytest.mark.slow
def test_few_pictures_are_pointed_to_class_means(tinyft, pictures, tmp_path):
    weights = tmp_path / "weights.h5"
    network = ft.nn.build("cifar_resnet20", seed=0)
    save_weights(weights, Weights("cifar_resnet20", network.state_dict(), None, SMALL))
    done = tinyft("plan", pictures, "--weights", weights)
    assert "note: 5 pictures of a class are few for a random head; --recipe" in done.err
    recipe = "--recipe", "means-and-mirror"
    done = tinyft("plan", pictures, "--weights", weights, *recipe, "--table")
    assert "few for a random head" not in done.err
    assert "head: linear, from the class means of the features, 2 classes" in done.out
    assert "answers: means over each picture and its mirror image" in done.out


def test_a_flat_folder_is_told_the_option(tinyft, draw, tiny):
    flat = draw({"pile": 4}) / "pile"
    for i, name in enumerate(("cat_1", "cat_2", "dog_1", "dog_2")):
        (flat / f"{i}.png").rename(flat / f"{name}.png")
    done = tinyft("plan", flat, *tiny)
    assert "their names seem to tell the classes, cat, dog; take them with --label" in done.error
    pattern = done.error.split("--label-regex ")[1].strip("'")
    assert "of 2 classes: cat, dog." in tinyft("plan", flat, *tiny, "--label-regex", pattern).out


def test_a_run_keeps_a_ledger(trained, tmp_path):
    book = Ledger.read(tmp_path / trained)
    lines = (tmp_path / trained / "metrics.csv").read_text().splitlines()
    assert len(book.steps["step"]) == len(lines) - 1
    assert book.balance() == []
    assert [proof.title for proof in book.proofs] == ["everything"]
