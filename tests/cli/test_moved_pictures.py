"""A run's pictures, moved and renamed: --data finds each by its sha256."""

import json
import shutil

import pytest

from tinyft.data import ImageTable
from tinyft.finetune.run.reading import listing_sha256, pictures_of_run
from tinyft.inspection import Ledger
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


def cut(run):
    """What a finished run learnt, to the bit; it is as if stopped after the first of its epochs."""
    described = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(described | {"finished": False}))
    arrays = load_weights(run / "learner.h5").arrays
    for file in (run / "learner.h5", sorted((run / "checkpoints").iterdir())[-1]):
        file.unlink()
    learnt = {name: array.tobytes() for name, array in arrays.items()}
    return learnt | {"metrics": (run / "metrics.csv").read_text()}


@pytest.mark.slow
@pytest.mark.parametrize("skip", [(), ("--on-error", "skip")])
def test_a_run_goes_on_to_the_bit(tinyft, trained, moved, tmp_path, skip):
    learnt = cut(tmp_path / trained)
    done = tinyft("finetune", "--resume", trained, "--data", moved, *skip)
    assert done.code == 0 and "left out" not in done.err, done.err
    assert cut(tmp_path / trained) == learnt


FROZEN = ("--bn", "frozen", "--head", "linear", "--augment", "none", "--freeze-epochs", 3)


@pytest.mark.slow
@pytest.mark.parametrize("where", [(), ("--data", "new")])
@pytest.mark.parametrize(
    "options",
    [("--epochs", 2), (*FROZEN, "--epochs", 0), ("--epochs", 2, "--recipe", "means-and-mirror")],
)
def test_a_run_goes_on_without_pictures_that_are_gone(
    tinyft, pictures, tiny, tmp_path, where, options
):
    run = tmp_path / "run"
    assert tinyft("finetune", pictures, *tiny, *options, "--out", run).code == 0
    whole = cut(run)
    files = [line.split(",")[-1] for line in (run / "pictures.csv").read_text().splitlines()[1:]]
    gone = [files[3], files[8], files[11]]  # two to learn from, and one to be tested on
    kept = {file: (pictures / file).read_bytes() for file in gone}
    (pictures / gone[0]).unlink()
    (pictures / gone[1]).write_text("no picture")
    (pictures / gone[2]).write_bytes(kept[gone[2]][:-99])
    if where:
        pictures.rename(tmp_path / "new")
    error = tinyft("finetune", "--resume", run, *where).error
    assert all(file in error for file in gone) and error.endswith("--on-error skip")
    done = tinyft("finetune", "--resume", run, *where, "--on-error", "skip")
    assert done.code == 0, done.err
    assert "note: 3 of 12 pictures left out, which the run has lost (gone or changed): " in done.err
    assert "pictures  8 to learn from and 1 to be tested on, of 2 classes" in done.err
    assert "8 to learn from and 1 to be tested on are left. The run will not end" in done.err
    described = json.loads((run / "run.json").read_text())
    first = described["steps"] - 2
    assert described["left_out"] == dict.fromkeys(gone, first)
    assert {3, 8}.isdisjoint(Ledger.read(run).ids[first:].flat)
    learnt = cut(run)
    assert learnt != whole

    folder = tmp_path / "new" if where else pictures
    for file in gone[:2]:  # what comes back stays out, or the run would end in a third way
        (folder / file).write_bytes(kept[file])
    done = tinyft("finetune", "--resume", run, *where)
    assert "3 of 12 pictures left out" in done.err, done.err
    assert "to the bit" in tinyft("inspect", run, "--step", first + 1, *where).out
    error = tinyft("inspect", run, "--step", first - 1, *where).error
    assert "dog/0.png" in error and "on-error" not in error  # the steps before had it
    assert "note: 3 of 12 pictures left out" in tinyft("evaluate", run, *where).err
    if where:
        assert tinyft("report", run, *where, "--out", "page.html").err == ""
        text = (tmp_path / "page.html").read_text()
        assert f"left out, from step {first} on: " in text and "Not shown" not in text
        assert "accuracy on 1 picture " in text and "so it does not end so again" in text
    assert cut(run) == learnt


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
