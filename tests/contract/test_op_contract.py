"""Every op on every backend keeps the contract; tinyft/testing/contract.py says which."""

import pytest

from tests.contract.conftest import by_speed
from tinyft import ops
from tinyft.testing.contract import OP_CASES, REFUSALS, check_op, check_refusal


def test_every_op_has_cases():
    assert set(ops.__all__) - {"unfused"} == {case.subject for case in OP_CASES}


def test_no_two_cases_have_one_name():
    for cases in (OP_CASES, REFUSALS):
        assert len({str(case) for case in cases}) == len(cases)


@pytest.mark.parametrize("case", by_speed(OP_CASES))
def test_op(case, backend):
    check_op(case, backend)


@pytest.mark.parametrize("case", REFUSALS, ids=str)
def test_refusal(case, backend):
    check_refusal(case, backend)
