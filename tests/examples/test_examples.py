"""Each example runs as a reader runs it, alone, and prints what it says that it prints."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinyft

pytestmark = pytest.mark.slow


ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
PAGE = 80  # lines; these need a second one
LONG = (0, 3, 8, 9, 10, 11, 13, 14, 15)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")
# Training in float32 carries the last bits of a machine's sums into the result: accuracies of 200
# pictures may differ by this much.
TOLERANCE = dict.fromkeys((11, 12, 13, 14, 15), 0.15)
# Of what takes half a minute, as many columns as run here: training on 3 and on 9 photos of each.
FEWER = {13: (["--per-class", "3", "9"], 56)}
# What a machine is: its seconds, its speed, its memory. These are left out.
OF_THE_MACHINE = re.compile(r" *(\d+\.\d(?=s)|[\d,]+(?= photos a second| MB of memory))")


def number_of(path):
    return int(path.name[:2])


def pasted(path, heading):
    """The lines of a comment at the end of an example, below `# heading`."""
    after = path.read_text().partition(f"\n# {heading}\n")[2].partition("\n\n")[0]
    lines = (line.removeprefix("#").removeprefix("   ") for line in after.splitlines())
    return [OF_THE_MACHINE.sub(" ", line) for line in lines]


def run(path, folder, *arguments, **variables):
    """What an example prints, started in an empty folder, where it can find nothing."""
    variables["PYTHONPATH"] = str(Path(tinyft.__file__).parents[1])
    variables["TINYFT_OFFLINE"] = "1"
    kept = {name: value for name, value in os.environ.items() if name != "TINYFT_WEIGHTS"}
    done = subprocess.run(
        [sys.executable, "-W", "error", path, *arguments],
        cwd=folder,
        env=kept | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == [], "an example leaves nothing behind"
    return [OF_THE_MACHINE.sub(" ", line) for line in done.stdout.rstrip().splitlines()]


def value(number):
    return float(number.replace(",", ""))


def assert_same(printed, expected, tolerance):
    """The same words, and numbers that differ by at most one in their last digit, or `tolerance`
    for those between 0 and 1 and for percentages.
    """
    # with the spaces before it: 100 % takes a column more than 99 %
    number = re.compile(f" *(?:{NUMBER.pattern})")
    words = [[number.sub("#", line) for line in lines] for lines in (printed, expected)]
    assert words[0] == words[1]
    for ours, theirs in zip(printed, expected, strict=True):
        for a, b in zip(NUMBER.findall(ours), NUMBER.findall(theirs), strict=True):
            decimals = len(b.partition(".")[2].partition("e")[0])
            unit = 10.0**-decimals * (10 ** int(b.partition("e")[2]) if "e" in b else 1)
            allowed = 0 if "." not in b and "%" not in theirs else 1.001 * unit
            if tolerance and "." in b and value(b) <= 1 and "e" not in b:
                allowed = tolerance
            if tolerance and "%" in theirs:
                allowed = 100 * tolerance
            assert abs(value(a) - value(b)) <= allowed, f"{ours!r} instead of {theirs!r}"


def test_the_numbers_have_no_gap():
    assert [*map(number_of, EXAMPLES)] == [*range(16)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_begins_with_prose(path):
    text = path.read_text()
    lines = text.partition("\n# Three questions")[0].splitlines()
    assert len(lines) < (2 * PAGE if number_of(path) in LONG else PAGE)
    assert text.startswith('"""')
    assert pasted(path, "Prints:")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_source_that_an_example_names_exists(path):
    named = re.findall(r"tinyft/[\w/]+\.py", path.read_text())
    assert named
    for name in named:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_prints_what_it_says(path, tmp_path):
    arguments, columns = FEWER.get(number_of(path), ([], None))
    printed, expected = run(path, tmp_path, *arguments), pasted(path, "Prints:")
    printed, expected = ([x[:columns].rstrip() for x in lines] for lines in (printed, expected))
    assert_same(printed, expected, TOLERANCE.get(number_of(path), 0))


def test_the_example_of_weights_reads_a_published_file_where_there_is_one(shared, tmp_path):
    path = ROOT / "examples" / "05_pretrained_resnet.py"
    weights = str(shared / "data" / "resnet18_imagenet_pq.pth")
    printed = run(path, tmp_path, TINYFT_WEIGHTS=weights)
    expected = pasted(path, "With TINYFT_WEIGHTS naming a published ResNet-18, from the cougar on:")
    assert len(expected) == 8
    assert_same(printed[-8:], expected, 0)


def test_the_comparison_sees_a_wrong_word_and_a_wrong_number():
    assert_same(["a 0.50 b 1,000"], ["a 0.51 b 1,000"], 0)
    assert_same(["a 0.40"], ["a 0.51"], 0.15)
    for wrong in ("a 0.53 b 1,000", "a 0.51 b 1,001", "c 0.51 b 1,000"):
        with pytest.raises(AssertionError):
            assert_same([wrong], ["a 0.51 b 1,000"], 0)


def test_the_engine_of_one_page_agrees_with_the_real_one():
    path = ROOT / "examples" / "00_engine.py"
    page = runpy.run_path(str(path), run_name="page")

    class Real(tinyft.Tensor):
        """The real one with the methods that the page's has."""

        def __init__(self, data):
            super().__init__(np.asarray(data), requires_grad=True)

        exp, log, tanh = tinyft.ops.exp, tinyft.ops.log, tinyft.ops.tanh

    for weights in (page["start"], page["weights"]):  # before training and behind it
        ours, our_gradients, _ = page["loss_and_gradients"](weights)
        theirs, their_gradients, _ = page["loss_and_gradients"](weights, Real)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        for mine, real in zip(our_gradients, their_gradients, strict=True):
            assert real.dtype == np.float64
            np.testing.assert_allclose(mine, real, rtol=1e-9, atol=1e-14)
