"""The contract is run against every backend that this machine has."""

import pytest

from tinyft import backends

PRESENT = [n for n in backends.NAMES if n != "cpu" or not backends.why_no_numba()]


def by_speed(cases):
    """Cases as parameters. Convolutions of 64 channels take seconds; quicker ones of their kind are
    in tests/backends/cpu/test_conv.py.
    """
    long = [case.subject.startswith("conv2d") and "3x3 64 channels" in str(case) for case in cases]
    return [
        pytest.param(case, id=str(case), marks=[pytest.mark.slow] * is_long)
        for case, is_long in zip(cases, long, strict=True)
    ]


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", PRESENT)
