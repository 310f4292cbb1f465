"""The fast convolutions against their definition in float64, on every kind of shape.

**Tolerance.** A sum of K products in float32 is a random walk of K roundings: its error has a
standard deviation of about eps * sqrt(K) / 2 times the root of the sum of the squared products. The
largest of some 10,000 results stays below 6 of these. Winograd's transforms amplify it; 4 is
measured to be enough (tinyft/backends/cpu/conv/winograd/transforms.py). Sums are made in pieces,
so both are generous.
"""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tinyft.backends.cpu import CpuBackend
from tinyft.backends.cpu.codegen.simd import LANES, REST_ROWS, is_arm64, is_x86
from tinyft.backends.cpu.conv import table
from tinyft.backends.cpu.conv.winograd import stem as winograd_stem
from tinyft.backends.cpu.conv.winograd import strided as winograd_strided
from tinyft.backends.cpu.conv.winograd import weight_grad as winograd_weight_grad
from tinyft.backends.cpu.conv.winograd.transforms import (
    A_SHORT,
    A_TRANSPOSED,
    B_SHORT,
    POINTS,
    G,
    winograd_matrices,
)
from tinyft.backends.cpu.runtime import threads, workspace
from tinyft.backends.cpu.runtime.work_stealing import TAKEN, whole_share
from tinyft.backends.reference import Backend, output_size
from tinyft.errors import ShapeError

FAST, REFERENCE = CpuBackend(), Backend()
EPS = np.finfo(np.float32).eps
NAMES = ("conv2d", "conv2d_input_grad", "conv2d_weight_grad")

ROWS_IN_PLACE = (1, 9, 32, 3), 16, 3, 3, 1, 1
CASES = [  # x (N, H, W, C), F, R, S, stride, padding
    ((1, 5, 7, 3), 10, 3, 3, 1, 1),
    ((1, 1, 1, 1), 1, 1, 1, 1, 0),  # one number of everything
    ((1, 1, 1, 16), 16, 3, 3, 1, 1),  # one pixel, eight taps outside
    ((2, 4, 4, 10), 37, 3, 3, 1, 1),
    ((1, 3, 2, 37), 10, 3, 3, 1, 1),  # smaller than a tile
    ((3, 9, 13, 16), 48, 3, 3, 1, 1),
    ((2, 8, 8, 32), 32, 3, 3, 1, 0),
    ((2, 6, 5, 16), 32, 3, 3, 1, 2),
    ((2, 6, 5, 16), 32, 3, 3, 1, 3),  # padding as large as the kernel
    ((1, 2, 3, 5), 4, 3, 3, 1, 5),  # and larger
    ((1, 7, 7, 512), 512, 3, 3, 1, 1),  # too few tiles for the forward pass
    ((2, 7, 7, 512), 512, 3, 3, 1, 1),  # few tiles, many weights
    ((2, 7, 7, 200), 184, 3, 3, 1, 1),  # blocks that are not full
    ((1, 14, 14, 96), 160, 3, 3, 1, 1),
    ((24, 16, 16, 80), 144, 3, 3, 1, 1),  # more than one round of tiles
    ((2, 11, 9, 24), 40, 3, 3, 2, 1),
    ((2, 8, 8, 37), 10, 3, 3, 2, 1),
    ((1, 2, 2, 16), 16, 3, 3, 2, 1),
    ((2, 28, 28, 128), 256, 3, 3, 2, 0),  # parts by taps and channels
    ((2, 15, 15, 3), 64, 7, 7, 2, 3),
    ((1, 64, 64, 3), 64, 7, 7, 2, 3),  # rows in place
    ROWS_IN_PLACE,  # the same without Winograd's tiles
    ((1, 61, 59, 2), 20, 5, 3, 1, 1),
    ((2, 9, 50, 4), 16, 1, 1, 1, 0),
    ((2, 7, 9, 10), 37, 1, 1, 1, 0),
    ((2, 9, 9, 64), 128, 1, 1, 2, 0),
    ((3, 7, 7, 1024), 64, 1, 1, 1, 0),  # more than one pass over the weights
    ((1, 5, 5, 32), 32, 1, 1, 1, 0),  # 25 pixels: no multiple of a block's rows
    ((2, 13, 11, 48), 16, 5, 5, 1, 2),
    ((1, 10, 10, 3), 5, 5, 5, 3, 2),
    ((1, 12, 7, 6), 9, 2, 5, 1, 1),  # R != S
    ((1, 7, 12, 17), 3, 5, 1, 2, 2),
    ((2, 11, 11, 8), 8, 2, 2, 5, 0),  # stride larger than the kernel: pixels without gradient
    ((1, 9, 9, 1), 1, 3, 3, 4, 1),
    ((1, 3, 3, 16), 16, 3, 3, 7, 4),  # windows that meet padding alone
    ((1, 6, 6, 16), 16, 4, 4, 1, 6),
]
WHOLE_MAPS = [  # that each window sees whole, and a few pictures of them, for which windows do
    ((1, 2, 2, 32), 32, 3, 3, 1, 1),
    ((6, 2, 2, 80), 48, 3, 3, 1, 1),  # each result sees all pixels
    ((110, 2, 2, 16), 96, 3, 3, 1, 1),  # more pictures than an item has
    ((5, 3, 4, 32), 16, 5, 5, 1, 1),
    ((9, 4, 4, 32), 16, 5, 5, 1, 1),  # 4 pixels a side see 2 results a side
    ((4, 1, 2, 16), 16, 2, 3, 1, 1),
]
WHOLE_ALONG_ONE_SIDE = [((9, 2, 5, 20), 20, 3, 3, 1, 1), ((9, 5, 2, 20), 20, 3, 3, 1, 1)]
SORTED_TILES = [  # of 4 and of 3 results, by both schedules of each
    ((5, 14, 14, 16), 32, 3, 3, 1, 1),
    ((9, 7, 7, 32), 48, 3, 3, 1, 1),
    ((4, 16, 9, 16), 16, 3, 3, 1, 0),
    ((4, 4, 12, 16), 16, 3, 3, 1, 2),
    ((4, 7, 14, 80), 96, 3, 3, 1, 1),
    ((4, 7, 3, 128), 256, 3, 3, 1, 1),
    ((4, 5, 5, 16), 16, 3, 3, 1, 1),  # two of 3 results, and one result too many
    ((8, 14, 14, 64), 128, 3, 3, 1, 1),  # a weight gradient in two parts
    ((4, 6, 9, 80), 96, 3, 3, 1, 1),  # tiles of 3 alone: some values have none
]
STRIDED = [  # Winograd with stride 2
    ((20, 14, 13, 64), 144, 3, 3, 2, 1),  # tiles of all kinds, an odd side
    ((9, 15, 7, 80), 144, 3, 3, 2, 1),  # blocks that are not full
    ((4, 27, 6, 16), 32, 3, 3, 2, 1),  # the input gradient alone
    ((1, 8, 8, 128), 128, 3, 3, 2, 1),  # too few tiles for the weight gradient
    ((20, 6, 6, 64), 128, 3, 3, 2, 1),  # tiles of 3 alone: some values have none
    ((30, 14, 14, 64), 128, 3, 3, 2, 1),  # more than one item in a round
    ((20, 32, 32, 96), 144, 3, 3, 2, 1),  # more than one round
    ((22, 17, 15, 32), 16, 3, 3, 2, 1),  # short tiles that reach beyond dx have followers
]
STEMS = [  # Winograd by rows, for few channels
    ((9, 33, 24, 3), 16, 7, 7, 2, 3),  # more tiles than parts, a last one of one row
    ((1, 30, 33, 2), 37, 8, 7, 2, 0),  # as many taps for odd lines as for even ones
    ((2, 40, 37, 1), 20, 11, 5, 3, 4),  # three phases, the last with a tap less
    ((2, 13, 20, 4), 16, 4, 3, 1, 1),  # one phase
    ((3, 4, 9, 3), 64, 7, 7, 2, 5),  # lower than a tile's window, more padding than needed
    ((1, 16, 7, 3), 96, 7, 3, 2, 0),  # fewer columns than a block has rows
    ((2, 30, 24, 3), 16, 7, 7, 2, 3),  # a last tile of three rows, and of two
    ((2, 28, 24, 3), 32, 7, 7, 2, 3),
    ((2, 30, 1, 3), 16, 7, 3, 2, 2),  # a line that fills no register: not by Winograd
    ((2, 30, 150, 3), 16, 7, 12, 2, 3),  # sums in pieces, several blocks of columns
]
MANY_FILTERS = [  # rows of results that are not left 4 KiB apart, more panels than a set has lines
    ((2, 9, 8, 32), 1024, 1, 1, 1, 0),
    ((2, 7, 7, 112), 1024, 1, 1, 1, 0),
    ((1, 6, 5, 16), 512, 3, 3, 2, 1),
]
MANY_WEIGHTS = [  # of which an item of the weight gradient has a part of the channels and filters
    ((3, 17, 16, 272), 400, 1, 1, 1, 0),  # last groups that are not full, and 816 pixels in parts
    ((2, 17, 9, 528), 272, 1, 1, 2, 0),
    ((1, 9, 8, 272), 272, 2, 2, 1, 0),
]
CASES += WHOLE_MAPS + SORTED_TILES + STRIDED + STEMS + MANY_FILTERS + MANY_WEIGHTS


def make(case, seed=0):
    """x, weight, dout in float32."""
    x_shape, F, R, S, stride, padding = case
    N, H, W, C = x_shape
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(x_shape).astype(np.float32)
    weight = (rng.standard_normal((R, S, C, F)) / np.sqrt(R * S * C)).astype(np.float32)
    P, Q = output_size(H, R, stride, padding), output_size(W, S, stride, padding)
    dout = rng.standard_normal((N, P, Q, F)).astype(np.float32)
    return x, weight.transpose(3, 2, 0, 1), dout


def run(backend, case, x, weight, dout):
    """Forward, input gradient, weight gradient."""
    options = {"stride": case[4], "padding": case[5]}
    return (
        backend.conv2d(x, weight, **options),
        backend.conv2d_input_grad(dout, weight, x.shape, **options),
        backend.conv2d_weight_grad(dout, x, weight.shape, **options),
    )


def doubles(*arrays):
    return [array.astype(np.float64) for array in arrays]


def assert_close(actual, expected, terms, squares, winograd=False, name=""):
    """See the head of this file. `terms` is how many products a result sums, `squares` the sums of
    their squares.
    """
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    limit = ((12 if winograd else 3) * np.sqrt(terms) + 4) * EPS * np.sqrt(squares.max())
    error = np.abs(actual - expected).max()
    assert error <= limit, f"{name}: error {error:.1e}, limit {limit:.1e}"


def uses_winograd(name, case):
    x_shape, F, R, S, stride, padding = case
    algorithm = table.algorithm_of(name, x_shape, (F, x_shape[3], R, S), stride, padding)
    return algorithm.startswith("Winograd")


def assert_equals_definition(case, actual, x, weight, dout):
    (_, _, _, C), F, R, S, *_ = case
    arrays = doubles(x, weight, dout)
    expected = run(REFERENCE, case, *arrays)
    squares = run(REFERENCE, case, *(np.square(array) for array in arrays))
    terms = R * S * C, R * S * F, dout.size // F
    for name, *result in zip(NAMES, actual, expected, terms, squares, strict=True):
        assert_close(*result, uses_winograd(name, case), name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_definition(case):
    arrays = make(case)
    copies = [array.copy() for array in arrays]
    actual = run(FAST, case, *arrays)
    assert_equals_definition(case, actual, *arrays)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert actual[0].flags.c_contiguous
    assert actual[1].flags.c_contiguous
    assert actual[2].transpose(2, 3, 1, 0).flags.c_contiguous


@pytest.mark.parametrize(
    "case",
    [c if c == ROWS_IN_PLACE else pytest.param(c, marks=pytest.mark.slow) for c in CASES],
    ids=str,
)
@pytest.mark.parametrize(
    "parts", [(1, 0, 1), (0, 1, 0), (1, 1, 1)], ids=["bias", "residual", "all"]
)
def test_bias_residual_and_relu(case, parts):
    x, weight, dout = make(case)
    stride, padding = case[4:]
    rng = np.random.default_rng(1)
    bias = rng.standard_normal(weight.shape[0]).astype(np.float32) if parts[0] else None
    residual = rng.standard_normal(dout.shape).astype(np.float32) if parts[1] else None
    options = {"stride": stride, "padding": padding, "relu": bool(parts[2])}
    actual = FAST.conv2d(x, weight, bias, residual=residual, **options)
    in_double = [None if a is None else a.astype(np.float64) for a in (bias, residual)]
    expected = REFERENCE.conv2d(*doubles(x, weight), in_double[0], residual=in_double[1], **options)
    # What is added afterwards is rounded, too.
    squares = REFERENCE.conv2d(*doubles(x**2, weight**2), stride=stride, padding=padding) + 2
    assert_close(actual, expected, weight[0].size, squares, uses_winograd("conv2d", case))


@pytest.mark.parametrize("case", WHOLE_ALONG_ONE_SIDE, ids=str)
def test_maps_that_a_window_sees_whole_along_one_side_alone(case):
    arrays = make(case)
    assert_equals_definition(case, run(FAST, case, *arrays), *arrays)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    x_shape=st.tuples(*(st.integers(1, most) for most in (9, 9, 9, 20))),
    F=st.integers(1, 40),
    R=st.integers(1, 4),
    S=st.integers(1, 4),
    stride=st.integers(1, 4),
    padding=st.integers(0, 4),
)
def test_any_shape(x_shape, F, R, S, stride, padding):
    case = x_shape, F, R, S, stride, padding
    P, Q = output_size(x_shape[1], R, stride, padding), output_size(x_shape[2], S, stride, padding)
    assume(P >= 1 and Q >= 1)
    arrays = make(case)
    assert_equals_definition(case, run(FAST, case, *arrays), *arrays)


@pytest.fixture
def forget_layouts():
    """Layouts are remembered by shape: to be called when constants that they depend on changed."""

    def forget():
        for module in (winograd_strided, winograd_weight_grad):
            module.rounds_for.cache_clear()

    yield forget
    forget()


@pytest.mark.parametrize("floats", [1, 50_000, 100_000])
def test_small_rounds_of_winograds_weight_gradient(floats, monkeypatch, forget_layouts):
    """42 tiles in rounds of 7, of 8 or 9, and of 14."""
    case = (7, 9, 6, 80), 64, 3, 3, 1, 1
    monkeypatch.setattr(winograd_weight_grad, "ROUND_FLOATS", floats)
    forget_layouts()
    arrays = make(case)
    assert_equals_definition(case, run(FAST, case, *arrays), *arrays)
    rounds, tiles, _, tiling = winograd_weight_grad.rounds_for(80, (7, 9, 6, 64))
    assert rounds > 1 and (rounds - 1) * tiles < len(tiling.places) <= rounds * tiles


@pytest.mark.slow
@pytest.mark.parametrize("case", [STRIDED[0], STRIDED[1], STRIDED[-1]], ids=str)
def test_small_items_and_rounds_of_winograd_with_stride_2(case, monkeypatch, forget_layouts):
    """Each cuts the sorted tiles somewhere else."""
    arrays = make(case)
    monkeypatch.setattr(winograd_strided, "LEAST_ITEMS", 1)
    for tiles, floats in ((4, 1), (8, 200_000), (12, 1), (20, 500_000)):
        monkeypatch.setattr(winograd_strided, "ITEM_TILES", tiles)
        monkeypatch.setattr(winograd_strided, "ITEM_GRAD_TILES", tiles)
        monkeypatch.setattr(winograd_strided, "ROUND_FLOATS", floats)
        monkeypatch.setattr(winograd_strided, "WEIGHT_GRAD_ROUND_FLOATS", floats)
        forget_layouts()
        assert_equals_definition(case, run(FAST, case, *arrays), *arrays)


@pytest.mark.parametrize(
    "case",
    [((13, 9, 33, 64), 128, 3, 3, 2, 1), ((22, 17, 15, 32), 16, 3, 3, 2, 1)],
    ids=["forward", "input gradient"],
)
def test_an_item_writes_only_its_own_tiles(case, monkeypatch):
    """Parts of the tiles computed one by one, the last ones first, from buffers full of NaN."""
    arrays = make(case)
    expected = run(FAST, case, *arrays)
    run_with_scratch, parts_run = threads.run_with_scratch, []

    def last_part_first(size, kernel, *arguments):
        if kernel is not winograd_strided.convolve_windows:
            return run_with_scratch(size, kernel, *arguments)
        *before, (first, count, tiles), layout = arguments
        panels = -(-arguments[3].shape[3] // winograd_strided.ITEM_COLUMNS)
        for part in reversed(range(-(-count // tiles))):
            share, work = whole_share(), np.full(size, np.nan, np.float32)
            share[TAKEN] = part * panels
            end = min(count, (part + 1) * tiles)
            kernel(share, work, *before, (first, end, tiles), layout)
            parts_run.append(part)
        return None

    monkeypatch.setattr(threads, "run_with_scratch", last_part_first)
    for got, want in zip(run(FAST, case, *arrays), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    assert max(parts_run) > 0


@pytest.mark.parametrize(
    "case", [((9, 14, 14, 64), 128, 3, 3, 1, 1), STRIDED[0], STRIDED[-1], STEMS[0]], ids=str
)
def test_past_the_caches_come_the_same_bits(case, monkeypatch):
    x, weight, _ = arrays = make(case)
    residual = FAST.conv2d(x, weight, stride=case[4], padding=case[5])

    def everything():
        epilogue = {"residual": residual, "relu": True}
        with_epilogue = FAST.conv2d(x, weight, stride=case[4], padding=case[5], **epilogue)
        return *run(FAST, case, *arrays), with_epilogue

    expected = everything()
    monkeypatch.setattr(
        "tinyft.backends.cpu.memory_bound.arrays.BEYOND_CACHES", workspace.SMALL // 4
    )  # aligned
    for got, want in zip(everything(), expected, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_do_not_depend_on_threads_or_run(case, restore_threads):
    arrays = make(case)
    results = []
    for count in (1, 2, 4, 2):
        threads.set_num_threads(count)
        results.append(run(FAST, case, *arrays))
    for result in results[1:]:
        for first, later in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(first, later)


@pytest.fixture
def restore_threads():
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


# -------------------------------------------------------------------------------- what surrounds it

GUARD = 1024  # floats before and after each buffer


class Guarded:
    """Hands out buffers that hold NaN and lie between guards, and looks at the guards later."""

    def __init__(self):
        self.whole = []

    def empty(self, shape, dtype=np.float32):
        size = int(np.prod(shape))
        whole = np.full(size + 2 * GUARD, np.nan if dtype == np.float32 else 7, dtype)
        whole[:GUARD] = whole[GUARD + size :] = 12345
        self.whole.append(whole)
        return whole[GUARD : GUARD + size].reshape(shape)

    def scratch(self, name, size, dtype=np.float32):
        return self.empty((size,), dtype)

    def intact(self):
        return all((w[:GUARD] == 12345).all() and (w[-GUARD:] == 12345).all() for w in self.whole)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_written_or_used_outside(case, monkeypatch, restore_threads):
    """Every result, scratch and input buffer lies between guards. What a kernel reads there, or
    reads before it was written, is NaN or 12345 and would show in the results.
    """
    threads.set_num_threads(1)
    expected = run(FAST, case, *make(case))
    guarded = Guarded()
    monkeypatch.setattr(workspace, "empty", guarded.empty)
    monkeypatch.setattr(workspace, "scratch", guarded.scratch)
    inputs = []
    for array in make(case):
        # A weight keeps its memory order (R, S, C, F).
        memory = array if array.flags.c_contiguous else array.transpose(2, 3, 1, 0)
        copy = guarded.empty(memory.shape)
        copy[...] = memory
        inputs.append(copy if memory is array else copy.transpose(3, 2, 0, 1))
    for got, want in zip(run(FAST, case, *inputs), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    assert guarded.intact()


FENCES = """
import ctypes, mmap
from tests.backends.cpu.test_conv import *

libc = ctypes.CDLL(None, use_errno=True)

def fenced(shape, dtype=np.float32):
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    pages = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    fence = ctypes.c_void_p(np.frombuffer(memory, np.uint8).ctypes.data + pages)
    assert libc.mprotect(fence, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    return np.frombuffer(memory, dtype, int(np.prod(shape)), pages - nbytes).reshape(shape)

workspace.empty = fenced
workspace.scratch = lambda name, size, dtype=np.float32: fenced((size,), dtype)
threads.set_num_threads(1)
for case in CASES:
    inputs = []
    for array in make(case):
        memory = array if array.flags.c_contiguous else array.transpose(2, 3, 1, 0)
        copy = fenced(memory.shape)
        copy[...] = memory
        inputs.append(copy if memory is array else copy.transpose(3, 2, 0, 1))
    print(case, flush=True)
    run(FAST, case, *inputs)
for size in SIZES:
    print(size, flush=True)
    test_matmul(*size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect")
def test_nothing_is_read_behind_the_end():
    """Every buffer ends where a page begins that may not be read; reading it kills the process."""
    done = subprocess.run([sys.executable, "-c", FENCES], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]} {done.stderr[-2000:]}"


def odd_views(array):
    """The same numbers in every kind of memory that NumPy has."""
    reversed_view = np.ascontiguousarray(array[::-1, :, ::-1])[::-1, :, ::-1]
    every_second = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), np.float32)[..., ::2]
    every_second[...] = array
    read_only = array.copy()
    read_only.flags.writeable = False
    shifted = np.zeros(array.size + 1, np.float32)[1:].reshape(array.shape)
    shifted[...] = array
    unaligned = np.zeros(4 * array.size + 1, np.uint8)[1:].view(np.float32).reshape(array.shape)
    unaligned[...] = array
    fortran = np.asfortranarray(array)
    return reversed_view, every_second, read_only, shifted, unaligned, fortran


@pytest.mark.parametrize(
    "case", [*(CASES[i] for i in (0, 5, 14, 22)), WHOLE_MAPS[1], STRIDED[1], STEMS[2]], ids=str
)
def test_results_do_not_depend_on_strides(case):
    x, weight, dout = make(case)
    expected = run(FAST, case, x, weight, dout)
    for views in zip(odd_views(x), odd_views(weight), odd_views(dout), strict=True):
        for got, want in zip(run(FAST, case, *views), expected, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "case",
    [
        *(CASES[i] for i in (5, 10, 14, 19, 22)),
        *(WHOLE_MAPS[1], *SORTED_TILES[:2], STRIDED[0], STEMS[0]),
    ],
    ids=str,
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_numbers_reach_the_result(case, value):
    """Where the definition has NaN or infinity, the fast result is not finite either (Winograd
    spreads it over its tile), ReLU included.
    """
    x, weight, dout = make(case)
    x[0, x.shape[1] // 2, x.shape[2] // 2, 0] = value
    dout[0, 0, 0, 0] = value
    options = {"stride": case[4], "padding": case[5]}
    with np.errstate(invalid="ignore"):
        for got, want in zip(
            run(FAST, case, x, weight, dout), run(REFERENCE, case, x, weight, dout), strict=True
        ):
            assert not np.isfinite(got[~np.isfinite(want)]).any()
    rectified = FAST.conv2d(x, weight, relu=True, **options)
    plain = FAST.conv2d(x, weight, **options)
    np.testing.assert_array_equal(rectified, np.maximum(plain, 0))


@pytest.mark.slow
@pytest.mark.parametrize("case", [CASES[0], CASES[5], CASES[14]], ids=str)
def test_other_dtypes_go_to_the_definition(case):
    arrays = doubles(*make(case))
    for got, want in zip(run(FAST, case, *arrays), run(REFERENCE, case, *arrays), strict=True):
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, want)


def test_arrays_without_elements():
    x_shape = 0, 5, 5, 16
    case = x_shape, 8, 3, 3, 1, 1
    x, dout = np.ones(x_shape, np.float32), np.ones((x_shape[0], 5, 5, 8), np.float32)
    weight = np.ones((8, x_shape[3], 3, 3), np.float32)
    for got, want in zip(
        run(FAST, case, x, weight, dout), run(REFERENCE, case, x, weight, dout), strict=True
    ):
        np.testing.assert_array_equal(got, want)
        assert got.shape == want.shape


def test_another_word_for_winograd_is_refused(monkeypatch):
    asked_for_once = table.environment_has_winograd_on
    monkeypatch.setattr(table, "environment_has_winograd_on", asked_for_once.__wrapped__)
    monkeypatch.setenv("TINYFT_WINOGRAD", "maybe")
    with pytest.raises(ValueError, match=r"TINYFT_WINOGRAD must be 0 \(off\) or 1 .* got 'maybe'"):
        table.winograd_is_on()


@pytest.mark.parametrize("value, on", [("0", False), ("1", True), ("", True), (None, True)])
def test_the_environment_chooses_winograd(monkeypatch, value, on):
    asked_for_once = table.environment_has_winograd_on
    monkeypatch.setattr(table, "environment_has_winograd_on", asked_for_once.__wrapped__)
    monkeypatch.delenv("TINYFT_WINOGRAD", raising=False)
    if value is not None:
        monkeypatch.setenv("TINYFT_WINOGRAD", value)
    with pytest.raises(KeyError), table.switch_winograd(not on):
        assert table.winograd_is_on() is not on
        raise KeyError
    assert table.winograd_is_on() is on


@pytest.mark.parametrize("case", [CASES[5], STRIDED[0], STEMS[0]], ids=str)
def test_winograd_can_be_turned_off(case):
    arrays = make(case)
    tiles = run(FAST, case, *arrays)
    with table.switch_winograd(False):
        direct = run(FAST, case, *arrays)
    assert_equals_definition(case, direct, *arrays)
    for name, a, b in zip(NAMES, tiles, direct, strict=True):
        assert (a != b).any() or (case in STEMS and name == "conv2d_input_grad")


@pytest.mark.parametrize("winograd", [True, False])
@pytest.mark.parametrize("case", [CASES[0], CASES[5], CASES[11], STRIDED[0], STEMS[0]], ids=str)
def test_denormal_pictures_and_gradients_count_as_zero(case, winograd):
    """In whatever way it is computed: some CPUs are a hundred times as slow with them."""
    if not (is_x86() or is_arm64()):
        pytest.skip("denormals are computed with here")
    x, weight, dout = make(case)
    x, dout = (np.where(a > 0, a.dtype.type(1e-38), a.dtype.type(-1e-38)) for a in (x, dout))
    with table.switch_winograd(winograd):
        for name, result in zip(NAMES, run(FAST, case, x, weight, dout), strict=True):
            assert (result == 0).all(), name


@pytest.mark.parametrize(
    "size, stride, same",
    [
        *((1, 1, True), (2, 1, True), (3, 1, False), (4, 1, False)),
        *((4, 2, True), (5, 2, False), (7, 2, False), (9, 2, True), (11, 2, False)),
    ],
)
def test_winograd_computes_what_it_saves_something_on(size, stride, same):
    """Results of 1 x 1, 2 x 2, and with stride 2 of 5 x 5 pixels, do not go through tiles: equal
    bits without Winograd.
    """
    case = (16, size, size, 64), 128, 3, 3, stride, 1
    arrays = make(case)
    with table.switch_winograd(False):
        direct = run(FAST, case, *arrays)
    forward_and_input_grad = [*zip(NAMES, run(FAST, case, *arrays), direct, strict=True)][:2]
    for name, got, plain in forward_and_input_grad:
        assert (got == plain).all() == same, name


@pytest.mark.parametrize(
    "case, limits",
    [
        (((3, 28, 28, 128), 128, 3, 3, 1, 1), (7e-7, 7e-7, 7e-7)),  # Winograd
        (((2, 28, 28, 256), 128, 3, 3, 2, 1), (5e-7, 5e-7, 5e-7)),  # Winograd with stride 2
        (((2, 14, 14, 256), 128, 3, 3, 2, 0), (2.5e-7, 2e-7, 1.3e-7)),  # direct
        (((2, 14, 14, 1024), 64, 1, 1, 1, 0), (2.5e-7, 1.3e-7, 1.6e-7)),
    ],
    ids=str,
)
def test_long_sums_lose_little(case, limits):
    """Root mean square errors relative to the results': long sums are made in pieces. One product
    after the other, they would be wrong by up to 1e-6 with Winograd and 4e-7 without.
    """
    arrays = make(case)
    expected = run(REFERENCE, case, *doubles(*arrays))
    actual = run(FAST, case, *arrays)
    for name, got, want, limit in zip(NAMES, actual, expected, limits, strict=True):
        error = np.sqrt(np.square(got - want).mean() / np.square(want).mean())
        assert error <= limit, f"{name}: {error:.1e}"


def amplification(a, b):
    """By how much independent roundings of the 36 products grow, see winograd/transforms.py."""
    return amplification_of(*winograd_matrices((0, a, -a, b, -b), 3))


def amplification_of(evaluate, evaluate_filter, interpolate):
    products = np.square(interpolate).sum(1) * np.square(evaluate_filter).sum(1)  # mean squares
    return (np.square(evaluate) @ products).mean() / 3  # in each dimension its root


def test_winograd_points_amplify_rounding_as_little_as_any():
    assert amplification(1, 2) == pytest.approx(10.8, abs=0.05)
    assert amplification(2 / 3, 3 / 2) == pytest.approx(4.76, abs=0.005)
    others = [
        amplification(a, b) for a in np.arange(0.4, 1.1, 0.05) for b in np.arange(1.2, 2.2, 0.05)
    ]
    assert min(others) > 4.74
    np.testing.assert_allclose(winograd_matrices(POINTS, 3)[0], A_TRANSPOSED)
    assert amplification_of(A_SHORT, G, B_SHORT) == pytest.approx(3.97, abs=0.005)


@pytest.mark.parametrize("side, tiles", [(7, False), (8, False), (9, True)])
def test_winograd_is_not_for_a_picture_of_four_tiles(side, tiles):
    x, weight, _ = make(((1, side, side, 16), 16, 3, 3, 1, 1))
    with table.switch_winograd(False):
        direct = FAST.conv2d(x, weight, padding=1)
    assert (FAST.conv2d(x, weight, padding=1) != direct).any() == tiles


# What is chosen for forward, input gradient and weight gradient.
STRIDE_2, GEMM = "Winograd with stride 2", "implicit GEMM"
CHOICES = [
    (((16, 224, 224, 3), 64, 7, 7, 2, 3), ("Winograd stem", GEMM, "Winograd stem")),
    (((16, 32, 32, 3), 16, 3, 3, 1, 1), ("few channels", "Winograd", "few channels")),
    (((16, 2, 2, 512), 512, 3, 3, 1, 1), ("whole maps", "whole maps", "whole maps")),
    (((REST_ROWS - 1, 2, 2, 512), 512, 3, 3, 1, 1), (GEMM, GEMM, GEMM)),  # too few pictures
    (((16, 14, 14, 256), 256, 3, 3, 1, 1), ("Winograd", "Winograd", "Winograd")),
    (((1, 7, 7, 512), 512, 3, 3, 1, 1), (GEMM, "Winograd", "Winograd")),  # too few tiles
    (((16, 3, 3, 64), 64, 3, 3, 1, 1), ("Winograd", "Winograd", GEMM)),  # smaller than a tile
    (((16, 56, 56, 64), 256, 1, 1, 1, 0), (GEMM, GEMM, GEMM)),
    (((4, 14, 14, 64), 128, 3, 3, 2, 1), (STRIDE_2, STRIDE_2, STRIDE_2)),
    (((4, 14, 14, 48), 256, 3, 3, 2, 1), (GEMM, STRIDE_2, GEMM)),
    (((4, 14, 14, 256), 96, 3, 3, 2, 1), (GEMM, STRIDE_2, GEMM)),
    (((3, 14, 14, 64), 128, 3, 3, 2, 1), (GEMM, STRIDE_2, GEMM)),
    (((4, 10, 10, 64), 128, 3, 3, 2, 1), (GEMM, GEMM, GEMM)),
    (((4, 10, 56, 64), 128, 3, 3, 2, 1), (STRIDE_2, STRIDE_2, STRIDE_2)),
    (((4, 14, 14, 64), 128, 3, 3, 2, 0), (GEMM, GEMM, GEMM)),
]


@pytest.mark.parametrize("case, algorithms", CHOICES, ids=str)
def test_which_algorithm_computes(case, algorithms):
    x_shape, F, R, S, stride, padding = case
    layer = x_shape, (F, x_shape[3], R, S), stride, padding
    assert tuple(table.algorithm_of(name, *layer) for name in NAMES) == algorithms


def test_each_row_of_the_table_computes_what_it_has():
    """Among the cases that are compared with the definition; without Winograd where it is off."""
    chosen = set()
    for x_shape, F, R, S, stride, padding in CASES:
        layer = x_shape, (F, x_shape[3], R, S), stride, padding
        chosen |= {(table.algorithm_of(name, *layer), table.PASS_OF[name]) for name in NAMES}
        with table.switch_winograd(False):
            assert not any(table.algorithm_of(name, *layer)[:8] == "Winograd" for name in NAMES)
    there = {
        (row.name, what)
        for row in table.TABLE
        for what in table.PASS_OF.values()
        if row.precision is None and getattr(row, what) is not None
    }
    assert chosen == there


def test_a_row_without_what_it_suits_is_an_error(monkeypatch):
    incomplete = table.TABLE[-1]._replace(name="mine", input_grad=None)
    monkeypatch.setattr(table, "TABLE", (incomplete,))
    layer = table.Layer((7, 6, 5, 16), (16, 16, 3, 3), (7, 6, 5, 16), 1, 1)
    assert table.choose("forward", layer, True) is incomplete
    with pytest.raises(TypeError, match=r"'mine' says .* suits input_grad .* no input_grad"):
        table.choose("input_grad", layer, True)
    monkeypatch.setattr(table, "TABLE", (incomplete._replace(suits=lambda *_: False),))
    with pytest.raises(TypeError, match=r"no row in .*table\.TABLE suits forward"):
        table.choose("forward", layer, True)
    with pytest.raises(TypeError, match="weight_grad"):
        table.Algorithm("mine", incomplete.suits, incomplete.forward, None)


def test_winograd_with_stride_2_amplifies_rounding_less():
    a, g, b = winograd_strided.A_TRANSPOSED, winograd_strided.G_SPLIT, winograd_strided.B_TRANSPOSED
    a_short, b_short = winograd_strided.A_SHORT, winograd_strided.B_SHORT
    for evaluate, interpolate, expected in ((a, b, 2.81), (a_short, b_short, 2.27)):
        both = np.concatenate([evaluate, evaluate[:, :-1]], axis=1)
        found = amplification_of(both, g, winograd_strided.split_inputs(interpolate))
        assert found == pytest.approx(expected, abs=0.005)


def test_winograds_points_for_the_stem_amplify_rounding_as_little_as_any():
    def in_one_direction(a, b, c):
        matrices = winograd_matrices((a, -a, b, -b, c, -c), winograd_stem.TAPS)
        return np.sqrt(amplification_of(*matrices) * 3 / winograd_stem.TAPS)

    assert winograd_stem.POINTS[::2] == (2 / 7, 5 / 6, 7 / 4)
    assert in_one_direction(2 / 7, 5 / 6, 7 / 4) == pytest.approx(3.02, abs=0.005)
    assert in_one_direction(1 / 2, 1, 2) == pytest.approx(3.85, abs=0.005)
    near = itertools.product(np.arange(0.2, 0.5, 0.04), np.arange(0.6, 1, 0.04), (1.6, 1.75, 1.9))
    assert min(in_one_direction(*points) for points in near) > 3.01


def test_wrong_shapes_are_refused():
    x, weight, dout = make(CASES[5])
    ones = np.ones
    wrong = [
        (r"input channels but x has 5", lambda: FAST.conv2d(x[..., :5], weight)),
        (r"bias must have shape \(48,\)", lambda: FAST.conv2d(x, weight, ones(47, np.float32))),
        (r"residual must have shape", lambda: FAST.conv2d(x, weight, residual=dout[:, 1:])),
        (r"3x3 kernel is larger", lambda: FAST.conv2d(x[:, :2], weight)),
        (r"stride 0", lambda: FAST.conv2d(x, weight, stride=0)),
        (r"padding -1", lambda: FAST.conv2d(x, weight, padding=-1)),
        (
            r"dout must have shape",
            lambda: FAST.conv2d_input_grad(dout[:1], weight, x.shape, stride=1, padding=1),
        ),
        (
            r"dout must have shape",
            lambda: FAST.conv2d_weight_grad(dout, x, weight.shape, stride=1, padding=0),
        ),
    ]
    for message, call in wrong:
        with pytest.raises(ShapeError, match=message):
            call()


# --------------------------------------------------------------------------------- matrix products

SIZES = [
    (1, 1, 1),
    (16, 1024, 512),
    (13, 37, 10),
    (2, 3, 100),
    (200, 64, 33),
    (5, 1, 7),
    (1, 600, 2),
]


@pytest.mark.parametrize("M, K, N", SIZES)
def test_matmul(M, K, N):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((M, K)).astype(np.float32)
    b = rng.standard_normal((K, N)).astype(np.float32)
    expected = a.astype(np.float64) @ b
    versions_of_a = a, np.asfortranarray(a), np.repeat(a, 2, axis=1)[:, ::2], a[::-1][::-1]
    versions_of_b = b, np.asfortranarray(b), np.repeat(b, 2, axis=0)[::2]
    results = [FAST.matmul(*ab) for ab in itertools.product(versions_of_a, versions_of_b)]
    for result in results:
        np.testing.assert_array_equal(result, results[0])
        assert result.flags.c_contiguous
    assert_close(results[0], expected, K, np.square(a) @ np.square(b))


def test_matmul_of_other_things_is_the_definition():
    stack = np.ones((2, 3, 4), np.float32)
    np.testing.assert_array_equal(FAST.matmul(stack, stack.transpose(0, 2, 1)), 4)
    assert FAST.matmul(np.ones((2, 0), np.float32), np.ones((0, 3), np.float32)).sum() == 0
    assert FAST.matmul(np.ones((2, 2)), np.ones((2, 2))).dtype == np.float64
    with pytest.raises(ValueError, match="mismatch"):
        FAST.matmul(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))


# -------------------------------------------------------------------------------------- other CPUs

CHECK = """
from tests.backends.cpu.test_conv import *
assert int(sys.argv[1]) == LANES
numbers = [*range(6), 8, 9, 11, 14, 15, 16, 18, 19, 22, 23]
for case in [CASES[i] for i in numbers] + WHOLE_MAPS + SORTED_TILES + STRIDED + STEMS:
    arrays = make(case)
    assert_equals_definition(case, run(FAST, case, *arrays), *arrays)
test_matmul(13, 37, 10)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, features, lanes",
    [("haswell", "+sse4.2,+avx,+avx2,+fma", 8), ("generic", "", 4)],
    ids=["AVX2", "portable"],
)
def test_narrower_registers(name, features, lanes):
    """Compiled for a smaller CPU in another process."""
    if lanes > LANES:
        pytest.skip("this CPU has no such registers")
    environment = os.environ | {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    subprocess.run([sys.executable, "-c", CHECK, str(lanes)], env=environment, check=True)
