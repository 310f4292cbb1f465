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
    LETTER,
    MOST_POINTS,
    MOST_STRIPS,
    WIDTH,
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
    assert path[-1] == "M52.0 176.0L136.5 30.0M305.5 103.0L390.0 30.0"


def test_long_lines_are_thinned_and_keep_their_ends():
    x = np.arange(5000.0)
    text = line_chart("t", [Line("a", x, x)])
    points = re.findall(r"[ML]([\d.]+) ([\d.]+)", text)
    assert len(points) <= MOST_POINTS + 10
    assert ("52.0", "176.0") in points and ("390.0", "30.0") in points


@pytest.mark.parametrize("starts", [[0, 6], [0, 1, 2, 3], [0, 59], list(range(0, 60, 5))])
def test_names_of_phases_do_not_run_into_each_other(starts):
    names = [f"phase number {i}" for i in range(len(starts))]
    line = Line("a", np.arange(60.0), np.arange(60.0))
    borders = list(zip(starts, names, strict=True))
    svg = svg_of(line_chart("t", [line], borders=borders))
    rows = {}
    for text in (e for e in svg.iter("text") if e.text in names):
        rows.setdefault(text.get("y"), []).append((float(text.get("x")), len(text.text)))
    for row in rows.values():
        ends = [x + LETTER * letters for x, letters in sorted(row)]
        assert all(end < x for end, (x, _) in zip(ends, sorted(row)[1:], strict=False))
        assert ends[-1] <= WIDTH
    said = "".join(svg.itertext())
    assert all(f"step {start}, {name}" in said for start, name in borders)


def test_a_place_in_a_chart_says_its_values_on_hover():
    steps = np.arange(6.0)
    lines = [Line("batch", steps, steps, thin=True), Line("training", steps, 2 * steps),
             Line("validation", steps[[2, 5]], np.array([0.25, 0.125]), dots=True)]  # fmt: skip
    svg = svg_of(line_chart("t", lines, borders=[(0, "head alone"), (3, "everything")]))
    strips = [e for e in svg.iter("rect") if e.get("class") == "strip"]
    said = [e.find("title").text for e in strips]
    assert said[2] == "step 2, head alone\ntraining: 4\nvalidation: 0.25"
    assert said[3] == "step 3, everything\ntraining: 6" and len(said) == 6
    ends = [float(e.get("x")) + float(e.get("width")) for e in strips]
    assert ends[:-1] == pytest.approx([float(e.get("x")) for e in strips[1:]], abs=0.11)
    long = line_chart("t", [Line("a", np.arange(5000.0), np.arange(5000.0))])
    assert long.count("<title>") == MOST_STRIPS and "<title>steps 0 to 83\na: 83</title>" in long


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


def test_many_rows_of_a_heat_map_are_low_and_every_third_has_its_name():
    named = {
        n: heat_map("t", np.ones((n, 2)), [f"layer {i}" for i in range(n)], (0, 1)).count(">layer ")
        for n in (60, 61)
    }
    assert named == {60: 60, 61: 21}


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
    assert places == [(221.0, 176.0), (390.0, 30.0)]
    # four times the pictures, four times the area of what is above the smallest disc
    small, large = (float(e.get("r")) - 3 for e in discs)
    assert large / small == pytest.approx(2, rel=0.02)


def test_a_page_of_charts_asks_for_nothing():
    text = page("t", heat_map("h", np.ones((1, 1)), ["a"], (0, 0)))
    assert all(uri.startswith("data:") for uri in re.findall(r'(?:src|href)="([^"]+)"', text))
