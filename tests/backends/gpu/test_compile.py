"""Without a GPU but with the real tools: every kernel compiles, and no thread needs more registers
than there are.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tinyft.backends.gpu import memory

pytestmark = pytest.mark.slow


SIMPLE = [p.stem for p in sorted(memory.FOLDER.glob("*.cu")) if p.stem != "conv2d"]
VARIANTS = [
    *((file, real, ()) for file in SIMPLE for real in ("float", "double")),
    ("conv2d", "float", ()),
    ("conv2d", "double", ("-DBM=64",)),
    ("conv2d", "float", ("-DTF32",)),
    ("conv2d", "float", ("-DTF32", "-DBN=128")),
]  # fmt: skip


@pytest.mark.parametrize(("file", "real", "defines"), VARIANTS, ids=lambda v: str(v))
def test_with_nvcc(file, real, defines, tmp_path):
    """For 7.5 (which has no TF32), 8.0 and 9.0, without spills."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    architectures = [80, 90] if "-DTF32" in defines else [75, 80, 90]
    command = ["nvcc", "-std=c++17", f"-DREAL={real}", *defines, "-Xptxas", "-v", "-fatbin"]
    command += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    command += ["-o", str(tmp_path / "out"), str(memory.FOLDER / f"{file}.cu")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(kernels) >= len(architectures)
    assert set(kernels) == {("0", "0")}, done.stderr


@pytest.mark.parametrize(("file", "real", "defines"), VARIANTS, ids=lambda v: str(v))
def test_with_nvrtc(file, real, defines):
    """The compiler that CuPy uses knows no header files; it needs no driver either."""
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc")
    source = (memory.FOLDER / f"{file}.cu").read_text()
    try:
        program = nvrtc.createProgram(source, f"{file}.cu", (), ())
    except Exception as error:  # CuPy's own, where the library is missing
        pytest.skip(f"NVRTC cannot be loaded: {error}")
    options = ("-std=c++17", "-arch=sm_80", f"-DREAL={real}", *defines)
    try:
        nvrtc.compileProgram(program, options)
    except Exception:
        pytest.fail(nvrtc.getProgramLog(program))
    assert len(nvrtc.getCUBIN(program)) > 1000
