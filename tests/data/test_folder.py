"""Folders of pictures: layouts, names, vocabulary, split, unreadable files, duplicates."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import unicodedata
from collections import Counter

import numpy as np
import pytest

from tinyft.data import ImageFolder
from tinyft.data.folder import MovedPictures
from tinyft.data.split import scan_classes
from tinyft.errors import DataError
from tinyft.weights.preprocess import Preprocess

SMALL = Preprocess(resize=20, crop=16)
SPLIT = {"train/cat": 4, "train/dog": 3, "valid/cat": 2, "valid/dog": 1}


def split_of(data: ImageFolder) -> dict[str, list[str]]:
    return {split: data.files(split) for split in ("train", "valid")}


@pytest.mark.parametrize("valid", ["valid", "val", "validation", "test", "Valid"])
def test_a_folder_with_its_own_split(valid, folder):
    counts = {name.replace("valid", valid): count for name, count in SPLIT.items()}
    data = ImageFolder(folder(counts), batch_size=2)
    assert data.classes == ["cat", "dog"] and data.num_classes == 2
    assert (data.n_train, data.n_valid) == (7, 3)
    assert data.labels["train"].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert data.files("valid") == [f"{valid}/cat/0.png", f"{valid}/cat/1.png", f"{valid}/dog/0.png"]
    assert data.labels["valid"].dtype == np.int64


def test_valid_is_preferred_to_test(folder):
    data = ImageFolder(folder({**SPLIT, "test/cat": 9}), batch_size=2)
    assert data.n_valid == 3


def test_parts_may_be_links_and_written_in_any_case(folder):
    path = folder({"Train/cat": 4, "Train/dog": 3, "elsewhere/valid/cat": 2}).resolve()
    (path / "Val").symlink_to(path / "elsewhere" / "valid")
    data = ImageFolder(path, batch_size=2)
    assert (data.classes, data.n_train) == (["cat", "dog"], 7)
    assert data.files("valid") == ["Val/cat/0.png", "Val/cat/1.png"]


def test_a_random_split_has_the_same_share_of_each_class(folder):
    data = ImageFolder(folder({"a": 10, "b": 5, "c": 2}), batch_size=2)
    assert Counter(data.labels["valid"].tolist()) == {0: 2, 1: 1, 2: 1}
    assert set(data.files("train")).isdisjoint(data.files("valid"))
    assert len(data.files("train")) + len(data.files("valid")) == 17


def test_the_split_depends_on_seed_and_class_alone(folder):
    path = folder({"a": 10, "b": 10})
    one = ImageFolder(path, seed=3)
    assert split_of(one) == split_of(ImageFolder(path, seed=3, augment=None, batch_size=5))
    assert split_of(one) != split_of(ImageFolder(path, seed=4))
    folder({"aa": 4})  # another class changes nothing for these
    more = ImageFolder(path, seed=3)
    assert set(one.files("valid")) < set(more.files("valid"))


def test_everything_can_be_set_aside_to_evaluate(folder):
    data = ImageFolder(folder({"a": 1, "b": 2}), valid_fraction=1.0)
    assert (data.n_train, data.n_valid) == (0, 3)
    with pytest.raises(DataError, match="no training pictures"):
        _ = data.steps_per_epoch


def test_classes_are_sorted_by_code_point(folder):
    names = ["cat", "Dog", "10", "9", "Zebra", "éa", ".hidden"]
    data = ImageFolder(folder({name: 2 for name in names}), batch_size=2)
    assert data.classes == ["10", "9", "Dog", "Zebra", "cat", "éa"]
    assert "hidden files or folders: 1" in data.notices[0]


def test_decomposed_names_are_composed_but_paths_stay(folder):
    decomposed = unicodedata.normalize("NFD", "é")
    data = ImageFolder(folder({decomposed: 2, "z": 2}), batch_size=2)
    assert data.classes == ["z", "é"]
    assert data.files("train")[1].startswith(decomposed)


def test_two_folders_that_are_equal_once_composed_are_refused(folder):
    path = folder({unicodedata.normalize("NFD", "é"): 2, "é": 2})
    with pytest.raises(DataError, match="both called é"):
        ImageFolder(path)


def test_undecodable_folder_names_are_spelt_out(folder):
    path = folder({"a": 2})
    os.rename(path / "a", os.fsencode(path) + b"/caf\xe9")
    folder({"b": 2})
    data = ImageFolder(path, batch_size=2)
    assert data.classes == ["b", "caf\\udce9"]
    json.dumps(data.describe()).encode()
    assert len(list(data.valid_batches(SMALL))) == 1


def test_leftovers_are_passed_over_and_counted(folder):
    path = folder({"cat": 2, "dog": 2, "__MACOSX": 1, "dog/.ipynb_checkpoints": 1})
    for name in ("cat/._0.png", "cat/.DS_Store", "cat/Thumbs.db", "dog/readme.txt", "list.csv"):
        (path / name).write_bytes(b"x")
    scan = scan_classes(path)
    assert list(scan.pictures) == ["cat", "dog"]
    assert scan.skipped == {
        "hidden files or folders": 5,
        "files outside a class folder": 1,
        "files of another kind (.txt)": 1,
    }


def test_links_to_folders_are_not_followed(folder):
    path = folder({"cat": 2, "dog": 2})
    (path / "cat" / "loop").symlink_to(path)
    (path / "mouse").symlink_to(path / "cat")
    (path / "dog" / "dead.png").symlink_to(path / "nothing.png")
    (path / "dog" / "itself.png").symlink_to("itself.png")
    (path / "dog" / "linked.png").symlink_to(path / "dog" / "0.png")
    scan = scan_classes(path)
    assert {name: len(files) for name, files in scan.pictures.items()} == {"cat": 2, "dog": 3}
    assert scan.skipped == {"links to folders": 2, "dead links or special files": 2}


def test_a_named_pipe_does_not_block(folder):
    path = folder({"cat": 2, "dog": 2})
    os.mkfifo(path / "cat" / "pipe.png")
    assert scan_classes(path).skipped == {"dead links or special files": 1}


def test_pictures_below_a_class_belong_to_it(folder):
    data = ImageFolder(folder({"cat": 1, "cat/more": 2, "dog": 2}), batch_size=2, valid_fraction=1)
    assert data.files("valid")[:3] == ["cat/0.png", "cat/more/0.png", "cat/more/1.png"]
    assert data.labels["valid"].tolist() == [0, 0, 0, 1, 1]


@pytest.mark.slow
def test_pictures_however_deep_below_a_class(folder):
    path = folder({"cat": 2, "dog": 2})
    deepest = path / "cat"
    for _ in range(1100):  # more than Python's functions may be nested
        deepest /= "d"
        deepest.mkdir()
    deep = (path / "cat" / "1.png").rename(deepest / "1.png")
    try:
        assert scan_classes(path).pictures["cat"] == [path / "cat" / "0.png", deep]
    finally:
        deep.unlink()
        os.removedirs(deepest)  # which shutil.rmtree, and so pytest, could not


def test_a_class_only_in_validation_is_an_error_with_its_name(folder):
    with pytest.raises(
        DataError, match=r"valid has pictures of mouse, which .* 2 classes of training: cat, dog"
    ):
        ImageFolder(folder({**SPLIT, "valid/mouse": 1}))


def test_a_class_missing_from_validation_shifts_no_label(folder):
    counts = {"train/a": 2, "train/b": 2, "train/c": 2, "valid/a": 1, "valid/c": 1}
    data = ImageFolder(folder(counts), batch_size=2)
    assert data.labels["valid"].tolist() == [0, 2]
    assert "valid has no pictures of: b" in data.notices


def test_given_classes_keep_their_order(folder):
    path = folder({"dog": 2, "cat": 2})
    data = ImageFolder(path, classes=["dog", "mouse", "cat"], valid_fraction=1)
    assert data.classes == ["dog", "mouse", "cat"]
    assert data.labels["valid"].tolist() == [2, 2, 0, 0]
    with pytest.raises(DataError, match="dog"):
        ImageFolder(path, classes=["cat", "mouse"], valid_fraction=1)
    with pytest.raises(DataError, match="'cat' comes twice"):
        ImageFolder(path, classes=["cat", "dog", "cat"], valid_fraction=1)
    with pytest.raises(DataError, match="as text; got 1"):
        ImageFolder(path, classes=["cat", "dog", 1], valid_fraction=1)
    with pytest.raises(DataError, match=r"of cat, dog, .* 0 classes to tell apart: none"):
        ImageFolder(path, classes=[], valid_fraction=1)
    with pytest.raises(DataError, match=r"must be a list of names; got 'dog': give \['dog'\]"):
        ImageFolder(path, classes="dog", valid_fraction=1)


def test_given_classes_are_composed_as_folders_names_are(folder):
    path = folder({"cafe\u0301": 2, "tea": 2})
    names = (name for name in ["cafe\u0301", "tea"])
    data = ImageFolder(path, classes=names, valid_fraction=1)
    assert data.classes == ["caf\u00e9", "tea"]


def test_one_class_is_enough_to_look_at_and_one_picture_is_an_error(folder):
    assert ImageFolder(folder({"one/cat": 4}) / "one", batch_size=2).classes == ["cat"]
    with pytest.raises(DataError, match="one picture cannot be split: dog"):
        ImageFolder(folder({"two/cat": 4, "two/dog": 1}) / "two")


def test_no_pictures_says_what_was_found(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        ImageFolder(tmp_path / "nothing")
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "a.xcf").write_bytes(b"x")
    with pytest.raises(DataError, match=r"files of another kind \(\.xcf\): 1; folders: phone"):
        ImageFolder(tmp_path)


def test_pictures_that_are_cut_off_are_all_named_before_the_first_step(folder):
    path = folder({"cat": 6, "dog": 6})
    for name in ("cat/1.png", "dog/4.png"):
        (path / name).write_bytes((path / name).read_bytes()[:-60])
    data = ImageFolder(path, batch_size=2)
    with pytest.raises(DataError) as found:
        data.expect_whole(SMALL)
    assert "2 of 12 pictures cannot be used" in str(found.value)
    assert "cat/1.png: the picture cannot be decoded" in str(found.value)
    assert "remove them, or leave them out with on_error='skip'" in str(found.value)
    ImageFolder(path, batch_size=2, on_error="skip").expect_whole(SMALL)


def test_what_was_read_to_be_checked_is_not_decoded_again(folder, monkeypatch):
    data = ImageFolder(folder({"cat": 6, "dog": 6}), batch_size=2)
    data.expect_whole(SMALL)
    monkeypatch.setattr("tinyft.data.loader.working_picture", lambda *_: 1 / 0)
    assert len([*data.train_batches(0, SMALL)]) == 5


def test_a_folder_named_train_may_be_a_class(folder):
    data = ImageFolder(folder({"train": 4, "bus": 4}), batch_size=2)
    assert data.classes == ["bus", "train"]


def test_the_content_decides_not_the_extension(folder, encode, rough):
    path = folder(SPLIT)
    (path / "train/cat/0.png").unlink()
    (path / "train/cat/0.JPG").write_bytes(encode(rough(30, 30), "WEBP"))
    data = ImageFolder(path, batch_size=2)
    assert data.n_train == 7
    assert sum(len(batch.ids) for batch in data.train_batches(0, SMALL)) == 6


def test_unreadable_files_are_listed_by_reason(folder):
    path = folder(SPLIT)
    (path / "train/cat/page.jpg").write_bytes(b"<html>")
    (path / "valid/dog/page.jpg").write_bytes(b"<html>")
    (path / "valid/dog/zero.jpg").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        ImageFolder(path)
    text = str(caught.value)
    assert "3 of 13 pictures" in text and "on_error='skip'" in text
    assert "train/cat/page.jpg, valid/dog/page.jpg: not a picture" in text
    assert "valid/dog/zero.jpg: the file is empty" in text


def test_a_cut_file_is_named_when_its_batch_is_due(folder):
    path = folder(SPLIT)
    whole = (path / "train/cat/0.png").read_bytes()
    (path / "train/cat/0.png").write_bytes(whole[: len(whole) // 2])
    data = ImageFolder(path, batch_size=7, shuffle=False)
    with pytest.raises(DataError, match=r"train/cat/0\.png: the picture cannot be decoded"):
        list(data.train_batches(0, SMALL))


def test_skipping_leaves_out_cut_files_before_anything_is_counted(folder):
    path = folder({"cat": 4, "dog": 4, "mouse": 1})
    whole = (path / "cat/0.png").read_bytes()
    (path / "cat/0.png").write_bytes(whole[: len(whole) // 2])
    (path / "mouse/0.png").write_bytes(b"")
    data = ImageFolder(path, batch_size=2, on_error="skip")
    assert data.classes == ["cat", "dog"] and data.n_train + data.n_valid == 7
    assert sorted(data.skipped) == ["cat/0.png", "mouse/0.png"]
    assert any(notice.startswith("skipped: 2 of 9") for notice in data.notices)
    assert len(list(data.train_batches(0, SMALL))) == data.steps_per_epoch


def test_what_is_lost_leaves_all_other_pictures_as_they_were(folder):
    path = folder({"cat": 6, "dog": 6})
    before = ImageFolder(path, batch_size=2)
    batches = [*before.train_batches(0, SMALL)]
    listing = before.listing()
    lines = [*csv.reader(listing.splitlines())][1:]
    ids = [*batches[1].ids, batches[3].ids[0]]  # all of a batch, and half of one, which is too few
    lost = [before.files("train")[i] for i in ids] + before.files("valid")[:1]
    for name in lost:
        (path / name).unlink()
    with pytest.raises(DataError, match=r"4 of 12 pictures are not in .* with on_error='skip'"):
        MovedPictures(path, lines, batch_size=2)
    after = MovedPictures(path, lines, batch_size=2, skip_lost=True)
    after.expect_whole(SMALL)
    assert after.listing() == listing and sorted(after.lost) == sorted(lost)
    assert split_of(after) == {"train": before.files("train"), "valid": before.files("valid")[1:]}
    found = [*after.train_batches(0, SMALL)]
    for batch, expected in zip(found, [batches[i] for i in (0, 0, 2, 0, 4)], strict=True):
        assert batch.ids.tolist() == expected.ids.tolist()
        np.testing.assert_array_equal(batch.images, expected.images)
    assert len([*after.train_batches(0, SMALL, 3)]) == 2
    assert [len(batch.ids) for batch in after.valid_batches(SMALL)] == [1]
    with pytest.raises(DataError, match="too few pictures of valid are left: 5 of 12 pictures"):
        MovedPictures(path, lines, batch_size=2, skip_lost=True, without=before.files("valid"))


def test_copies_across_the_split_are_warned_of(folder):
    path = folder(SPLIT)
    (path / "valid/cat/copy.png").write_bytes((path / "train/cat/2.png").read_bytes())
    with pytest.warns(UserWarning, match=r"train/cat/2\.png = valid/cat/copy\.png"):
        data = ImageFolder(path, batch_size=2)
    assert any("both train and valid" in notice for notice in data.notices)


@pytest.mark.parametrize("copy", ["train/dog/copy.png", "valid/dog/copy.png"])
def test_a_picture_under_two_labels_is_told_as_that(folder, copy):
    path = folder(SPLIT)
    (path / copy).write_bytes((path / "train/cat/2.png").read_bytes())
    with pytest.warns(UserWarning) as warned:
        data = ImageFolder(path, batch_size=2)
    label = f"1 picture is under two labels: train/cat/2.png = {copy}"
    both = f"1 picture is in both train and valid: train/cat/2.png = {copy}"
    expected = [label, both] if copy.startswith("valid") else [label]
    assert [str(w.message) for w in warned] == expected
    assert [notice for notice in data.notices if "copy" in notice] == expected


def test_copies_in_one_class_of_training_are_nobodys_business(folder):
    path = folder(SPLIT)
    (path / "train/cat/copy.png").write_bytes((path / "train/cat/2.png").read_bytes())
    assert not ImageFolder(path, batch_size=2).notices


def test_strongly_uneven_classes_are_noted(folder):
    (notice,) = ImageFolder(folder({"cat": 20, "dog": 4}), batch_size=2).notices
    assert notice == (
        "uneven classes: cat has 16 training pictures, dog 3; always naming cat is right 80% of "
        "times"
    )
    path = folder({"few/cat": 12, "few/dog": 4}) / "few"
    assert not ImageFolder(path, batch_size=2).notices
    assert not ImageFolder(path, batch_size=2, valid_fraction=1).notices  # none to learn from


def test_a_side_that_shows_nothing_is_refused(folder):
    path = folder({"cat": 4, "dog": 4})
    with pytest.raises(DataError, match="size must be a whole number of at least 8; got 1"):
        ImageFolder(path, batch_size=2, size=1)


def test_the_description_builds_the_same_data_again(folder):
    data = ImageFolder(folder({"a": 6, "b": 6}), size=24, batch_size=3, seed=5, valid_fraction=0.4)
    described = json.loads(json.dumps(data.describe()))
    again = ImageFolder(**described["arguments"])
    assert again.describe() == data.describe()
    assert split_of(again) == split_of(data)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_listing_notices_a_file_that_was_exchanged_for_one_of_its_size(folder, workers):
    path = folder(SPLIT)
    before = ImageFolder(path, batch_size=2, workers=workers).listing()
    content = (path / "train/cat/0.png").read_bytes()
    row = f"train,cat,{hashlib.sha256(content).hexdigest()},train/cat/0.png"
    assert before.splitlines()[:2] == ["split,class,sha256,file", row]
    assert len(before.splitlines()) == 1 + sum(SPLIT.values())
    (path / "train/cat/0.png").write_bytes(content[:-1] + b"x")
    after = ImageFolder(path, batch_size=2, workers=workers).listing()
    changed = [
        old for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new
    ]
    assert changed == [row]


def test_orientation_can_be_switched_off_for_comparisons(folder):
    data = ImageFolder(folder(SPLIT), batch_size=2, exif_transpose=False)
    assert data.adjusted(SMALL).exif_transpose is False
    assert ImageFolder(data.path, batch_size=2).adjusted(SMALL) == SMALL


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"valid_fraction": 0}, "valid_fraction must be above 0"),
        ({"on_error": "ignore"}, "on_error must be"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"workers": -1}, "workers must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"size": 0}, "size must be"),
        ({"augment": "mixup"}, "augment must be one of default, crop, shift, or None"),
    ],
)
def test_wrong_options_say_what_is_expected(option, message, folder):
    with pytest.raises(DataError, match=message):
        ImageFolder(folder(SPLIT), **option)


@pytest.mark.slow
def test_real_photographs(shared):
    data = ImageFolder(shared / "data" / "flowers12")
    assert data.num_classes == 12 and (data.n_train, data.n_valid) == (444, 444)
    assert data.notices == [] and data.steps_per_epoch == 27
    batch = next(data.train_batches(0, Preprocess(resize=256, crop=224)))
    assert batch.images.shape == (16, 224, 224, 3) and batch.images.std() > 20


def test_folders_named_as_keras_does(folder):
    path = folder({"training/a": 2, "training/b": 2, "validation/a": 1, "validation/b": 1})
    data = ImageFolder(path, batch_size=2)
    assert data.classes == ["a", "b"]
    assert (data.n_train, data.n_valid) == (4, 2)


def test_validation_parts_alone_are_no_classes(folder):
    path = folder({"valid/a": 2, "valid/b": 2, "test/a": 2, "test/b": 2})
    with pytest.raises(DataError, match="has valid/ and no train/; expected train/CLASS"):
        ImageFolder(path)
    flat = folder({"photos/valid": 2, "photos/invalid": 2}) / "photos"
    assert ImageFolder(flat, batch_size=2).classes == ["invalid", "valid"]


def test_folders_beside_the_parts_are_named(folder):
    path = folder({"train/steam": 4, "train/diesel": 4, "car": 3, "bus": 3, ".hidden": 1})
    assert "beside train/, and not used: bus, car" in ImageFolder(path, batch_size=2).notices
    assert not any("beside" in n for n in ImageFolder(path / "train", batch_size=2).notices)
