"""Every rung of examples/ladder computes what the first does; the tables are printed."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from tinyft.backends.cpu.runtime import threads

ROOT = Path(__file__).resolve().parents[2]
LADDERS = {}
for path in sorted((ROOT / "examples/ladder").glob("*.py")):
    spec = importlib.util.spec_from_file_location(f"ladder_{path.stem}", path)
    LADDERS[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(LADDERS[path.stem])
convolution, batch_norm = LADDERS["convolution"], LADDERS["batch_norm"]
# (N, P and Q, C, F): in the second a row has an odd number of tiles, which the micro-kernel pads
SIZES = [(1, 4, 4, 4), (2, 6, 8, 12), (1, 10, 16, 8)]


def rungs(ladder):
    """The names of a ladder's rungs; what compiles for seconds is marked."""
    quick = ("loops", "windows", "taps", "im2col", "graph", "by_hand")
    names = [row[0].__name__ for row in ladder.RUNGS]
    return [pytest.param(n, marks=[] if n in quick else [pytest.mark.slow]) for n in names]


@pytest.mark.parametrize("name", rungs(convolution))
def test_a_rung_of_the_convolution_computes_what_the_first_does(name):
    for size in SIZES:
        x, weight = convolution.example(*size)
        expected = convolution.loops(x, weight)
        np.testing.assert_allclose(getattr(convolution, name)(x, weight), expected, atol=1e-5)


@pytest.mark.parametrize("name", rungs(batch_norm))
def test_a_rung_of_batch_norm_has_the_gradients_of_the_first(name):
    for size in [(1, 2, 3), (3, 7, 5), (2, 9, 16)]:
        batch_norm.check(getattr(batch_norm, name), *batch_norm.example(*size))


def test_a_wrong_rung_is_refused_before_it_is_timed():
    def without_a_corner(x, weight):
        out = convolution.taps(x, weight)
        out[-1, -1, -1] = 0
        return out

    def without_the_third_term(x, weight, bias):
        def backward(dout):
            dx, dweight, dbias = batch_norm.by_hand(x, weight, bias)(dout)
            return dx + 0.1 * x, dweight, dbias

        return backward

    with pytest.raises(ValueError, match=r"without_a_corner differs from loops by"):
        convolution.check(without_a_corner, *convolution.example(1, 6, 4, 4))
    with pytest.raises(ValueError, match=r"dx of without_the_third_term differs from graph's"):
        batch_norm.check(without_the_third_term, *batch_norm.example(1, 4, 3))


def test_a_rung_refuses_a_shape_that_its_loops_would_write_beyond():
    x, weight = convolution.example(1, 5, 4, 6)
    for rung in (convolution.registers, convolution.winograd):
        with pytest.raises(ValueError, match="F should be a multiple of 4"):
            rung(x, weight)
    with pytest.raises(ValueError, match="C should be a multiple of 4"):
        convolution.blocked(*convolution.example(1, 4, 3, 4))


@pytest.mark.parametrize("ladder", LADDERS.values(), ids=LADDERS)
def test_the_head_of_a_ladder_lists_its_rungs_in_order(ladder):
    listed = re.findall(r"^ +\d+  (\w+) ", ladder.__doc__, re.M)
    assert listed == [row[0].__name__ for row in ladder.RUNGS]


def test_the_passes_are_those_that_the_head_says():
    said = re.findall(r"^ +\d+  \w+ .* (\d+)(?: passes)?$", batch_norm.__doc__, re.M)
    assert [int(n) for n in said] == [passes for _, passes in batch_norm.RUNGS]


@pytest.mark.slow
@pytest.mark.parametrize("name", LADDERS)
def test_the_table_has_a_line_for_each_rung(name, capsys):
    arguments = ["--rounds", "1"] + ["--size", "14"] * (name == "batch_norm")
    before = threads.get_num_threads()
    LADDERS[name].main(arguments)
    out = capsys.readouterr().out
    assert threads.get_num_threads() == before
    for row in LADDERS[name].RUNGS:
        assert re.search(rf"^ *\d+ {row[0].__name__} .*\d+%", out, re.M), out
