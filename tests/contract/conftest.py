"""The contract is run against every backend that this machine has."""

from tinyft import backends

PRESENT = [n for n in backends.NAMES if n != "cpu" or not backends.why_no_numba()]


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", PRESENT)
