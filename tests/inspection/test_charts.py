"""Charts: the places of points, round ticks, colours; an SVG that an XML parser reads."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tinyft.inspection.html import page
from tinyft.inspection.report.charts import (
    MOST_POINTS,
    Axis,
    Line,
    heat_map,
    line_chart,
    reliability_chart,
)


def svg_of(text):
    return ElementTree.fromstring(re.search(r"<svg.*?</svg>", text, re.S).group(0))


def test_an_axis_maps_its_ends_to_its_pixels():
    axis = Axis.over(np.array([2.0, np.nan, 10.0]), 100, 20)
    assert axis(np.array([2.0, 6.0, 10.0])).tolist() == [100, 60, 20]
    log = Axis.over(np.array([0.0, 1e-4, 1.0, -3.0]), 0, 4, log=True)
    assert log(np.array([1e-4, 1e-2, 1.0])) == pytest.approx([0, 2, 4])
    assert not np.isfinite(log(np.array([0.0]))).any()


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 10, False, [0, 2, 4, 6, 8, 10]),
        (0.13, 0.41, False, [0.2, 0.3, 0.4]),
        (-3, 4, False, [-2, 0, 2, 4]),
        (3e-7, 2e-3, True, [1e-6, 1e-5, 1e-4, 1e-3]),
        (2e-3, 5e-3, True, [2e-3, 5e-3]),
    ],
)
def test_ticks_are_round_numbers_inside(low, high, log, expected):
    assert Axis(low, high, 0, 1, log).ticks() == pytest.approx(expected)


@pytest.mark.parametrize("values", [[3.0, 3.0], [0.0], [], [np.nan]])
def test_constant_and_empty_lines_have_a_chart(values):
    line = Line("a", np.arange(len(values)), np.array(values, float))
    for log in (False, True):
        assert "nan" not in line_chart("t", [line], log=log).lower()
    assert svg_of(line_chart("nothing", [])) is not None


def test_a_line_goes_through_its_points_and_gaps_lift_the_pen():
    x, y = np.arange(5.0), np.array([0.0, 1.0, np.nan, 0.5, 1.0])
    path = [e.get("d") for e in svg_of(line_chart("t", [Line("a", x, y)])).iter() if e.get("d")]
    assert path[-1] == "M52.0 206.0L146.5 18.0M335.5 112.0L430.0 18.0"


def test_long_lines_are_thinned_and_keep_their_ends():
    x = np.arange(5000.0)
    text = line_chart("t", [Line("a", x, x)])
    points = re.findall(r"[ML]([\d.]+) ([\d.]+)", text)
    assert len(points) <= MOST_POINTS + 10
    assert ("52.0", "206.0") in points and ("430.0", "18.0") in points


def test_names_are_escaped_and_in_the_legend():
    lines = [Line(name, np.arange(2), np.arange(2)) for name in ("<a>", "b & c")]
    text = line_chart("x < y", lines, borders=[(1, "<phase>")])
    svg_of(text)
    assert "&lt;a&gt;" in text and "b &amp; c" in text and "<phase>" not in text
    assert "--series-1" in text and "--series-2" in text


def test_a_heat_map_is_brightest_where_it_is_largest_and_empty_where_there_is_nothing():
    values = np.array([[1e-4, 1e-2, 0.0], [np.nan, 1e-3, 1e-4]])
    text = heat_map("t", values, ["conv1", "fc"], (0, 2))
    data = base64.b64decode(svg_of(text).find("image").get("href").partition("base64,")[2])
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    assert pixels.shape == (2, 3, 4)
    assert (pixels[..., 3] == [[255, 255, 0], [0, 255, 255]]).all()
    brightness = pixels[..., :3].sum(axis=2, dtype=int)
    assert brightness[0, 1] > brightness[1, 1] > brightness[0, 0] == brightness[1, 2]
    assert "conv1" in text and "1.0e-04" in text and "1.0e-02" in text


def test_a_heat_map_of_nothing_is_empty():
    text = heat_map("t", np.zeros((2, 3)), ["a", "b"], (0, 2))
    assert "nan" not in text.lower()
    svg_of(text)


def test_discs_stand_at_confidence_and_accuracy_and_empty_bins_have_none():
    nan = np.nan
    text = reliability_chart(
        "t", np.array([nan, 0.5, 1.0]), np.array([nan, 0.0, 1.0]), np.array([0, 1, 4])
    )
    discs = [e for e in svg_of(text).iter() if e.tag.endswith("circle")]
    places = [(float(e.get("cx")), float(e.get("cy"))) for e in discs]
    assert places == [(241.0, 206.0), (430.0, 18.0)]
    # four times the pictures, four times the area of what is above the smallest disc
    small, large = (float(e.get("r")) - 3 for e in discs)
    assert large / small == pytest.approx(2, rel=0.02)


def test_a_page_of_charts_asks_for_nothing():
    text = page("t", heat_map("h", np.ones((1, 1)), ["a"], (0, 0)))
    assert all(uri.startswith("data:") for uri in re.findall(r'(?:src|href)="([^"]+)"', text))
