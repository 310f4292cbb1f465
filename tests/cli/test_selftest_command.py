"""`tinyft selftest`: right kernels pass, wrong ones fail by name. tests/contract runs the whole."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from tinyft import backends, ops
from tinyft.backends import Backend
from tinyft.testing import contract


@pytest.mark.slow
def test_a_kernel_and_its_op_pass(tinyft):
    done = tinyft("selftest", "relu")
    assert done.code == 0, done.out
    first, *rest, last = done.out.splitlines()
    assert first == f"backend: {backends.get('auto').description()}"
    assert rest == ["passed  kernel relu: 5 cases", "passed  op relu: 4 cases"]
    assert last.startswith("9 of 9 cases passed in")


def test_without_a_name_every_kernel_and_op_is_checked(tinyft, monkeypatch):
    checked = []
    monkeypatch.setattr(contract, "check_case", lambda case, backend: checked.append(case))
    done = tinyft("selftest", "--backend", "reference")
    cases = [*contract.KERNEL_CASES, *contract.OP_CASES, *contract.REFUSALS]
    assert done.code == 0 and sorted(map(str, checked)) == sorted(map(str, cases))
    assert f"{len(cases)} of {len(cases)} cases passed" in done.out
    for name in set(ops.__all__) - {"unfused"}:
        assert f"passed  op {name}: " in done.out


@pytest.mark.slow
def test_a_wrong_kernel_fails_and_is_named(tinyft, monkeypatch):
    backend = type(backends.get("auto"))
    right = backend.relu
    monkeypatch.setattr(backend, "relu", lambda self, x: right(self, x) * x.dtype.type(1.01))
    done = tinyft("selftest", "relu")
    assert done.code == 1
    assert "FAILED  op relu: 3 of 4 cases" in done.out
    assert "gradient of input 0 (x) of relu is wrong" in done.out
    if backend is not Backend:  # the reference is what defines a kernel
        assert "FAILED  kernel relu: 4 of 5 cases" in done.out
        assert "differs from the float64 reference" in done.out and "... and 1 more" in done.out


@pytest.mark.slow
def test_a_kernel_that_raises_fails(tinyft, monkeypatch):
    def broken(self, a, b):
        raise IndexError("nothing there")

    monkeypatch.setattr(type(backends.get("auto")), "add", broken)
    done = tinyft("selftest", "add")
    assert done.code == 1
    assert "FAILED  kernel add: 5 of 5 cases" in done.out
    assert "raises IndexError: nothing there" in done.out


def test_names_and_backends_that_are_not_there(tinyft):
    assert "there is no kernel or op 'conv3d'" in tinyft("selftest", "conv3d").error
    assert "gpu" in tinyft("selftest", "relu", "--backend", "gpu:7").error


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_without_numba_the_reference_is_checked(backend, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tinyft", "selftest", "relu", "--backend", backend],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "backend: reference (plain NumPy)" in done.stdout
    assert "9 of 9 cases passed" in done.stdout


@pytest.mark.slow
def test_it_runs_where_nothing_is_but_the_package(tmp_path):
    """No checkout and no pytest: nothing of either is imported."""
    code = (
        "import sys\n"
        "from tinyft.cli.main import main\n"
        "assert main(['selftest', 'add', '--backend', 'reference']) == 0\n"
        "print(sorted({'pytest', 'tests', 'hypothesis'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.endswith("[]\n"), done.stderr


@pytest.mark.slow
def test_a_family_that_was_checked_in_part_is_no_pass():
    """Each case is counted, also the refusals of an op."""
    families = list(contract.check_families("reference", "dropout"))
    refused = sum(case.subject == "dropout" for case in contract.REFUSALS)
    called = sum(case.subject == "dropout" for case in contract.OP_CASES)
    assert [(f.kind, f.cases) for f in families][1] == ("op", called + refused)
    assert not any(f.failures for f in families)
    assert np.all([f.subject == "dropout" for f in families])
