"""The sentences of open.py where the real CuPy is installed and no driver: its own errors, raised
by its own code as far as that goes without a GPU.

`pip install cupy-cuda13x` is enough for most of it; its extra [ctk] brings the libraries, which
some tests want and others want to be missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from tinyft.backends.gpu import open
from tinyft.errors import DeviceError

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
if cupy.cuda.runtime.driverGetVersion():
    pytest.skip(
        "there is a CUDA driver; `tinyft bench --backend gpu` tests it", allow_module_level=True
    )

CUDA = cupy.cuda.runtime.runtimeGetVersion() // 1000
WHEEL = f"cupy-cuda{CUDA}x"
ROOT = Path(__file__).resolve().parents[3]

# All of a driver that CUDA's runtime asks before it gives up: which version it is, and why it
# cannot start.
DRIVER = r"""
#include <dlfcn.h>
#include <stdlib.h>
extern "C" {
int cuDriverGetVersion(int* version) { *version = atoi(getenv("DRIVER")); return 0; }
int cuInit(unsigned) { return atoi(getenv("STATUS")); }
int cuGetProcAddress_v2(const char* name, void** found, int, unsigned long long, int* status) {
    *found = dlsym(RTLD_DEFAULT, name);
    if (status) *status = *found ? 0 : 1;
    return *found ? 0 : 500;
}
int cuGetProcAddress(const char* name, void** found, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, found, version, flags, 0);
}
int cuGetExportTable(const void** table, const void*) { *table = 0; return 500; }
}
"""
OPEN = "from tinyft.backends.gpu.open import open_device as o\ntry: o(0)\nexcept Exception as e: "
OPEN += "print(type(e).__name__, e, sep=': ')"


def refused(number=0):
    with pytest.raises(DeviceError) as caught:
        open.open_device(number)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """What opening says with a driver of that version, which starts with that status."""
    if shutil.which("g++") is None or not sys.platform.startswith("linux"):
        pytest.skip("a driver to be loaded in its place is made with g++, for Linux")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.cpp").write_text(DRIVER)
    command = [
        "g++",
        "-shared",
        "-fPIC",
        "-w",
        "-o",
        folder / "libcuda.so.1",
        folder / "driver.cpp",
    ]
    subprocess.run([*command, "-ldl"], check=True)

    def say(version, status, **variables):
        variables |= {"DRIVER": str(version), "STATUS": str(status), "PYTHONPATH": str(ROOT)}
        variables["LD_LIBRARY_PATH"] = str(folder)
        kept = {n: v for n, v in os.environ.items() if n != "CUDA_VISIBLE_DEVICES"}
        done = subprocess.run(
            [sys.executable, "-c", OPEN], env=kept | variables, capture_output=True, text=True
        )
        return (done.stdout + done.stderr).strip()

    return say


def test_no_driver():
    assert refused() == (
        f"CuPy {cupy.__version__} is installed, but there is no CUDA driver; on a machine without "
        "an NVIDIA GPU use device='cpu'"
    )


def test_the_wheel_is_found():
    assert open.cupy_wheels() == [WHEEL]


def test_an_old_driver(driver):
    """The wheel's own CUDA runtime meets it; ours is the same judgement, with a remedy."""
    has = (CUDA - 1) * 1000 + 40
    other = f', or pip uninstall {WHEEL}, then pip install "tinyft[gpu12]"' if CUDA == 13 else ""
    assert driver(has, 0) == (
        f"DeviceError: the driver supports CUDA {CUDA - 1}.4, and {WHEEL} wants {CUDA}.0; update "
        f"the driver{other}"
    )


def test_any_minor_version_of_a_driver_will_do(driver):
    """CUDA's runtime agrees with ours: it comes as far as asking for GPUs."""
    assert driver(CUDA * 1000, 100).startswith("DeviceError: the CUDA driver finds no GPU")


def test_a_driver_without_a_gpu(driver):
    assert driver(CUDA * 1000, 100) == (
        "DeviceError: the CUDA driver finds no GPU; use device='cpu'"
    )
    assert driver(CUDA * 1000, 100, CUDA_VISIBLE_DEVICES="7") == (
        "DeviceError: the CUDA driver finds no GPU (CUDA_VISIBLE_DEVICES is '7'); use device='cpu'"
    )


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (3, "cudaErrorInitializationError: initialization error"),
        (802, "cudaErrorSystemNotReady: system not yet initialized"),
        (803, "cudaErrorSystemDriverMismatch: system has unsupported display driver / cuda driver"),
        (999, "cudaErrorUnknown: unknown error"),
    ],
)
def test_a_driver_that_does_not_work(driver, status, text):
    sentence = driver(CUDA * 1000, status)
    assert sentence.startswith(f"DeviceError: the CUDA driver does not work ({text}")
    assert sentence.endswith("); see what nvidia-smi says, or use device='cpu'")


@pytest.fixture
def card(monkeypatch):
    """CuPy as if there were a driver and one card, up to the point where either would compute."""

    class Device:
        compute_capability = "90"

        def __init__(self, number):
            if number != 0:
                raise cupy.cuda.runtime.CUDARuntimeError(101)

        __enter__ = __exit__ = lambda *_: None

    class RawModule:
        """CuPy's own looks up the current device first."""

        def __init__(self, code):
            self.code = code

        def get_function(self, name):
            architecture = Device.compute_capability
            cupy._core.core.compile_with_cache(
                self.code, arch=architecture, prepend_cupy_headers=False
            )

    kept = []

    def memory(size):
        kept.append(np.zeros(max(size, 1), np.uint8))
        owned = cupy.cuda.UnownedMemory(kept[-1].ctypes.data, size, kept[-1], 0)
        return cupy.cuda.MemoryPointer(owned, 0)

    runtime = cupy.cuda.runtime
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(runtime, "driverGetVersion", lambda: CUDA * 1000)
    monkeypatch.setattr(runtime, "getDeviceCount", lambda: 1)
    monkeypatch.setattr(runtime, "getDeviceProperties", lambda number: {"name": b"NVIDIA H100"})
    monkeypatch.setattr(cupy.cuda, "Device", Device)
    monkeypatch.setattr(cupy, "RawModule", RawModule)
    monkeypatch.setattr(
        cupy, "asarray", lambda x: cupy.ndarray(x.shape, x.dtype, memptr=memory(x.nbytes))
    )
    cupy.cuda.set_allocator(memory)  # for the product's result
    yield types.SimpleNamespace(Device=Device, patch=monkeypatch)
    cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)


def library(name):
    """Whether CUDA's library of that name is installed."""
    pathfinder = pytest.importorskip("cuda.pathfinder")
    with contextlib.suppress(Exception):
        pathfinder.load_nvidia_dynamic_lib(name)
        return True
    return False


def test_a_missing_device(card):
    assert refused(1) == "gpu:1 does not exist; this machine has gpu:0 (NVIDIA H100)"


def test_without_cublas(card):
    if library("cublas"):
        pytest.skip("cuBLAS is installed")
    sentence = refused()
    assert sentence.startswith(f'CuPy cannot load cuBLAS: pip install "{WHEEL}[ctk]" (')
    assert "libcublas" in sentence


def test_without_nvrtc(card):
    if library("nvrtc"):
        pytest.skip("NVRTC is installed")
    card.patch.setattr(open, "_multiply", lambda cupy: None)
    sentence = refused()
    assert sentence.startswith(f'CuPy cannot load NVRTC: pip install "{WHEEL}[ctk]" (')
    assert "libnvrtc" in sentence


def test_a_cublas_that_does_not_start(card):
    """It is installed, and fails for want of a driver: there is nothing to be installed."""
    if not library("cublas"):
        pytest.skip("cuBLAS is not installed")
    sentence = refused()
    assert sentence.startswith("gpu:0 (NVIDIA H100) fails the first trial of its cuBLAS (cudaError")
    assert sentence.endswith("); see what nvidia-smi says, or use device='cpu'")


def test_a_card_in_use(card):
    for error, text in (
        (
            cupy.cuda.runtime.CUDARuntimeError(46),
            "cudaErrorDevicesUnavailable: CUDA-capable device",
        ),
        (cupy.cuda.memory.OutOfMemoryError(64, 0, 0), "Out of memory allocating 64 bytes"),
    ):

        def fails(x, error=error):
            raise error

        card.patch.setattr(cupy, "asarray", fails)
        sentence = refused()
        assert sentence.startswith(
            f"gpu:0 (NVIDIA H100) fails the first trial of its memory ({text}"
        )
        assert sentence.endswith("); see what nvidia-smi says, or use device='cpu'")


def test_an_old_card(card):
    """CUDA 13's compiler knows none older than what our sentence says."""
    if CUDA != 13:
        pytest.skip("a question of CUDA 13")
    card.patch.setattr(card.Device, "compute_capability", "70")
    assert refused() == (
        "gpu:0 (NVIDIA H100) has compute capability 7.0, and CUDA 13 serves 7.5 and newer; pip "
        f'uninstall {WHEEL}, then pip install "tinyft[gpu12]"'
    )
    if not library("nvrtc"):
        return
    from cupy_backends.cuda.libs import nvrtc

    assert min(compiles(nvrtc, a) and a for a in ("75", "80", "90")) == "75"
    assert not compiles(nvrtc, "70") and not compiles(nvrtc, "72")


def compiles(nvrtc, architecture):
    program = nvrtc.createProgram(open.TRIAL, "trial.cu", (), ())
    try:
        nvrtc.compileProgram(program, (f"-arch=sm_{architecture}",))
    except nvrtc.NVRTCError:
        assert "invalid value for --gpu-architecture" in nvrtc.getProgramLog(program)
        return False
    return True
