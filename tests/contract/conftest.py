"""The contract is run against every backend that this machine has."""

import importlib.util

from tinyft import backends

PRESENT = [n for n in backends.NAMES if n != "cpu" or importlib.util.find_spec("numba")]


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", PRESENT)
