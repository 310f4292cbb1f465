"""`tinyft predict` into a CSV file and into folders; `tinyft embed`."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest


def rows(name: str) -> list[dict[str, str]]:
    with open(name, newline="") as file:
        return list(csv.DictReader(file))


def test_the_most_probable_classes_come_first(tinyft, trained):
    line = tinyft("predict", trained, "pictures/cat/0.png", "--top", "3").out.split()
    assert {line[2], line[5]} == {"cat", "dog"} and float(line[0]) >= float(line[3])
    assert line[-1] == "pictures/cat/0.png"


def test_a_table_goes_on_where_it_ends(tinyft, trained):
    assert tinyft("predict", trained, "pictures", "--csv", "a.csv", "--top", "2").code == 0
    whole = Path("a.csv").read_text()
    assert len(rows("a.csv")) == 12
    assert list(rows("a.csv")[0])[:5] == [
        "file",
        "label",
        "probability",
        "label_2",
        "probability_2",
    ]
    lines = whole.splitlines(keepends=True)
    Path("a.csv").write_text("".join(lines[:6]) + lines[6][:9])  # a kill came there
    done = tinyft("predict", trained, "pictures", "--csv", "a.csv", "--top", "2")
    assert "a.csv has 5 pictures; 7 to go" in done.err
    assert "7 pictures written to a.csv" in done.out
    assert [row["file"] for row in rows("a.csv")] == [line.split(",")[0] for line in lines[1:]]
    assert (
        "0 pictures written"
        in tinyft("predict", trained, "pictures", "--csv", "a.csv", "--top", "2").out
    )


@pytest.mark.parametrize("content", ["name,age\nme,3\n", "notes of mine", "file,label\n"])
def test_another_table_is_left_as_it_is(tinyft, trained, content):
    Path("a.csv").write_text(content)
    done = tinyft("predict", trained, "pictures", "--csv", "a.csv")
    assert done.code == 2 and "name another file" in done.error
    assert Path("a.csv").read_text() == content


def test_sorting_is_words_until_copies_are_asked_for(tinyft, trained):
    done = tinyft("predict", trained, "pictures", "--sort-into", "sorted")
    assert done.out.count("would copy pictures/") == 12
    assert done.out.endswith("12 pictures would be copied; --copy does it\n")
    assert not Path("sorted").exists()
    assert "--copy is for --sort-into" in tinyft("predict", trained, "pictures", "--copy").error


def test_sorting_copies_and_replaces_nothing(tinyft, trained):
    Path("sorted/cat").mkdir(parents=True)
    Path("sorted/dog").mkdir(parents=True)
    for label in ("cat", "dog"):
        Path("sorted", label, "0.png").write_text("mine")
    before = {file: file.read_bytes() for file in Path("pictures").rglob("*.png")}
    for _ in range(2):  # the second finds all there
        done = tinyft("predict", trained, "pictures", "--sort-into", "sorted", "--copy")
        assert done.code == 0 and re.search(r"^(12|0) pictures copied$", done.out, re.M)
        assert {file: file.read_bytes() for file in Path("pictures").rglob("*.png")} == before
        copies = [file.read_bytes() for file in Path("sorted").rglob("*.png")]
        assert sorted(copies) == sorted([*before.values(), b"mine", b"mine"])


def test_json_stays_one_line_whatever_else_is_asked(tinyft, trained):
    done = tinyft("predict", trained, "pictures", "--json", "--csv", "a.csv", "--sort-into", "s")
    assert len(json.loads(done.out)) == 12 and len(rows("a.csv")) == 12
    assert "would copy" in done.err


def test_a_picture_that_is_cut_off_ends_it_or_is_left_out(tinyft, trained):
    whole = Path("pictures/dog/3.png").read_bytes()
    Path("pictures/dog/3.png").write_bytes(whole[: len(whole) // 2])
    done = tinyft("predict", trained, "pictures", "--csv", "a.csv")
    assert done.code == 1 and "pictures/dog/3.png" in done.error and "--on-error skip" in done.error
    done = tinyft("predict", trained, "pictures", "--csv", "a.csv", "--on-error", "skip")
    assert done.code == 0 and "note: skipped pictures/dog/3.png: the picture cannot" in done.err
    assert len(rows("a.csv")) == 11


def test_features_are_written_with_their_files(tinyft, trained):
    done = tinyft("embed", "pictures", "out.npz", "--weights", trained)
    assert done.out == "12 pictures, 64 features each: out.npz\n"
    with np.load("out.npz") as found:
        assert found["features"].shape == (12, 64) and found["features"].dtype == np.float32
        assert found["files"][0] == "pictures/cat/0.png"
    assert (
        "only a file that ends in .npz" in tinyft("embed", "pictures", "pictures/cat/0.png").error
    )


def test_a_bar_counts_the_pictures_of_a_table(tinyft, trained, monkeypatch):
    from tinyft.cli import predict

    told = []

    def tracked(items, what, total):
        told.append((what, total))
        return items

    monkeypatch.setattr(predict, "tracked", tracked)
    assert tinyft("predict", trained, "pictures", "--csv", "bar.csv").code == 0
    rows = Path("bar.csv").read_text().splitlines()
    assert told == [("predicting", len(rows) - 1)] and len(rows) > 5
