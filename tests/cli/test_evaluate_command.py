"""`tinyft evaluate RUN` on the run's own pictures, if they are still the same."""

import json
from pathlib import Path

import pytest

from tinyft.finetune.learner import Learner
from tinyft.finetune.records import Evaluation


@pytest.mark.slow
def test_pictures_that_changed_or_were_arrays_are_not_evaluated(tinyft, trained, draw):
    assert tinyft("evaluate", trained).code == 0
    draw({"cat": 7, "dog": 6})  # one more
    done = tinyft("evaluate", trained)
    assert done.code == 2
    assert "changed since it began (1 of them: cat/6.png), so its validation part" in done.error
    assert done.error.endswith("give a folder of others")
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
    assert "has classes that are not among the 2 given: new" in done.error
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


def test_pictures_are_counted_to_the_last_one(tinyft, trained, monkeypatch):
    """1 / 49 * 49 is less than 1."""
    monkeypatch.setattr(Learner, "evaluate", lambda *_: Evaluation(49, 1 / 49, 3.0))
    assert "(48 wrong of 49)" in tinyft("evaluate", trained).out
