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


def refused(number=0):
    """The sentence that opening a GPU ends in."""
    with pytest.raises(DeviceError) as caught:
        open.open_device(number)
    return str(caught.value)


@pytest.fixture
def cupy(gpu, monkeypatch):
    """The stand-in for one test, which may break it; one wheel is installed."""
    monkeypatch.setattr(open, "cupy_wheels", lambda: ["cupy-cuda13x"])
    return monkeypatch


def test_no_cupy(cupy):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    cupy.setattr(open.importlib, "import_module", missing)
    assert refused() == (
        'the GPU backend needs CuPy: pip install "tinyft[gpu]" (CUDA 13) or "tinyft[gpu12]" '
        "(CUDA 12)"
    )


def test_an_old_cupy(cupy):
    cupy.setattr(standin, "__version__", "13.6.0")
    assert refused() == "CuPy 13.6.0 found; tinyft needs 14 or newer"


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
        'install "tinyft[gpu12]" instead'
    )


def test_a_gpu_that_is_not_there(cupy):
    assert refused(1) == "gpu:1 does not exist; this machine has gpu:0 (stand-in)"
    cupy.setattr(standin.cuda.runtime, "getDeviceCount", lambda: 0)
    assert refused() == "the CUDA driver finds no GPU; use device='cpu'"

    def fails():
        raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

    cupy.setattr(standin.cuda.runtime, "getDeviceCount", fails)
    assert refused().startswith("the CUDA driver finds no GPU (cudaErrorNoDevice: ")


@pytest.mark.parametrize("library", ["cuBLAS", "NVRTC"])
def test_a_library_that_is_missing(cupy, library):
    def fails(*_, **__):
        raise ImportError("no such file")

    if library == "cuBLAS":
        cupy.setattr(standin.ndarray, "__matmul__", fails)
    else:
        cupy.setattr(standin, "RawModule", fails)
    assert refused() == (
        f'CuPy cannot load {library}: pip install "cupy-cuda13x[ctk]" (no such file)'
    )


def test_an_old_card_works_in_fp32(cupy):
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


def test_the_cpu_is_taken_where_no_gpu_works(monkeypatch):
    from tinyft.cli.options import describe_backend

    monkeypatch.setattr(backends, "why_no_gpu", lambda: "there is no CUDA driver")
    assert backends.resolve("auto") == "auto"
    assert not backends.gpu_available() and backends.gpu_info() == "there is no CUDA driver"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert describe_backend("auto").endswith("threads; no GPU: there is no CUDA driver")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "numba" or None)
    assert describe_backend("auto").endswith("threads")
