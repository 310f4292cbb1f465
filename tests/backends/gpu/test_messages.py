"""What is said where a GPU cannot be used; each sentence, and the same with the real CuPy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import types

import numpy as np
import pytest

from tests.backends.gpu import standin
from tinyft import backends
from tinyft.backends.gpu import GpuBackend, open
from tinyft.errors import DeviceError

pytestmark = pytest.mark.slow


def refused(number=0):
    """The sentence that opening a GPU ends in."""
    with pytest.raises(DeviceError) as caught:
        open.open_device(number)
    return str(caught.value)


@pytest.fixture
def cupy(gpu, monkeypatch):
    """The stand-in for one test, which may break it; one wheel is installed."""
    monkeypatch.setattr(open, "cupy_wheels", lambda: ["cupy-cuda13x"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    return monkeypatch


class CUDARuntimeError(RuntimeError):
    """As CuPy's: its status, and a text."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


def raises(error):
    def fails(*_, **__):
        raise error

    return fails


def test_no_cupy(cupy):
    missing = raises(ModuleNotFoundError("No module named 'cupy'"))
    cupy.setattr(open.importlib, "import_module", missing)
    cupy.setattr(open, "cupy_wheels", list)
    assert refused() == (
        'the GPU backend needs CuPy: pip install "tinyft[gpu]" (CUDA 13) or "tinyft[gpu12]" '
        "(CUDA 12)"
    )


def test_half_a_cupy(cupy):
    """What is left of two wheels when one was taken away: no files, or some, but both names."""
    for module in (raises(ModuleNotFoundError("No module named 'cupy'")), types.ModuleType):
        cupy.setattr(open.importlib, "import_module", module)
        sentence = refused()
        assert sentence.startswith("cupy-cuda13x is installed, but does not import (")
        assert sentence.endswith("); pip install --force-reinstall --no-deps cupy-cuda13x")


def test_an_old_cupy(cupy):
    cupy.setattr(standin, "__version__", "13.6.0")
    assert refused() == (
        "CuPy 13.6.0 found; tinyft needs 14 or newer: pip install --upgrade cupy-cuda13x"
    )


def test_two_cupys(cupy):
    cupy.setattr(open, "cupy_wheels", lambda: ["cupy-cuda12x", "cupy-cuda13x"])
    assert refused() == (
        "cupy-cuda12x and cupy-cuda13x are both installed; remove both, then install one"
    )


def test_no_driver(cupy):
    cupy.setattr(standin.cuda.runtime, "driverGetVersion", lambda: 0)
    assert refused() == (
        "CuPy 14.2.0 is installed, but there is no CUDA driver; on a machine without an NVIDIA GPU "
        "use device='cpu'"
    )


def test_an_old_driver(cupy):
    cupy.setattr(standin.cuda.runtime, "driverGetVersion", lambda: 12040)
    assert refused() == (
        "the driver supports CUDA 12.4, and cupy-cuda13x wants 13.0; update the driver, or pip "
        'uninstall cupy-cuda13x, then pip install "tinyft[gpu12]"'
    )
    cupy.setattr(standin.cuda.runtime, "driverGetVersion", lambda: 11080)  # too old for both
    assert refused() == (
        "the driver supports CUDA 11.8, and cupy-cuda13x wants 13.0; update the driver"
    )
    cupy.setattr(standin.cuda.runtime, "runtimeGetVersion", lambda: 12090)
    cupy.setattr(open, "cupy_wheels", lambda: ["cupy-cuda12x"])
    assert refused() == (
        "the driver supports CUDA 11.8, and cupy-cuda12x wants 12.0; update the driver"
    )


def test_a_gpu_that_is_not_there(cupy):
    assert refused(1) == "gpu:1 does not exist; this machine has gpu:0 (stand-in)"
    cupy.setattr(standin.cuda.runtime, "getDeviceCount", lambda: 0)
    assert refused() == "the CUDA driver finds no GPU; use device='cpu'"
    error = CUDARuntimeError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")
    cupy.setattr(standin.cuda.runtime, "getDeviceCount", raises(error))
    assert refused() == "the CUDA driver finds no GPU; use device='cpu'"
    cupy.setenv("CUDA_VISIBLE_DEVICES", "")
    assert refused() == (
        "the CUDA driver finds no GPU (CUDA_VISIBLE_DEVICES is ''); use device='cpu'"
    )


def test_a_driver_that_does_not_work(cupy):
    error = CUDARuntimeError(999, "cudaErrorUnknown: unknown error")
    cupy.setattr(standin.cuda.runtime, "getDeviceCount", raises(error))
    assert refused() == (
        "the CUDA driver does not work (cudaErrorUnknown: unknown error); see what nvidia-smi "
        "says, or use device='cpu'"
    )


LIBRARIES = {
    "memory": (standin, "asarray"),
    "cuBLAS": (standin.ndarray, "__matmul__"),
    "NVRTC": (standin, "RawModule"),
}


@pytest.mark.parametrize("library", ["cuBLAS", "NVRTC"])
def test_a_library_that_is_missing(cupy, library):
    DynamicLibNotFoundError = type("DynamicLibNotFoundError", (RuntimeError,), {})
    for kind in (ImportError, OSError, DynamicLibNotFoundError):
        cupy.setattr(*LIBRARIES[library], raises(kind("no such file\n")))
        assert refused() == (
            f'CuPy cannot load {library}: pip install "cupy-cuda13x[ctk]" (no such file)'
        )


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_that_fails(cupy, library):
    """Nothing is missing, so nothing is to be installed: the card is in use, or its memory."""
    error = CUDARuntimeError(46, "cudaErrorDevicesUnavailable: device(s) is/are busy")
    cupy.setattr(*LIBRARIES[library], raises(error))
    assert refused() == (
        f"gpu:0 (stand-in) fails the first trial of its {library} (cudaErrorDevicesUnavailable: "
        "device(s) is/are busy); see what nvidia-smi says, or use device='cpu'"
    )


def test_an_error_without_words(cupy):
    cupy.setattr(*LIBRARIES["memory"], raises(MemoryError()))
    assert "trial of its memory (MemoryError); see" in refused()
    cupy.setattr(*LIBRARIES["memory"], raises(MemoryError("\n=====\n  Out of memory\n=====")))
    assert "trial of its memory (Out of memory); see" in refused()


def test_an_old_card(cupy):
    cupy.setattr(standin.Device, "compute_capability", "70")
    assert refused() == (
        "gpu:0 (stand-in) has compute capability 7.0, and CUDA 13 serves 7.5 and newer; pip "
        'uninstall cupy-cuda13x, then pip install "tinyft[gpu12]"'
    )
    cupy.setattr(standin.cuda.runtime, "runtimeGetVersion", lambda: 12090)
    assert open.open_device(0).capability == "7.0"
    cupy.setattr(standin.Device, "compute_capability", "120")
    assert open.open_device(0).capability == "12.0"


def test_a_card_without_tf32(cupy):
    cupy.setattr(standin.Device, "compute_capability", "75")
    old = GpuBackend(0)
    assert old.precision == "fp32"
    assert old.description() == (
        "gpu:0 (stand-in, CuPy 14.2.0, convolutions in fp32 (compute capability 7.5 has no TF32))"
    )


def test_the_precision_of_the_environment(cupy):
    cupy.setenv("TINYFT_PRECISION", "fp32")
    assert GpuBackend(0).precision == "fp32"
    cupy.setenv("TINYFT_PRECISION", "half")
    with pytest.raises(DeviceError, match="TINYFT_PRECISION must be tf32 or fp32; got 'half'"):
        GpuBackend(0)
    cupy.delenv("TINYFT_PRECISION")
    assert GpuBackend(0).precision == "tf32"


def test_the_installed_wheels(monkeypatch):
    names = ["numpy", "cupy-cuda13x", "cupy", "cupyx-something", None]
    found = [types.SimpleNamespace(metadata={"Name": name}) for name in names]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: found)
    assert open.cupy_wheels() == ["cupy", "cupy-cuda13x"]


def test_a_dtype_without_kernels(gpu):
    x = gpu.upload(np.ones(4, np.float16))
    with pytest.raises(TypeError, match=r"relu: the GPU has kernels for float32 .* \['float16'\]"):
        gpu.relu(x)


def test_names(gpu):
    for wrong in ("gpu:", "gpu:x", "cuda", "gpu-1"):
        with pytest.raises(DeviceError, match=f"gpu or gpu:NUMBER; got '{wrong}'"):
            backends.get(wrong)
    assert backends.get("gpu") is backends.get("gpu:0")


@pytest.mark.usefixtures("compiled")
def test_the_cpu_is_taken_where_no_gpu_works(monkeypatch):
    from tinyft.cli.opening import describe_backend

    for module in (backends, backends.registry):
        monkeypatch.setattr(module, "why_no_gpu", lambda: "there is no CUDA driver")
    assert backends.resolve("auto") == "auto"
    assert not backends.gpu_available() and backends.gpu_info() == "there is no CUDA driver"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert describe_backend("auto").endswith("; no GPU: there is no CUDA driver")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "numba" or None)
    assert describe_backend("auto").endswith(("thread", "threads"))
