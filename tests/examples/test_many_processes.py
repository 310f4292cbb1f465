"""Two processes make the step that one makes, to the same bits from run to run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    pytest.importorskip("mpi4py", reason="mpi4py is not installed (.[mpi])")
    if shutil.which("mpiexec") is None:
        pytest.skip("there is no mpiexec")

    def run(processes, name):
        command = ["mpiexec", "-n", str(processes), sys.executable]
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        root["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
        given = {"EPOCHS": "1", "OUT": str(tmp_path / name), "TINYFT_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, ROOT / "examples" / "many_processes.py"],
            env=os.environ | root | given | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "all have the same bits: True" in done.stdout
        return re.search(r"weights (\w+)", done.stdout)[1], dict(np.load(tmp_path / f"{name}.npz"))

    _, alone = run(1, "alone")
    bits, together = run(2, "together")
    assert run(2, "again")[0] == bits
    for name, array in alone.items():
        assert np.abs(array - together[name]).max() < 1e-5, name
