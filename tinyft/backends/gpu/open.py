"""Opening a GPU: each thing that can be missing, and what to do about it in one sentence.

Next: tinyft/backends/gpu/memory.py
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from tinyft.errors import DeviceError

OLDEST = 14  # CuPy 13 and older: other defaults in what is used here
TRIAL = 'extern "C" __global__ void trial(float* x) { x[threadIdx.x] += 1; }'


@dataclass(frozen=True)
class Gpu:
    """A GPU that works: CuPy, its number, and what it says of itself."""

    cupy: ModuleType
    number: int
    name: str
    capability: str  # "9.0"
    version: str  # of CuPy

    @property
    def has_tf32(self) -> bool:
        return int(self.capability.split(".")[0]) >= 8


def open_device(number: int) -> Gpu:
    """The GPU of that number, after one matrix product and one kernel of ours ran on it.

    Raises: DeviceError that says what is missing and how to get it
    """
    cupy = _import_cupy()
    wheels = cupy_wheels()
    _check_wheels(cupy, wheels)
    _check_driver(cupy, wheels)
    count = _count(cupy)
    names = {f"gpu:{i}": _name(cupy, i) for i in range(count)}
    if number >= count:
        found = ", ".join(f"{gpu} ({name})" for gpu, name in names.items())
        raise DeviceError(f"gpu:{number} does not exist; this machine has {found}")
    digits = str(cupy.cuda.Device(number).compute_capability)
    _try_libraries(cupy, number, wheels)
    capability = f"{digits[:-1]}.{digits[-1]}"
    return Gpu(cupy, number, names[f"gpu:{number}"], capability, cupy.__version__)


def cupy_wheels() -> list[str]:
    """The installed packages that bring CuPy, as `cupy-cuda13x`."""
    found = {d.metadata["Name"] or "" for d in importlib.metadata.distributions()}
    return sorted(name for name in found if re.fullmatch(r"cupy(-cuda\d+x)?", name))


def _import_cupy() -> ModuleType:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise DeviceError(
            'the GPU backend needs CuPy: pip install "tinyft[gpu]" (CUDA 13) or "tinyft[gpu12]" '
            "(CUDA 12)"
        ) from error


def _check_wheels(cupy: ModuleType, wheels: list[str]) -> None:
    if int(cupy.__version__.split(".")[0]) < OLDEST:
        raise DeviceError(f"CuPy {cupy.__version__} found; tinyft needs {OLDEST} or newer")
    if len(wheels) > 1:
        raise DeviceError(
            f"{' and '.join(wheels)} are both installed; remove both, then install one"
        )


def _check_driver(cupy: ModuleType, wheels: list[str]) -> None:
    version = cupy.cuda.runtime.driverGetVersion()  # 12040 is 12.4
    if version == 0:
        raise DeviceError(
            f"CuPy {cupy.__version__} is installed, but there is no CUDA driver; on a machine "
            "without an NVIDIA GPU use device='cpu'"
        )
    wanted = int(re.sub(r"\D", "", wheels[0]) or 0) if wheels else 0
    if version // 1000 < wanted:
        raise DeviceError(
            f"the driver supports CUDA {version // 1000}.{version % 1000 // 10}, and {wheels[0]} "
            f'wants {wanted}.0; update the driver, or pip install "tinyft[gpu12]" instead'
        )


def _count(cupy: ModuleType) -> int:
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy's own class, which exists only where CuPy does
        raise DeviceError(f"the CUDA driver finds no GPU ({error}); use device='cpu'") from error
    if count == 0:
        raise DeviceError("the CUDA driver finds no GPU; use device='cpu'")
    return count


def _name(cupy: ModuleType, number: int) -> str:
    name = cupy.cuda.runtime.getDeviceProperties(number)["name"]
    return name.decode() if isinstance(name, bytes) else str(name)


def _try_libraries(cupy: ModuleType, number: int, wheels: list[str]) -> None:
    """CuPy loads CUDA's libraries when they are first needed, so that is done here."""
    wheel = wheels[0] if wheels else "cupy-cuda13x"
    with cupy.cuda.Device(number):
        ones = cupy.asarray(np.ones((4, 4), np.float32))
        for library, attempt in (("cuBLAS", lambda: ones @ ones), ("NVRTC", lambda: _launch(cupy))):
            try:
                attempt()
            except Exception as error:  # whatever CuPy raises: ImportError, RuntimeError, its own
                raise DeviceError(
                    f'CuPy cannot load {library}: pip install "{wheel}[ctk]" ({error})'
                ) from error


def _launch(cupy: ModuleType) -> None:
    kernel = cupy.RawModule(code=TRIAL).get_function("trial")
    kernel((1,), (4,), (cupy.asarray(np.zeros(4, np.float32)),))
