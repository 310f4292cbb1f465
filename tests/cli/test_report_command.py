"""`tinyft report`: the page is written, what is missing is said, errors are one line."""

import json
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_report_of_a_run(tinyft, trained, tmp_path):
    done = tinyft("report", trained)
    assert done.code == 0, done.err
    page = tmp_path / trained / "report.html"
    assert done.out.startswith(f"{trained}/report.html: one page of ")
    text = page.read_text(encoding="utf-8")
    assert "tinyft finetune" in text  # the command to make it again
    assert "pictures, sha256 of pictures.csv" in text
    assert 'id="mistakes"' in text and "evidence for" in text
    elsewhere = tmp_path / "elsewhere.html"
    done = tinyft("report", trained, "--out", elsewhere, "--json", "--backend", "reference")
    found = json.loads(done.out.splitlines()[-1])
    assert found["report"] == str(elsewhere)
    assert found["bytes"] == elsewhere.stat().st_size > 10_000
    assert set(found["missing"]) <= {"ledger"}


@pytest.mark.slow
def test_a_run_whose_pictures_are_gone_has_a_report_all_the_same(tinyft, trained, pictures):
    pictures.rename(pictures.parent / "moved")
    done = tinyft("report", trained)
    assert done.code == 0
    assert "note: " in done.err and "pictures" in done.err


def test_what_cannot_be_done_is_one_line(tinyft, trained, tmp_path):
    assert "is no run" in tinyft("report", tmp_path).error
    assert "required: RUN" in tinyft("report").error
    done = tinyft("report", trained, "--out", tmp_path / "nowhere" / "page.html")
    assert done.code == 2 and f"there is no folder {tmp_path / 'nowhere'}" in done.error
    done = tinyft("report", trained, "--out", tmp_path)
    assert done.code == 2 and f"--out {tmp_path} is a folder; name a file in it" in done.error
    for file in ("run.json", "learner.h5", "metrics.csv"):  # what would be lost
        before = (Path(trained) / file).read_bytes()
        done = tinyft("report", trained, "--out", f"{trained}/{file}")
        assert done.code == 2 and "only a file that ends in .html or .htm is replaced" in done.error
        assert (Path(trained) / file).read_bytes() == before
