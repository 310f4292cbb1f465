"""Labels from a table or from names: columns, parts, groups, what cannot be used."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import tinyft as ft
from tinyft.data.split import pattern_of
from tinyft.errors import DataError


@pytest.fixture
def flat(folder):
    """Nine pictures without folders of classes: pile/0.png to pile/8.png."""
    return folder({"pile": 9})


def table(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def rows(*labels: str, head: str = "file,label") -> str:
    return "\n".join([head, *(f"pile/{i}.png,{label}" for i, label in enumerate(labels))])


def test_a_table_labels_pictures_as_their_folders_would(flat):
    data = ft.ImageTable(flat, table(flat, rows(*"abababab")), batch_size=2)
    assert data.classes == ["a", "b"]
    assert (data.n_train, data.n_valid) == (6, 2)
    by_name = dict(zip(data.files("train"), data.labels["train"].tolist(), strict=True))
    assert all(label == int(name[5]) % 2 for name, label in by_name.items())
    assert data.notices == ["1 picture without a label left out"]


@pytest.mark.parametrize("head", ["file;label", "Image\tCategory", "﻿filename,class"])
def test_columns_of_other_programs(flat, head):
    delimiter = next(mark for mark in ";\t," if mark in head)
    text = rows(*"abababab", head=head).replace(",", delimiter)
    assert ft.ImageTable(flat, table(flat, text), batch_size=2).classes == ["a", "b"]


def test_a_table_may_name_the_parts(flat):
    parts = ["a,train", "b,train", "a,Training", "b,train", "a,val", "b,val", "a,test", "b,test"]
    data = ft.ImageTable(flat, table(flat, rows(*parts, head="file,label,split")), batch_size=2)
    assert data.files("valid") == ["pile/4.png", "pile/5.png"]
    assert data.n_train == 4
    assert "beside val, and not used: 2 of test" in data.notices


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_on_one_side(folder, seed):
    path = folder({"pile": 60})
    text = ["file,label,group", *(f"pile/{i}.png,{'ab'[i % 2]},g{i // 5}" for i in range(60))]
    data = ft.ImageTable(path, table(path, "\n".join(text)), seed=seed, batch_size=2)
    sides = [{int(name[5:-4]) // 5 for name in data.files(part)} for part in ("train", "valid")]
    assert sides[0].isdisjoint(sides[1])
    assert 10 <= data.n_valid <= 15
    assert set(Counter(data.labels["train"].tolist())) == {0, 1}


def test_a_group_that_is_larger_than_its_share_is_set_aside_whole(flat):
    groups = ["a,x", "a,x", "b,x", "b,x", "a,y", "a,y", "a,y", "b,y"]
    data = ft.ImageTable(flat, table(flat, rows(*groups, head="file,label,group")), batch_size=2)
    assert (data.n_train, data.n_valid) == (4, 4)


def test_one_group_cannot_be_divided(flat):
    path = table(flat, rows("a,x", "a,x", "b,x", "b,x", head="file,label,group"))
    with pytest.raises(DataError, match="come in 1 groups, and whichever is set aside"):
        ft.ImageTable(flat, path)


def test_labels_from_names(flat):
    data = ft.ImageTable(flat, label_regex=r"^(?P<label>\w+)/(?P<group>\d)", valid_fraction=1.0)
    assert data.classes == ["pile"] and data.n_valid == 9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (rows(*"ab", head="name,label"), "has the columns name, label; expected file,label"),
        (rows("a", "b") + "\npile/77.png,a", "labels.csv, line 4: there is no picture 'pile/77.p"),
        (rows("a", "b") + "\n../x.png,a", "there is no picture '../x.png'"),
        (rows("a", "b") + "\npile/0.png,b", "line 4: pile/0.png was 'a' before"),
        (rows("a", "b", ""), "line 4: pile/2.png has no label"),
        (rows("a", "b") + "\npile/2.png", "has a line without a label"),
        (rows("a,train", "b,train", "a,late", head="file,label,split"), "the split is 'late'; exp"),
        (rows("a,train", "b,", head="file,label,split"), "the split is ''; expected one of"),
        (rows("a,val", "b,val", head="file,label,split"), "has no rows for training"),
        (
            rows("a,train,x", "b,val,x", head="file,label,split,group"),
            "1 group in both train and valid: x",
        ),
        ('file,label\n"pile/0.png,a', "is no CSV file in UTF-8: unexpected end of data"),
        ("file,label\n", "no row of .*labels.csv names a picture"),
    ],
)
def test_tables_that_cannot_be_used(flat, text, words):
    with pytest.raises(DataError, match=words):
        ft.ImageTable(flat, table(flat, text))


def test_rows_that_cannot_be_used_may_be_left_out(flat):
    path = table(flat, rows(*"abab") + "\npile/77.png,a\npile/5.png,")
    data = ft.ImageTable(flat, path, on_error="skip", batch_size=2)
    assert data.n_train + data.n_valid == 4
    assert "skipped: 2 of 6 rows cannot be used" in " ".join(data.notices)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"label_regex": "("}, "is no pattern"),
        ({"label_regex": "pile"}, "has no group; put what is the label in"),
        ({"label_regex": "(cat)"}, "is found in no name of 9 pictures below"),
        ({"label_regex": "([0-7])"}, "1 of 9 rows cannot be used: pile/8.png does not match"),
        ({"labels": "nowhere.csv"}, "there is no table nowhere.csv; expected a CSV file"),
        ({}, "give a table of labels, or a label_regex"),
        ({"labels": "x.csv", "label_regex": "(x)"}, "give a table of labels, or a label_regex"),
    ],
)
def test_arguments_that_cannot_be_used(flat, arguments, words):
    with pytest.raises(DataError, match=words):
        ft.ImageTable(flat, **arguments)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (
            ["great_dane_1.jpg", "great_dane_12.jpg", "pug_1.jpg", "pug_3.jpg"],
            ["great_dane", "pug"],
        ),
        (["cat.0.jpg", "cat.1.jpg", "dog.0.jpg", "dog.1.jpg"], ["cat", "dog"]),
        (["cat-black.jpg", "cat-red.jpg", "dog-big.jpg", "dog-old.jpg"], ["cat", "dog"]),
        (["0001_cat.png", "0002_dog.png", "0003_cat.png", "0004_dog.png"], ["cat", "dog"]),
        (["IMG_0001.jpg", "IMG_0002.jpg", "IMG_0003.jpg"], None),
        (["a.jpg", "b.jpg", "c.jpg"], None),
        ([], None),
    ],
)
def test_a_flat_folder_is_told_which_pattern_its_names_follow(names, labels, folder):
    pattern = pattern_of(names)
    assert (pattern is None) == (labels is None)
    if labels:
        path = folder({"pile": len(names)}) / "pile"
        for i, name in enumerate(names):
            (path / f"{i}.png").rename(path / name)
        with pytest.raises(DataError, match="; take them with label_regex="):
            ft.ImageFolder(path)
        assert ft.ImageTable(path, label_regex=pattern, valid_fraction=1.0).classes == labels


def test_it_is_made_again_from_what_it_says_of_itself(flat):
    data = ft.ImageTable(flat, table(flat, rows(*"abababab")), batch_size=2)
    arguments = json.loads(json.dumps(data.describe()))["arguments"]
    assert data.kind == "table" and ft.ImageTable(**arguments).listing() == data.listing()
