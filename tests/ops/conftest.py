"""Every test of an op runs on every backend that this machine has."""

import pytest

from tinyft import backends

PRESENT = [n for n in backends.NAMES if n != "cpu" or not backends.why_no_numba()]


@pytest.fixture(scope="module", autouse=True, params=PRESENT)
def backend(request):
    with backends.use(request.param):
        yield request.param
