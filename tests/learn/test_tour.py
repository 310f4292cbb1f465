"""The tour: the page's numbers are those of a live step, each stop has its source, screens fit."""

import re
from pathlib import Path

import pytest

from tinyft.cli import tour
from tinyft.cli.main import main
from tinyft.display import aligned
from tinyft.learn.tour import Step, stops

PAGE = (Path(__file__).parents[2] / "TOUR.md").read_text()
NUMBER = re.compile(r"\d[\d,]*\.?\d*(?:e[-+]\d+)?")
STOPS = stops(PAGE)


@pytest.fixture(scope="module")
def step():
    return Step(tour.bundled_learner())


@pytest.mark.slow
@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: stop.title)
def test_the_numbers_of_the_page_are_those_of_a_live_step(stop, step):
    live = "".join(f"{line}\n" for line in aligned(step.rows(stop.number)))
    assert NUMBER.sub("#", live) == NUMBER.sub("#", stop.numbers), live
    for ours, theirs in zip(NUMBER.findall(live), NUMBER.findall(stop.numbers), strict=True):
        a, b = float(ours.replace(",", "")), float(theirs.replace(",", ""))
        last = 10.0 ** -len(theirs.partition(".")[2].partition("e")[0])
        last *= 10.0 ** int(theirs.partition("e")[2] or 0)
        assert abs(a - b) <= 1.01 * last * ("." in theirs) + 1e-3 * abs(b), live


def test_the_stops_are_numbered_and_show_source():
    assert [stop.number for stop in STOPS] == list(range(1, 11))
    for stop in STOPS:
        found = [*stop.source()]
        assert found and stop.numbers
        for (place, lines), (file, name) in zip(found, stop.places, strict=True):
            assert place.startswith(f"{file}:")
            assert any(line.startswith(f"def {name.rpartition('.')[2]}(") for line in lines[:2])


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: stop.title)
def test_a_screen_fits_and_shows_numbers_beside_the_source_where_both_fit(
    stop, columns, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", str(columns))
    for line in tour.screen(stop, stop.numbers.splitlines()):
        tour.result(line)
    lines = capsys.readouterr().out.splitlines()
    whole = [line for line in lines if line.rstrip() not in stop.numbers]  # the live ones do fit
    assert max(map(len, whole)) <= columns
    beside = any(re.match(r"tinyft/.*\.py:\d+ {3}", line) for line in lines)
    assert beside == (columns == 200) or columns == 120
    assert "](" not in "\n".join(lines) and "**`" not in "\n".join(lines)


@pytest.fixture
def without_a_step(monkeypatch):
    class Still:
        def __init__(self, learner): ...

        def rows(self, stop):
            return [("number", str(stop))]

    monkeypatch.setattr("tinyft.learn.tour.Step", Still)
    monkeypatch.setattr(tour, "bundled_learner", lambda: None)


def test_a_pipe_gets_everything_and_one_stop_is_one(without_a_step, capsys):
    assert main(["tour"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^(\d+)\. \w", out, re.M)[0] == "1" and "\n10. What the step did" in out
    assert main(["tour", "--stop", "9"]) == 0
    out = capsys.readouterr().out
    assert "9. Adam" in out and "number  9" in out and "10. What" not in out
    assert out.endswith("next: tinyft tour --stop 10\n")
    assert main(["tour", "--stop", "11"]) == 2
    assert "there is no stop 11; the tour has 10" in capsys.readouterr().err


@pytest.mark.parametrize(("keys", "last"), [(["", "", "q"], 3), ([""], 2), ([], 1)])
def test_a_person_goes_on_with_enter_and_ends_with_q(
    keys, last, without_a_step, monkeypatch, capsys
):
    def pressed(question):
        if not keys:
            raise EOFError
        return keys.pop(0)

    monkeypatch.setattr("builtins.input", pressed)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["tour"]) == 0
    out = capsys.readouterr().out
    shown = [stop.number for stop in STOPS if f"\n{stop.number}. {stop.title}" in out]
    assert shown == [*range(1, last + 1)]
