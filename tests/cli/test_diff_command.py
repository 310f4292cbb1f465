"""`tinyft diff`: a run by itself, two files, a page, JSON, and requests that make no sense."""

import errno
import json
import shutil
from pathlib import Path

import pytest

import tinyft as ft


@pytest.mark.slow
def test_a_run_is_compared_phase_by_phase(tinyft, trained):
    done = tinyft("diff", trained, "--html", "diff.html", "--json")
    assert done.code == 0 and "written: diff.html" in done.err
    found = json.loads(done.out)
    assert found["snapshots"] == ["before", "after everything"]
    assert found["pictures"] == 10  # of twelve, two are set aside
    assert 0 < found["similarity"]["stem"][0] <= 1
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert layers["conv1"]["moves"][0]["identical"] is False
    assert [len(filters) for filters in layers["conv1"]["filters"]] == [3]
    with open("diff.html", encoding="utf-8") as file:
        assert file.read().startswith("<!doctype html>")


@pytest.mark.slow
@pytest.mark.parametrize("command", [("diff",), ("inspect", "--step", "0")])
def test_an_old_page_stays_where_a_new_one_cannot_be_written(tinyft, trained, monkeypatch, command):
    def half(path, text, **options):
        path.write_bytes(text.encode()[:100])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    Path("old\npage.html").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        done = tinyft(*command, trained, "--html", "old\npage.html")
    assert "old page.html: No space left on device" in done.error
    assert Path("old\npage.html").read_text() == "old"
    assert "written: old page.html\n" in tinyft(*command, trained, "--html", "old\npage.html").err


@pytest.mark.slow
def test_of_two_files_features_are_compared_on_request(tinyft, trained, pictures):
    pair = f"{trained}/best.h5", f"{trained}/learner.h5"
    done = tinyft("diff", *pair)
    assert done.code == 0 and "linear CKA" not in done.out
    assert "after" not in tinyft("diff", trained, trained).out.splitlines()[0]
    assert tinyft("diff", trained, f"{trained}/learner.h5").code == 0
    assert "identical" in done.out and "note: --pictures DIR compares the features" in done.out
    done = tinyft("diff", *pair, "--pictures", pictures)
    assert "(linear CKA on 12 pictures, unbiased)" in done.out
    assert "stem         1.000" in done.out.splitlines()


@pytest.mark.slow
def test_pictures_of_one_class_are_enough_to_compare_on(tinyft, trained, draw):
    one = draw({"cat": 6}, "one")
    done = tinyft("diff", f"{trained}/best.h5", f"{trained}/learner.h5", "--pictures", one)
    assert done.code == 0 and "(linear CKA on 6 pictures, unbiased)" in done.out


@pytest.mark.slow
def test_pictures_that_are_gone_cost_only_the_similarity(tinyft, trained, pictures):
    shutil.rmtree(pictures)
    done = tinyft("diff", trained)
    assert done.code == 0 and "linear CKA" not in done.out
    assert "note: features are not compared: the run's pictures cannot be used: " in done.out


@pytest.mark.slow
def test_pictures_that_were_replaced_are_said(tinyft, trained, pictures):
    assert "pictures have changed" not in tinyft("diff", trained).out
    shutil.copy(pictures / "cat" / "0.png", pictures / "cat" / "1.png")
    done = tinyft("diff", trained)
    assert "linear CKA" in done.out
    assert "note: the run's pictures have changed since it began" in done.out


def test_requests_that_make_no_sense(tinyft, trained, pictures):
    done = tinyft("diff", f"{trained}/learner.h5")
    assert done.code == 2 and "is no run; to compare two files give both" in done.error
    assert "has no run.json" in tinyft("diff", pictures).error
    done = tinyft("diff", f"{trained}/learner.h5", "nothing.h5")
    assert done.code != 0 and "nothing.h5: No such file" in done.error


@pytest.mark.slow
def test_two_architectures_are_a_wrong_request(tinyft, trained, tmp_path):
    learner = ft.vision_learner(ft.ImageFolder("pictures"), "resnet18", weights=None, head="linear")
    learner.save(tmp_path / "other.h5")
    done = tinyft("diff", f"{trained}/learner.h5", "other.h5")
    assert done.code == 2 and "resnet18" in done.error


def test_names_of_nothing_are_a_wrong_request(tinyft, trained):
    for names in (["gone", "gone.h5"], [f"{trained}/learner.h5", "gone.h5"]):
        assert tinyft("diff", *names).code == 2
