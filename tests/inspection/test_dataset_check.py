"""`ft.check`: what was planted in a folder is found, and nothing else."""

import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

import tinyft as ft
from tinyft.errors import DataError
from tinyft.inspection.dataset.copies import find_copies, grouped, thumbnail
from tinyft.inspection.dataset.findings import concerns
from tinyft.inspection.dataset.looking import margins, out_of_fold


def scene(seed, size=(96, 72)):
    """A picture with forms, and no other like it."""
    rng = np.random.default_rng(seed)
    coarse, fine = (rng.integers(0, 256, (n, n, 3), np.uint8) for n in (4, 12))
    layers = [Image.fromarray(a).resize(size, Image.Resampling.BICUBIC) for a in (coarse, fine)]
    return Image.blend(*layers, 0.5)


def draw(folder, classes):
    """{"cat": 6, "train/dog": 3}: scenes, each another."""
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            scene(100 * number + i).save(folder / name / f"{i}.png")
    return folder


def look(folder, **options):
    return ft.check(folder, compare_labels=False, **options)


# ------------------------------------------------------------------------------------------ copies


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((48, 36)),
        lambda image: image.resize((96, 54)),
        lambda image: image.crop((3, 4, 90, 69)),
        lambda image: ImageOps.mirror(image).crop((6, 0, 96, 66)).resize((60, 44)),
        lambda image: image.convert("L").convert("RGB"),
        lambda image: image.point(lambda value: 0.7 * value),
    ],
    ids=["smaller", "stretched", "cropped", "mirrored and cropped", "grey", "darker"],
)
def test_a_changed_copy_is_found_and_no_other(change):
    shown = [scene(i) for i in range(12)] + [change(scene(7))]
    thumbnails = np.stack([thumbnail(np.asarray(image)) for image in shown])
    assert find_copies(thumbnails, None) == [(7, 12)]


def test_two_horizons_are_not_one_picture():
    """Light above and dark below correlate; what stands before the horizon does not."""
    rng, shown = np.random.default_rng(0), []
    for _ in range(6):
        light = np.where(np.arange(64) < 30, 200, 60)[:, None, None]
        pixels = light + rng.normal(0, 12, (16, 16, 1)).repeat(4, 0).repeat(4, 1)
        shown.append(np.broadcast_to(pixels, (64, 64, 3)).clip(0, 255).astype(np.uint8))
    thumbnails = np.stack([thumbnail(pixels) for pixels in shown])
    assert find_copies(thumbnails, None) == []


def test_features_bring_candidates_that_thumbnails_do_not():
    """A strong crop among many alike: the nearest thumbnails are others, the features say it."""
    shown = [scene(i) for i in range(3)]
    thumbnails = np.stack([thumbnail(np.asarray(image)) for image in shown])
    crowd = np.concatenate([thumbnails, [thumbnail(np.asarray(scene(0).crop((8, 6, 92, 66))))]])
    assert find_copies(crowd, np.eye(4)[[0, 1, 2, 0]]) == [(0, 3)]


def test_many_copies_of_one_picture_are_one_group():
    shown = [scene(1)] * 9 + [scene(2), scene(1).resize((60, 45)), scene(3)]
    thumbnails = np.stack([thumbnail(np.asarray(image)) for image in shown])
    group_of, groups = grouped(thumbnails, None)
    assert groups == [[*range(9), 10]]
    assert len(set(group_of.tolist())) == 3


# ------------------------------------------------------------------------------------------ labels


def clouds(per_class, seed=0):
    """Features (N, 8) of three classes, a cloud each."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    return np.eye(8)[labels] * 4 + 1 + rng.normal(0, 0.4, (len(labels), 8)), labels


def test_out_of_fold_is_what_a_regression_without_the_group_says():
    features, labels = clouds([6, 9, 4])
    groups = np.arange(19)
    groups[[0, 7, 8]] = 0
    scores = out_of_fold(features, labels, 3, groups)
    # the same by hand: leave the group out of the weighted least squares
    X = features / np.linalg.norm(features, axis=1, keepdims=True)
    weight = (19 / 3 / np.array([6, 9, 4])[labels])[:, None]
    X = X - (weight * X).mean(axis=0)
    penalty = np.diag([*[(X**2).sum() / 19] * 8, 1e-6])
    X = np.hstack([X, np.ones((19, 1))])
    for left_out in ([0, 7, 8], [3], [18]):
        rest = np.setdiff1d(np.arange(19), left_out)
        A = X[rest].T @ (weight[rest] * X[rest]) + penalty
        by_hand = X[left_out] @ np.linalg.solve(
            A, X[rest].T @ (weight[rest] * np.eye(3)[labels[rest]])
        )
        np.testing.assert_allclose(scores[left_out], by_hand, atol=1e-9)


def test_wrong_labels_come_first():
    features, labels = clouds([20, 20, 20])
    given = labels.copy()
    given[[3, 31, 50]] = [1, 2, 0]
    ahead, best = margins(out_of_fold(features, given, 3, np.arange(60)), given)
    assert set(np.argsort(-ahead)[:3].tolist()) == {3, 31, 50}
    assert best[[3, 31, 50]].tolist() == [0, 1, 2]
    assert (np.delete(ahead, [3, 31, 50]) < 0).all()


def test_a_copy_does_not_vouch_for_its_copy():
    features, labels = clouds([20, 20, 20])
    features[1:4] = features[0]
    labels[:4] = 1  # wrong, all four
    alone = margins(out_of_fold(features, labels, 3, np.arange(60)), labels)[0][0]
    groups = np.array([0, 0, 0, 0, *range(4, 60)])
    together = margins(out_of_fold(features, labels, 3, groups), labels)[0][0]
    assert together > alone + 0.1


def test_small_classes_and_single_ones_are_not_judged():
    features, labels = clouds([4, 9, 9])
    ahead, _ = margins(out_of_fold(features, labels, 3, np.arange(22)), labels)
    assert np.isinf(ahead[:4]).all() and np.isfinite(ahead[4:]).all()
    zeros = np.zeros(22, np.int64)
    assert np.isinf(margins(out_of_fold(features, zeros, 1, np.arange(22)), zeros)[0]).all()


# ------------------------------------------------------------------------------------------ folders


def test_a_clean_folder_has_no_findings(tmp_path):
    found = look(draw(tmp_path / "p", {"train/a": 6, "train/b": 6, "valid/a": 25, "valid/b": 25}))
    assert found.sentences() == {}
    assert found.baselines() == {"largest": (31, 62)}
    assert "nothing was found" in str(found)
    assert "90 % right of 50 pictures would mean 79 to 96 %" in str(found)


def test_what_is_planted_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    folder = draw(
        tmp_path / "p",
        {"train/cat": 12, "train/dog": 2, "valid/cat": 3, "valid/cow": 2, "train/empty": 0},
    )
    shutil.copy(folder / "train/cat/0.png", folder / "train/dog/same.png")
    scene(1).crop((4, 3, 94, 70)).save(folder / "valid/cat/crop.png")
    scene(2).resize((40, 30)).save(folder / "train/cat/small.png")
    whole = (folder / "train/cat/3.png").read_bytes()
    (folder / "train/cat/3.png").write_bytes(whole[: len(whole) // 2])
    (folder / "train/cat/phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (folder / "train/dog/web.jpg").write_text("<html>")
    (folder / "train/dog/notes.txt").write_text("?")
    (folder / "train/dog/gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "train/cat/inner").symlink_to(folder / "train")
    before = sorted(os.walk(folder))
    found = look(folder)
    assert sorted(os.walk(folder)) == before  # nothing is moved or written
    assert set(found.unusable) == {"train/cat/3.png", "train/cat/phone.heic", "train/dog/web.jpg"}
    assert "cannot be decoded" in found.unusable["train/cat/3.png"]
    assert "JPEG" in found.unusable["train/cat/phone.heic"]  # the remedy
    named = found.to_dict()["copies"]
    assert named["labels"] == [["train/cat/0.png", "train/dog/same.png"]]
    assert named["split"] == [["train/cat/1.png", "valid/cat/crop.png"]]
    assert named["repeated"] == [["train/cat/2.png", "train/cat/small.png"]]
    said = found.sentences()
    assert list(said)[:3] == ["unusable", "labels", "split"]
    assert "cow" in said["strange"] and "empty" in said["empty"]
    assert "dog 3" in said["few"] and "proves little" in said["valid"]
    (note,) = found.notes
    assert "links to folders: 1" in note and "special files: 1" in note and "(.txt)" in note


def test_without_a_split_it_is_the_one_that_training_makes(tmp_path):
    folder = draw(tmp_path / "p", {"cat": 9, "dog": 6, "single": 1})
    found = look(folder, valid_fraction=0.4, seed=3)
    assert not found.has_split
    shutil.rmtree(folder / "single")
    data = ft.ImageFolder(folder, valid_fraction=0.4, seed=3)
    assert [p.file for p in found.pictures if p.split == "valid"] == data.files("valid")
    assert found.pictures[-1].split == "train"


@pytest.mark.parametrize("classes", [{"one": 1}, {"one": 1, "two": 1}, {"one": 7}])
def test_the_smallest_folders(tmp_path, classes):
    found = look(draw(tmp_path / "p", classes))
    assert len(found.pictures) == sum(classes.values())
    assert found.copies == [] and str(found) and found._repr_html_()


def test_a_folder_of_broken_files_alone(tmp_path):
    (tmp_path / "p/cat").mkdir(parents=True)
    (tmp_path / "p/cat/a.jpg").write_text("no picture")
    found = look(tmp_path / "p")
    assert found.pictures == [] and set(found.unusable) == {"cat/a.jpg"}
    found.save(tmp_path / "page.html")
    with pytest.raises(DataError, match="no class folders with pictures"):
        look(tmp_path / "p/cat")


def test_data_in_memory_and_tables(tmp_path):
    pictures = np.stack([np.asarray(scene(i)) for i in range(8)])
    pictures[7] = pictures[0]
    data = ft.ImageArrays((pictures[:4], np.arange(4) % 2), (pictures[4:], np.arange(4) % 2))
    found = look(data)
    assert found.to_dict()["copies"]["labels"] == [["train[0]", "valid[3]"]]
    folder = draw(tmp_path, {"all": 8})
    shutil.copy(folder / "all/0.png", folder / "all/8.png")
    rows = "".join(f"all/{i}.png,{'ab'[i % 2]}\n" for i in range(9))
    (tmp_path / "labels.csv").write_text(f"file,label\n{rows}")
    found = look(ft.data.ImageTable(folder, tmp_path / "labels.csv"))
    assert found.classes == ["a", "b"] and len(found.copies) == 1


def test_the_page_shows_names_as_they_are(tmp_path):
    folder = draw(tmp_path / "p", {"<b>cat": 6, "dog": 6})
    shutil.copy(folder / "dog/0.png", folder / "<b>cat/&\x1b.png")
    found = look(folder)
    page = tmp_path / "page.html"
    found.save(page)
    text = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;cat" in text and "<b>cat" not in text and "&amp;" in text
    assert "data:image/jpeg" in text and "http" not in text.replace("http-equiv", "")
    (folder / "dog/0.png").unlink()
    assert "not shown: cannot be opened" in found._repr_html_()


def test_counts_alone_say_what_finetune_passes_on():
    assert concerns(["a", "b"], np.array([40, 40]), 60) == {}
    said = concerns(["a", "b", "c"], np.array([3, 60, 0]), 8)
    assert said["few"] == "1 class has fewer than 5 pictures to learn from: a 3"
    assert said["uneven"].startswith("uneven classes: 60 pictures of b to learn from, 3 of a")
    assert said["valid"].endswith("88 % right of 8 pictures would mean 53 to 98 %")


@pytest.mark.slow
def test_planted_labels_are_found_by_the_bundled_network(tmp_path):
    from tinyft.bundled import bundled

    folder = tmp_path / "p"
    for kind in ("cougar", "dolphin", "scorpion"):
        shutil.copytree(bundled("examples/animals8") / "train" / kind, folder / kind)
    shutil.move(folder / "cougar/image_0001.jpg", folder / "dolphin/cougar.jpg")
    shutil.move(folder / "scorpion/image_0001.jpg", folder / "cougar/scorpion.jpg")
    found = ft.check(folder)
    ranked = [found.pictures[i].file for i in np.argsort(-found.margins)[:4]]
    assert {"dolphin/cougar.jpg", "cougar/scorpion.jpg"} <= set(ranked)
    assert "resnet10s at 64 px" in found.network and found.baselines()["features"][0] > 65
    assert "looks like <b>" in found._repr_html_()
