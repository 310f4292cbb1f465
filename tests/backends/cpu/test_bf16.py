"""Products in bf16: right to float32's bounds for numbers that bf16 has, and those that it has not
are rounded to the nearest first.
"""

import numpy as np
import pytest

from tests.backends.cpu.test_conv import NAMES, assert_close, doubles, make, run
from tinyft import backends
from tinyft.backends.cpu import CpuBackend
from tinyft.backends.cpu.codegen import compiler
from tinyft.backends.cpu.conv import bf16, table
from tinyft.backends.reference import Backend
from tinyft.errors import DeviceError
from tinyft.testing.contract import KERNEL_CASES, OP_CASES, check_case

FLOAT32, REFERENCE = CpuBackend(), Backend()
CASES = [  # x (N, H, W, C), F, R, S, stride, padding
    ((1, 1, 1, 32), 32, 1, 1, 1, 0),
    ((3, 7, 5, 64), 96, 1, 1, 1, 0),  # an odd number of pixels: the last has no neighbour
    ((3, 7, 6, 64), 32, 1, 1, 2, 0),
    ((2, 5, 5, 1056), 288, 1, 1, 1, 0),  # more than a pass, and than an item, has
    ((5, 15, 17, 32), 1024, 1, 1, 1, 0),  # pixels in parts; rows of results 4 KiB apart
]
CONVOLVED = [
    case
    for case in [*KERNEL_CASES, *OP_CASES]
    if case.subject.startswith("conv2d") and "1x1 64 to 32 channels" in str(case)
]

works = pytest.mark.skipif(bf16.why_not() is not None, reason=bf16.why_not() or "works")


def rounded(x):
    """To the nearest number that bf16 has, to the even one in the middle."""
    bits = x.view(np.uint32).astype(np.uint64)
    nearest = bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000
    return nearest.astype(np.uint32).view(np.float32)


@works
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_definition_of_rounded_numbers(case):
    given = make(case)
    actual = run(backends.get("cpu:bf16"), case, *given)
    arrays = doubles(*map(rounded, given))
    expected = run(REFERENCE, case, *arrays)
    squares = run(REFERENCE, case, *(np.square(array) for array in arrays))
    terms = case[0][3], case[1], given[2].size // case[1]
    for name, *result in zip(NAMES, actual, expected, terms, squares, strict=True):
        assert_close(*result, name=name)
        layer = case[0], (case[1], case[0][3], 1, 1), *case[4:]
        assert table.algorithm_of(name, *layer, "bf16") == "bf16"


@works
def test_bias_residual_and_relu():
    case = CASES[2]
    x, weight, residual = map(rounded, make(case))
    bias, options = np.arange(case[1], dtype=np.float32), {"stride": 2, "relu": True}
    actual = backends.get("cpu:bf16").conv2d(x, weight, bias, residual=residual, **options)
    in_double = doubles(x, weight, bias, residual)
    expected = REFERENCE.conv2d(*in_double[:3], residual=in_double[3], **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-5)


@works
@pytest.mark.parametrize("case", CONVOLVED, ids=str)
def test_keeps_the_contract_within_bounds_of_its_own(case):
    check_case(case, "cpu:bf16")


@works
def test_other_layers_and_the_other_backend_stay_float32():
    in_bf16 = backends.get("cpu:bf16")
    case = ((2, 8, 8, 32), 32, 3, 3, 1, 1)
    for one, other in zip(
        run(in_bf16, case, *make(case)), run(FLOAT32, case, *make(case)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    x, weight, _ = make(CASES[1])
    constant = FLOAT32.constant(weight)  # of which packed panels are kept
    for backend in (FLOAT32, in_bf16) * 2:
        np.testing.assert_array_equal(backend.conv2d(x, constant), backend.conv2d(x, weight))
    assert (FLOAT32.conv2d(x, constant) != in_bf16.conv2d(x, constant)).any()


@works
def test_a_backend_says_its_precision_wherever_it_is_named():
    with backends.use("cpu:bf16") as backend:
        assert backend.description().startswith("cpu:bf16 (Numba kernels, 1x1 convolutions in bf16")
        assert backends.of(np.zeros(1, np.float32)) is backend
    assert backends.numerics("cpu:bf16")["backend"] == "cpu:bf16"
    assert backends.resolve("cpu:bf16") == "cpu:bf16"


def test_says_why_it_does_not_work_here(monkeypatch):
    monkeypatch.setattr(bf16, "has", lambda feature: False)
    with pytest.raises(DeviceError, match=r"'cpu:bf16' needs a CPU with AVX512_BF16 .*use 'cpu'"):
        CpuBackend("bf16")
    monkeypatch.setattr(bf16, "has", lambda feature: True)
    monkeypatch.setattr(bf16, "LANES", 16)
    monkeypatch.setattr(compiler, "lacks", [compiler.Lack("changed", "slowly")])
    with pytest.raises(DeviceError, match=r"needs Numba 0\.62 or later"):
        CpuBackend("bf16")
