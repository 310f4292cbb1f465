"""`tinyft clean`: what it deletes, and what it leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tinyft.finetune.run.folder import hold
from tinyft.finetune.run.reading import checkpoints


@pytest.mark.slow
def test_a_finished_run_keeps_its_networks(tinyft, trained):
    (newest,) = checkpoints(Path(trained)).values()
    older = shutil.copy(newest, newest.with_name("000001.h5"))
    before = [older, newest]
    dry = tinyft("clean", trained, "--dry-run")
    assert dry.out.startswith("2 checkpoints, ") and "would be deleted" in dry.out
    assert list(checkpoints(Path(trained)).values()) == before
    done = tinyft("clean", trained, "--json")
    found = json.loads(done.out.splitlines()[-1])
    assert found["deleted"] and found["files"] == [str(file) for file in before]
    assert checkpoints(Path(trained)) == {}
    assert Path(trained, "learner.h5").exists() and Path(trained, "best.h5").exists()
    assert tinyft("clean", trained).out.startswith("0 checkpoints, ")


def test_a_run_that_goes_on_keeps_its_newest_checkpoint(tinyft, trained):
    described = Path(trained, "run.json")
    described.write_text(json.dumps(json.loads(described.read_text()) | {"finished": False}))
    (newest,) = checkpoints(Path(trained)).values()
    shutil.copy(newest, newest.with_name("000001.h5"))
    assert tinyft("clean", trained).out.startswith("1 checkpoint, ")
    assert list(checkpoints(Path(trained)).values()) == [newest]


def test_runs_that_cannot_be_cleaned(tinyft, trained, tmp_path):
    (tmp_path / "photos").mkdir()
    assert "photos" in tinyft("clean", "photos").error
    shutil.copytree(trained, "other")
    lock = hold(Path("other"))
    try:
        assert "another process is at work on other" in tinyft("clean", "other").error
    finally:
        lock.release()


@pytest.mark.parametrize("keep", ["0", "some"])
def test_what_keep_takes(tinyft, keep):
    assert "expected a whole number from 1" in tinyft("finetune", "x", "--keep", keep).error
