"""`tinyft check`: a page, a few lines, JSON; what cannot be done is one line."""

import json
import shutil

import pytest


def test_the_page_the_lines_and_the_json(tinyft, pictures, tmp_path):
    shutil.copy(pictures / "cat" / "0.png", pictures / "dog" / "0 \n\x1b[31m.png")
    done = tinyft("check", pictures, "--weights", "none")
    assert done.code == 0, done.err
    assert done.out.startswith("pictures: 13 pictures of 2 classes, 11 to train on, 2 to validate")
    assert "- 1 picture under several labels: cat/0.png =" in done.out and "\x1b" not in done.out
    assert "pictures-check.html: all of it, with pictures" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert (tmp_path / "pictures-check.html").read_text().startswith("<!doctype html>")
    done = tinyft("check", pictures, "--weights", "none", "--json", "--out", tmp_path / "b.html")
    found = json.loads(done.out.splitlines()[-1])
    assert found["classes"] == {"cat": {"train": 5, "valid": 1}, "dog": {"train": 6, "valid": 1}}
    assert found["page"] == str(tmp_path / "b.html") and len(found["copies"]["labels"]) == 1


def test_labels_from_names(tinyft, pictures):
    shutil.copy(pictures / "cat" / "0.png", pictures / "dog" / "copy.png")
    done = tinyft("check", pictures, "--weights", "none", "--label-regex", "^(cat|dog)", "--json")
    found = json.loads(done.out.splitlines()[-1])
    assert list(found["classes"]) == ["cat", "dog"]
    assert "labels" in found["findings"] and not found["notes"]  # each thing is said once


def test_what_cannot_be_done_is_one_line(tinyft, pictures, tmp_path):
    for arguments, words in (
        (["nowhere"], "nowhere is not a folder"),
        ([pictures / "cat"], "no class folders with pictures"),
        ([pictures, "--weights", "resnet99"], "resnet99"),
        ([pictures, "--out", tmp_path / "no" / "page.html"], "there is no folder"),
        ([pictures, "--out", pictures / "cat" / "0.png"], "only a file that ends in .html"),
    ):
        done = tinyft("check", *arguments)
        assert done.code == 2 and words in done.error
    assert not list(tmp_path.glob("*.html"))


def test_a_folder_that_may_not_be_written_or_listed(tinyft, pictures, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    done = tinyft("check", pictures, "--weights", "none")
    assert done.code == 2 and "name it with --out" in done.error
    monkeypatch.undo()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("tinyft.data.split.pictures_below", lambda folder, scan: refuse(folder))
    done = tinyft("check", pictures, "--weights", "none")
    assert done.code == 2 and done.error.endswith("cat: Permission denied")


def test_interrupted_it_leaves_no_page(tinyft, pictures, monkeypatch, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tinyft.inspection.dataset.looking.grouped", interrupt)
    assert tinyft("check", pictures, "--weights", "none").code == 130
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize("command", ["plan", pytest.param("finetune", marks=pytest.mark.slow)])
def test_plan_and_finetune_point_to_it(tinyft, draw, tiny, command):
    folder = draw({"cat": 12, "dog": 4})
    done = tinyft(command, folder, *tiny, *(["--out", "run"] if command == "finetune" else []))
    assert done.code == 0
    notes = [line for line in done.err.splitlines() if line.startswith("note: ")]
    assert any("1 class has fewer than 5 pictures to learn from: dog 3" in line for line in notes)
    assert any(line.endswith(f"broken files: tinyft check {folder}") for line in notes)
