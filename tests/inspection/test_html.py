"""The common HTML: what a browser is given, and that text cannot become markup."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tinyft.errors import ShapeError
from tinyft.inspection.html import Markup, escape, page, picture, table

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Balance(HTMLParser):
    """Raises where an end tag closes something else than the last open element."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def balanced(text):
    parser = Balance()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser.seen


def test_a_page_is_well_formed_and_loads_nothing():
    text = page("a < b", "<h1>hello</h1>", script="const end = '</script>';")
    tags = balanced(text)
    assert "<title>a &lt; b</title>" in text
    assert "const end = '<\\/script>';" in text
    for _, attributes in tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "default-src 'none'" in text
    assert "http://" not in text and "https://" not in text


def test_a_page_without_a_script_has_none():
    assert "<script" not in page("t", "b")


def test_text_cannot_become_markup():
    assert escape('<a href="x">&') == "&lt;a href=&quot;x&quot;&gt;&amp;"
    assert escape(Markup("<b>x</b>")) == "<b>x</b>"
    assert escape(escape("<")) == "&lt;"
    assert "<img src=x" not in table(["<img src=x>"], [["<img src=x>"]])
    assert "&quot;" in picture(np.zeros((1, 1, 3), np.uint8), 'a "quoted" <name>')


def test_a_table_aligns_numbers_and_shows_them_briefly():
    text = table(["name", "n", "share"], [["a", 12345, 0.123456], ["b", np.int64(7), None]])
    balanced(text)
    assert '<td class="number">12,345</td>' in text
    assert '<td class="number">0.1235</td>' in text
    assert '<td class="number">7</td><td class="number"></td>' in text
    assert "<td>a</td>" in text and '<th class="number">n</th>' in text
    assert "<td>yes</td>" in table(["frozen"], [[True]])


def test_a_table_without_rows_keeps_its_header():
    assert "<th>a</th><th>b</th>" in table(["a", "b"], [])


def test_a_row_of_another_length_is_named():
    with pytest.raises(ShapeError, match="row 1 has 1 cells, the header 2"):
        table(["a", "b"], [[1, 2], [1]])


def pixels_of(text):
    data = re.search(r"base64,([^\"]+)", text).group(1)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_picture_holds_its_own_pixels():
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    text = picture(array, "noise")
    assert np.array_equal(pixels_of(text), array)
    assert 'width="7" height="5"' in text and "enlarged" not in text
    assert np.array_equal(pixels_of(picture(array[:, ::-1], "mirrored")), array[:, ::-1])


def test_a_picture_can_be_enlarged_or_be_a_jpeg():
    array = np.full((4, 8, 3), 100, np.uint8)
    text = picture(array, "grey", width=80, lossless=False)
    assert 'width="80" height="40"' in text and 'class="enlarged"' in text
    assert "image/jpeg" in text and np.array_equal(pixels_of(text), array)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_picture_is_refused(array):
    with pytest.raises(ShapeError, match=r"expected a uint8 array \(H, W, 3\)"):
        picture(array, "x")
