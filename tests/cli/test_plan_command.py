"""`tinyft plan --explain`, and the ledger that `tinyft finetune` keeps."""

from __future__ import annotations

import pytest

from tinyft.inspection import Ledger


@pytest.mark.slow
def test_a_plan_in_words(tinyft, pictures, tiny):
    done = tinyft("plan", pictures, *tiny, "--freeze-epochs", "1", "--explain")
    assert done.code == 0
    assert "Phase 1 of 2, head alone: 1 epoch of 2 steps, steps 0 to 1." in done.out
    assert "Where: phases and rates: tinyft/finetune/schedule.py" in done.out
    assert "forecast: about" in done.out
    plain = tinyft("plan", pictures, *tiny, "--freeze-epochs", "1")
    assert "lr peak" in plain.out and "Why:" not in plain.out


def test_optimizer_and_loss_on_the_command_line(tinyft, draw, tiny):
    options = ("--optimizer", "momentum", "--weight-decay", "0.1", "--label-smoothing", "0.2")
    uneven = draw({"cat": 9, "dog": 6})
    done = tinyft("plan", uneven, *tiny, *options, "--class-weights", "balanced")
    assert "optimizer: momentum" in done.out
    assert "weight decay 0.1" in done.out
    assert "labels smoothed by 0.2, classes weighted: cat 0.857, dog 1.2" in done.out
    assert "loss:" not in tinyft("plan", uneven, *tiny).out


@pytest.mark.slow
def test_a_run_is_resumed_with_its_own_loss(tinyft, pictures, tiny):
    done = tinyft("finetune", pictures, *tiny, "--class-weights", "balanced", "--out", "run")
    assert done.code == 0
    again = tinyft("finetune", "--resume", "run", "--class-weights", "balanced")
    assert "run is finished" in again.error  # the option was no contradiction
    other = tinyft("finetune", "--resume", "run", "--label-smoothing", "0.5")
    assert "--label-smoothing 0.5 contradicts run, which began with 0.0" in other.error


def test_a_run_keeps_a_ledger(trained, tmp_path):
    book = Ledger.read(tmp_path / trained)
    lines = (tmp_path / trained / "metrics.csv").read_text().splitlines()
    assert len(book.steps["step"]) == len(lines) - 1
    assert book.balance() == []
    assert [proof.title for proof in book.proofs] == ["everything"]
