"""The contract of tests/contract/, on the GPU backend and the stand-in."""

import pytest

from tinyft.testing import KERNEL_CASES, OP_CASES, REFUSALS, check_kernel, check_op, check_refusal


@pytest.mark.parametrize("case", KERNEL_CASES, ids=str)
def test_kernel(case, gpu):
    check_kernel(case, gpu.name)


@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_op(case, gpu):
    check_op(case, gpu.name)


@pytest.mark.parametrize("case", REFUSALS, ids=str)
def test_refusal(case, gpu):
    check_refusal(case, gpu.name)
