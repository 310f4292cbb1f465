"""The stages of a picture's preprocessing: they are the real ones, and what they say is true."""

import io
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.finetune.conftest import bits, pictures, small_learner
from tinyft.data.picture import prepare
from tinyft.errors import DataError
from tinyft.inspection.report.images import explain_image


def names(found):
    return [stage.name for stage in found.stages]


@pytest.fixture(scope="module")
def learner():
    return small_learner()


def photograph(size=(60, 40), orientation=None, mode="RGB"):
    """A picture file of noise, `size` wide and high."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture, file = Image.fromarray(pixels).convert(mode), io.BytesIO()
    exif = picture.getexif()
    if orientation:
        exif[0x0112] = orientation
    picture.save(file, "PNG", exif=exif)
    return file.getvalue()


def test_the_stages_end_in_what_the_network_gets(learner):
    data = photograph()
    before = bits(learner)
    found = explain_image(data, learner)
    assert names(found) == ["decoded", "resized", "cropped", "normalised", "where the evidence is"]
    preprocess = learner.adjusted_preprocess()
    cropped, normalised = found.stages[2].array, found.stages[3].array
    assert np.array_equal(cropped, prepare(data, preprocess))
    expected = (cropped / 255 - preprocess.mean) / preprocess.std
    assert np.allclose(normalised, expected, atol=1e-5)
    assert bits(learner) == before
    assert f"{learner.predict(data).label} " in found.verdict


def test_the_words_give_the_numbers(learner):
    found = explain_image(photograph(), learner)
    decoded, resized, cropped, normalised, _ = found.stages
    assert "PNG" in decoded.words and "60 x 40 px, mode RGB" in decoded.words
    assert decoded.array.shape == (40, 60, 3)
    assert "to 36 x 24 px, the short side at 24" in resized.words
    assert "the middle 24 x 24 px; 33 % of the picture" in cropped.words
    assert "minus (0.485, 0.456, 0.406)" in normalised.words and "assumed" in normalised.words
    mean = cropped.array[..., 1].mean()
    assert f"G {mean:.4g}" in cropped.numbers
    assert str(found).count("(24, 24, 3)") == 3


def test_a_turned_picture_has_a_stage_for_it(learner):
    found = explain_image(photograph(orientation=6), learner)
    assert names(found)[:2] == ["decoded", "upright"]
    stored, upright = found.stages[0].array, found.stages[1].array
    assert np.array_equal(np.rot90(stored, -1), upright)
    assert "EXIF orientation 6, turned" in found.stages[1].words


def test_a_picture_of_pillows_is_explained_as_its_file_is(learner):
    file = photograph(orientation=6)
    found, of_file = (
        explain_image(source, learner) for source in (Image.open(io.BytesIO(file)), file)
    )
    assert names(found)[:2] == ["given", "resized"]
    assert "40 x 60 px, mode RGB" in found.stages[0].words
    assert np.array_equal(found.stages[2].array, of_file.stages[3].array)
    assert found.verdict == of_file.verdict


def test_an_old_page_stays_where_a_new_one_cannot_be_written(learner, tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        explain_image(photograph(), learner).save(page)
    assert page.read_text() == "old" and list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize("exif", [b"garbage!", b"Exif\0\0II*\0", 9])
def test_no_turn_is_told_where_there_is_none(learner, exif):
    file = io.BytesIO()
    if isinstance(exif, bytes):
        Image.new("RGB", (60, 40)).save(file, "JPEG", exif=exif)
    else:
        file = io.BytesIO(photograph(orientation=exif))
    assert names(explain_image(file.getvalue(), learner))[:2] == ["decoded", "resized"]


def frame_of(resized):
    """Where the frame is drawn (H, W) bool, and its first and last row and column."""
    framed = (resized.shown != resized.array).any(axis=2)
    rows, columns = np.nonzero(framed)
    return framed, [int(end) for n in (rows, columns) for end in (n.min(), n.max())]


def test_the_frame_is_where_the_crop_is(learner):
    framed, ends = frame_of(explain_image(photograph(), learner).stages[1])
    assert ends == [0, 23, 6, 29]
    assert not framed[5:20, 10:25].any()


@pytest.mark.parametrize("margin", [0, 1, 2, 3])
def test_the_frame_is_where_a_whole_square_is_cut(learner, monkeypatch, margin):
    whole = replace(learner.preprocess, resize=28, crop=24, whole_square=True)
    monkeypatch.setattr(learner, "preprocess", whole)
    pixels = np.zeros((28, 28 + margin, 3), np.uint8)
    pixels[:, margin // 2 : margin // 2 + 28] = 255  # what is cut
    _, resized, cropped, *_ = explain_image(pixels, learner).stages
    assert np.all(cropped.array == 255)
    assert frame_of(resized)[1] == [0, 27, margin // 2, margin // 2 + 27]


@pytest.mark.slow
def test_arrays_grey_pictures_and_large_ones(learner):
    assert names(explain_image(pictures()[0][0], learner))[0] == "given"
    assert "mode L, as RGB" in str(explain_image(photograph(mode="L"), learner))
    large = explain_image(photograph((2000, 700)), learner).stages[0]
    assert large.shown.shape == (157, 448, 3) and large.array.shape == (700, 2000, 3)


def test_the_page_holds_each_picture(learner, tmp_path):
    found = explain_image(photograph(), learner)
    found.save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("<img") == 5 and text.count("data:image/jpeg") == 5


def test_what_is_no_picture_is_named(learner, tmp_path):
    (tmp_path / "notes.jpg").write_text("hello")
    with pytest.raises(DataError, match=r"notes\.jpg: not a picture"):
        explain_image(tmp_path / "notes.jpg", learner)
