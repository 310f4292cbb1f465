"""`tinyft evaluate RUN` on the run's own pictures, if they are still the same."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tinyft.cli.evaluate import in_words
from tinyft.finetune.records import Evaluation
from tinyft.inspection.report.learned import Judgements


@pytest.mark.slow
def test_pictures_that_changed_or_were_arrays_are_not_evaluated(tinyft, trained, draw):
    assert tinyft("evaluate", trained).code == 0
    said = tinyft("evaluate", trained, "pictures").err
    assert "was trained on 10 of the 12 pictures to validate" in said
    draw({"cat": 7, "dog": 6})  # one more
    done = tinyft("evaluate", trained)
    assert done.code == 2
    assert "changed since it began (1 of them: cat/6.png); its validation part" in done.error
    assert done.error.endswith("or leave out what is gone or changed with --on-error skip")
    described = Path(trained, "run.json")
    content = json.loads(described.read_text())
    content["data"]["kind"] = "arrays"
    content["data"]["arguments"]["classes"] = ["cat", "dog"]
    described.write_text(json.dumps(content))
    done = tinyft("evaluate", trained)
    assert done.code == 2
    assert "was trained on arrays in memory, which only Python can bring back" in done.error


@pytest.mark.slow
def test_a_part_of_a_folder_is_named(tinyft, trained, draw):
    draw({"split/train/cat": 1, "split/train/dog": 1, "split/test/cat": 2, "split/test/dog": 2})
    done = tinyft("evaluate", trained, "pictures/split")
    assert done.code == 0 and "of 4)" in done.out
    assert "of pictures/split, the pictures in test/" in done.err
    assert "the pictures in" not in tinyft("evaluate", trained, "pictures/split/test").err


@pytest.mark.slow
def test_labels_of_other_pictures_may_stand_in_a_table(tinyft, trained, draw, tmp_path):
    draw({"new": 4}, "others")
    table = tmp_path / "new.csv"
    table.write_text("file,label\n" + "".join(f"new/{i}.png,cat\n" for i in range(4)))
    assert "of 4), loss" in tinyft("evaluate", trained, "others", "--labels", table).out
    done = tinyft("evaluate", trained, "others", "--label-regex", "(new)")
    assert "pictures of new, which are not among the 2 classes to tell apart" in done.error
    assert "which pictures? Give a folder" in tinyft("evaluate", trained, "--labels", table).error


def test_a_run_that_is_not_finished_says_how_to_go_on(tinyft, trained):
    Path(trained, "learner.h5").unlink()
    described = Path(trained, "run.json")
    content = json.loads(described.read_text()) | {"finished": False}
    described.write_text(json.dumps(content))
    done = tinyft("evaluate", trained)
    assert done.code == 2
    assert f"yet: finish it with tinyft finetune --resume {trained}; or take its" in done.error
    content["data"]["kind"] = "arrays"
    content["data"]["arguments"]["classes"] = ["cat", "dog"]
    described.write_text(json.dumps(content))
    assert "finish it with Python, which has its arrays" in tinyft("evaluate", trained).error


def test_pictures_are_counted_to_the_last_one():
    """1 / 49 * 49 is less than 1."""
    labels, sure = np.arange(49) > 0, np.tile([1.0, 0.0], (49, 1))
    names = [f"{i}.jpg" for i in range(49)]
    found = Judgements(["a", "b"], names, labels.astype(int), sure, Evaluation(49, 1 / 49, 3.0))
    words = in_words(found)
    assert words.startswith(
        "accuracy 2.04 %, error 97.96 % (48 wrong of 49), loss 3.0000; balanced"
    )
    assert "balanced accuracy 50.00 %" in words and "b taken for a: 48" in words
    assert "  1.jpg: a (loss " in words


def test_every_class_is_in_the_json_and_every_picture_in_the_table(tinyft, trained):
    files = "--csv", "all.csv", "--html", "page.html"
    found = json.loads(tinyft("evaluate", trained, "pictures", "--json", *files).out)
    assert [each["name"] for each in found["classes"]] == ["cat", "dog"]
    assert np.sum(found["confusion"], axis=1).tolist() == [6, 6]
    recalls = [each["recall"] for each in found["classes"]]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    with open("all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert sum(row["label"] == row["said"] for row in rows) / 12 == found["accuracy"]
    assert found["worst"][0]["loss"] == max(float(row["loss"]) for row in rows)
    page = Path("page.html").read_text()
    assert "Its largest mistakes" in page and "Confusion matrix" in page
    done = tinyft("evaluate", trained, "pictures", "--csv", "pictures/cat/0.png")
    assert "only a file that ends in .csv" in done.error
