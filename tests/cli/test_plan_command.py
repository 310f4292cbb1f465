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


def test_a_run_keeps_a_ledger(trained, tmp_path):
    book = Ledger.read(tmp_path / trained)
    lines = (tmp_path / trained / "metrics.csv").read_text().splitlines()
    assert len(book.steps["step"]) == len(lines) - 1
    assert book.balance() == []
    assert [proof.title for proof in book.proofs] == ["everything"]
