"""The contract of tests/contract/, on the GPU backend and the stand-in."""

import numpy as np
import pytest

from tinyft import backends
from tinyft.testing.contract import (
    KERNEL_CASES,
    OP_CASES,
    REFUSALS,
    check_kernel,
    check_op,
    check_refusal,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", KERNEL_CASES, ids=str)
def test_kernel(case, gpu):
    check_kernel(case, gpu.name)


@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_op(case, gpu):
    check_op(case, gpu.name)


@pytest.mark.parametrize("case", REFUSALS, ids=str)
def test_refusal(case, gpu):
    check_refusal(case, gpu.name)


def test_a_window_of_padding_alone_has_no_largest_pixel(gpu):
    x = np.arange(8, dtype=np.float32).reshape(1, 2, 4, 1)
    window = {"kernel": 1, "stride": 1, "padding": 1}
    got = gpu.max_pool2d(gpu.upload(x), **window)
    expected = backends.get("reference").max_pool2d(x, **window)
    assert np.isinf(expected[0]).sum() == 16
    for ours, definition in zip(got, expected, strict=True):
        np.testing.assert_array_equal(backends.host(ours), definition)
