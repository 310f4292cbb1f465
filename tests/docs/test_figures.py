"""The figures of the pages are what docs/figures/draw.py draws, small, and shown on a page."""

import base64
import io
import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "figures"
FILES = sorted(FOLDER.glob("*.svg"))
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")


@pytest.fixture(scope="module")
def drawing():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        return runpy.run_path(str(FOLDER / "draw.py"))


def elements(svg):
    """Tag, attributes and text of each element, but for the colours."""
    return [
        (e.tag.rpartition("}")[2], dict(e.attrib), e.text or "")
        for e in ElementTree.fromstring(svg).iter()
    ]


def numbers(text):
    return np.array([float(number) for number in NUMBER.findall(text)])


def assert_alike(ours, theirs, most):
    """The same words; numbers as far apart as `most` and a fiftieth."""
    assert NUMBER.sub("#", ours) == NUMBER.sub("#", theirs)
    np.testing.assert_allclose(numbers(ours), numbers(theirs), rtol=0.02, atol=most)


def pixels(uri):
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return np.asarray(picture, float)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_figure_shows_what_is_computed_now(drawing, file):
    """To what rounding may change: a pixel, a hundredth in a text, some levels of a picture."""
    shown, now = elements(file.read_text()), elements(drawing["drawn"](file.stem))
    assert [tag for tag, *_ in shown] == [tag for tag, *_ in now]
    for (tag, attributes, text), (_, now_attributes, now_text) in zip(shown, now, strict=True):
        if tag == "image":
            before, after = pixels(attributes.pop("href")), pixels(now_attributes.pop("href"))
            assert np.abs(before - after).mean() < 4
        assert attributes.keys() == now_attributes.keys()
        for name, value in attributes.items():
            assert_alike(value, now_attributes[name], 1)
        assert_alike(text, now_text, 0.015)


@pytest.mark.slow
def test_every_figure_has_a_file(drawing):
    assert set(drawing["FIGURES"]) == {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_figure_is_small_follows_the_scheme_and_stands_on_a_page(file):
    svg = file.read_text()
    assert len(svg) < 40_000
    assert "@media (prefers-color-scheme:dark)" in svg
    assert svg.count("http") == 1  # the namespace: nothing is fetched
    title = next(text for tag, _, text in elements(svg) if tag == "title")
    image = re.compile(rf"!\[([^\]]*)\]\([\w/]*figures/{file.name}\)")
    texts = [text for page in PAGES for text in image.findall(page.read_text())]
    assert title and texts and min(map(len, texts)) >= 30  # for whoever cannot see it
