"""`tinyft inspect --why` and `--what-if`."""

import csv
import json

import pytest


def recorded(run, step):
    with open(f"{run}/metrics.csv", newline="") as file:
        return next(float(row["loss"]) for row in csv.DictReader(file) if row["step"] == str(step))


@pytest.mark.slow
def test_both_questions_are_answered_about_the_same_step(tinyft, trained):
    done = tinyft("inspect", trained, "--step", 1, "--why", "--what-if", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    before, after = found["why"]["losses"]["training"]
    assert before == pytest.approx(recorded(trained, 1), abs=1e-5)
    assert found["jump"]["previous"] == recorded(trained, 0)
    assert found["jump"]["training"]["whole step"] == after
    planned = found["what_if"][0]
    assert planned["name"] == "as planned" and planned["training"] == [before, after]
    assert len(found["why"]["pictures"]) == len(found["ids"]) == 4
    assert len(found["what_if"]) >= 6


@pytest.mark.slow
def test_in_words(tinyft, trained):
    done = tinyft("inspect", trained, "--step", 0, "--why")
    assert done.out.startswith("why did the loss change in step 0, in epoch 1 ")
    assert "one batch of 4 pictures through step 0" in done.out and "what if" not in done.out
    assert "the step before recorded" not in done.out  # there is none
    done = tinyft("inspect", trained, "--step", 0, "--what-if")
    assert done.out.startswith("what if step 0, in epoch 1 ") and "why did" not in done.out


@pytest.mark.parametrize("other", [("--node", 3), ("--html", "a.html"), ("--dot", "a.dot")])
def test_the_trace_is_another_request(tinyft, trained, other):
    done = tinyft("inspect", trained, "--step", 0, "--why", *other)
    assert done.code == 2 and "ask for one or the other" in done.error
