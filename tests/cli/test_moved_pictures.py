"""A run's pictures, moved and renamed: --data finds each by its sha256."""

import json
import shutil

import numpy as np
import pytest

from tinyft.data import ImageTable
from tinyft.finetune.run.reading import listing_sha256, pictures_of_run
from tinyft.weights import load_weights


@pytest.fixture
def moved(trained, pictures):
    """The folder where the pictures are now: without classes, names or order."""
    folder = pictures.parent / "new"
    (folder / "below").mkdir(parents=True)
    for i, file in enumerate(sorted(pictures.rglob("*.png"))):
        file.rename(folder / ("below" if i % 2 else "") / f"img{99 - i}.png")
    shutil.rmtree(pictures)
    return folder


def test_evaluate_says_what_it_said_before(tinyft, trained, pictures, tmp_path):
    before = tinyft("evaluate", trained, "--csv", "before.csv").out
    pictures.rename(tmp_path / "new")
    error = tinyft("evaluate", trained).error
    assert f"{trained} began with the pictures in {pictures}, which is no longer there" in error
    assert "--data DIR" in error
    assert tinyft("evaluate", trained, "--csv", "after.csv", "--data", "new").out == before
    assert (tmp_path / "after.csv").read_text() == (tmp_path / "before.csv").read_text()


def test_inspect_makes_the_same_step(tinyft, trained, moved):
    done = tinyft("inspect", trained, "--step", 0, "--data", moved)
    assert "to the bit the loss of metrics.csv" in done.out


@pytest.mark.slow
def test_the_report_shows_them(tinyft, trained, moved):
    assert "no longer there" in tinyft("report", trained).err
    assert tinyft("report", trained, "--data", moved).err == ""


def test_what_is_missing_or_changed_is_named(tinyft, trained, moved):
    files = sorted(moved.rglob("*.png"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes() + b"\0")
    for command in (("evaluate", trained), ("inspect", trained, "--step", 0)):
        done = tinyft(*command, "--data", moved)
        assert done.code == 2
        assert f"2 of 12 pictures are not in {moved}, or have changed: " in done.error
        assert "/0.png" in done.error or "/5.png" in done.error  # as the run called them


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit(tinyft, trained, moved, tmp_path):
    run = tmp_path / trained
    whole = load_weights(run / "learner.h5").arrays
    metrics = (run / "metrics.csv").read_text()
    described = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(described | {"finished": False}))
    for file in (run / "learner.h5", sorted((run / "checkpoints").iterdir())[-1]):
        file.unlink()
    done = tinyft("finetune", "--resume", trained, "--data", moved)
    assert done.code == 0, done.err
    assert (run / "metrics.csv").read_text() == metrics
    for name, array in load_weights(run / "learner.h5").arrays.items():
        assert np.array_equal(array, whole[name]), name


def test_equal_pictures_and_labels_of_a_table(trained, pictures, tmp_path):
    """Two names of the same bytes stay two pictures, each with its label and part."""
    shutil.copy(pictures / "cat" / "0.png", pictures / "dog" / "same.png")
    table = tmp_path / "labels.csv"
    rows = [f"{file.relative_to(pictures)},{file.parent.name}" for file in pictures.rglob("*.png")]
    table.write_text("\n".join(["file,label", *rows]))
    with pytest.warns(UserWarning, match="under two labels"):
        data = ImageTable(pictures, table, batch_size=4)
    run = tmp_path / trained
    listing = data.listing()
    described = json.loads((run / "run.json").read_text())
    described["data"] = data.describe() | {"sha256": listing_sha256(listing)}
    (run / "run.json").write_text(json.dumps(described))
    (run / "pictures.csv").write_text(listing)
    pictures.rename(tmp_path / "new")
    table.unlink()
    found = pictures_of_run(run, tmp_path / "new")
    assert found.listing() == listing
    assert found.classes == data.classes
    assert [found.files(split) for split in ("train", "valid")] == [
        data.files(split) for split in ("train", "valid")
    ]
