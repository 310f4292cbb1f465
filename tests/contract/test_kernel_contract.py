"""Every kernel of every backend keeps the contract; tinyft/testing/contract.py says which."""

import inspect

import pytest

from tests.contract.conftest import by_speed
from tinyft.backends import Backend
from tinyft.testing.contract import KERNEL_CASES, check_kernel

# Where arrays are and what computes them; tests/backends/gpu/ tests what these do.
NO_KERNELS = {
    "constant", "current", "deferred_updates", "description", "download", "measured", "peak_bytes",
    "synchronize", "upload", "uploads",
}  # fmt: skip


def test_every_kernel_has_cases():
    methods = {n for n, _ in inspect.getmembers(Backend, inspect.isfunction) if n[0] != "_"}
    assert methods - NO_KERNELS == {case.subject for case in KERNEL_CASES}
    assert methods >= NO_KERNELS


def test_no_two_cases_have_one_name():
    assert len({str(case) for case in KERNEL_CASES}) == len(KERNEL_CASES)


@pytest.mark.parametrize("case", by_speed(KERNEL_CASES))
def test_kernel(case, backend):
    check_kernel(case, backend)
