"""Opening a GPU: each thing that can be missing, and what to do about it in one sentence."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from tinyft.errors import DeviceError

OLDEST = 14  # CuPy 13 and older: other defaults in what is used here
OLDEST_CARD = 7.5  # that CUDA 13 compiles for: its NVRTC refuses sm_70
NO_DEVICE = 100  # the status that is cudaErrorNoDevice
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
    wheels = cupy_wheels()
    cupy = _import_cupy(wheels)
    _check_driver(cupy, wheels)
    names = _names(cupy)
    if number >= len(names):
        present = ", ".join(f"{gpu} ({name})" for gpu, name in names.items())
        raise DeviceError(f"gpu:{number} does not exist; this machine has {present}{_hidden()}")
    gpu = f"gpu:{number} ({names[f'gpu:{number}']})"
    digits = str(cupy.cuda.Device(number).compute_capability)
    capability = f"{digits[:-1]}.{digits[-1]}"
    if _cuda(cupy) == 13 and float(capability) < OLDEST_CARD:
        raise DeviceError(
            f"{gpu} has compute capability {capability}, and CUDA 13 serves {OLDEST_CARD} and "
            f"newer; {_install_for_12(wheels)}"
        )
    _try_libraries(cupy, number, gpu, wheels)
    return Gpu(cupy, number, names[f"gpu:{number}"], capability, cupy.__version__)


def cupy_wheels() -> list[str]:
    """The installed packages that bring CuPy, as `cupy-cuda13x`."""
    installed = {d.metadata["Name"] or "" for d in importlib.metadata.distributions()}
    return sorted(name for name in installed if re.fullmatch(r"cupy(-cuda\d+x)?", name))


def _import_cupy(wheels: list[str]) -> ModuleType:
    if len(wheels) > 1:
        raise DeviceError(
            f"{' and '.join(wheels)} are both installed; remove both, then install one"
        )
    try:
        cupy = importlib.import_module("cupy")
        version = cupy.__version__
    # Taking away one wheel of two leaves a folder without a version, or without parts.
    except (ImportError, AttributeError) as error:
        if wheels:
            raise DeviceError(
                f"{wheels[0]} is installed, but does not import ({_first_line(error)}); "
                f"pip install --force-reinstall --no-deps {wheels[0]}"
            ) from error
        raise DeviceError(
            'the GPU backend needs CuPy: pip install "tinyft[gpu]" (CUDA 13) or "tinyft[gpu12]" '
            "(CUDA 12)"
        ) from error
    if int(version.split(".")[0]) < OLDEST:
        raise DeviceError(
            f"CuPy {version} found; tinyft needs {OLDEST} or newer: pip install --upgrade "
            f"{wheels[0] if wheels else 'cupy'}"
        )
    return cupy


def _check_driver(cupy: ModuleType, wheels: list[str]) -> None:
    version = cupy.cuda.runtime.driverGetVersion()  # 12040 is 12.4
    if version == 0:
        raise DeviceError(
            f"CuPy {cupy.__version__} is installed, but there is no CUDA driver; on a machine "
            "without an NVIDIA GPU use device='cpu'"
        )
    wanted, has = _cuda(cupy), version // 1000
    if has < wanted:
        other = f", or {_install_for_12(wheels)}" if (has, wanted) == (12, 13) else ""
        raise DeviceError(
            f"the driver supports CUDA {has}.{version % 1000 // 10}, and "
            f"{wheels[0] if wheels else 'CuPy'} wants {wanted}.0; update the driver{other}"
        )


def _cuda(cupy: ModuleType) -> int:
    """13 for the CUDA that CuPy was built with; any driver of that number or a newer will do."""
    return cupy.cuda.runtime.runtimeGetVersion() // 1000


def _install_for_12(wheels: list[str]) -> str:
    """The commands that get CuPy for CUDA 12. Two of them at once do not work."""
    return f'pip uninstall {wheels[0] if wheels else "cupy"}, then pip install "tinyft[gpu12]"'


def _names(cupy: ModuleType) -> dict[str, str]:
    """The GPUs that the driver shows: {"gpu:0": "NVIDIA H100"}, at least one."""
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
        gpus = [runtime.getDeviceProperties(number)["name"] for number in range(count)]
    except Exception as error:  # CuPy's own class, which exists only where CuPy does
        if getattr(error, "status", None) != NO_DEVICE:
            raise DeviceError(
                f"the CUDA driver does not work ({_first_line(error)}); see what nvidia-smi says, "
                "or use device='cpu'"
            ) from error
        gpus = []
    if not gpus:
        raise DeviceError(f"the CUDA driver finds no GPU{_hidden()}; use device='cpu'")
    return {f"gpu:{number}": name.decode() for number, name in enumerate(gpus)}


def _hidden() -> str:
    """A note where the environment chooses what the driver shows."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if shown is None else f" (CUDA_VISIBLE_DEVICES is {shown!r})"


def _try_libraries(cupy: ModuleType, number: int, gpu: str, wheels: list[str]) -> None:
    """CuPy loads CUDA's libraries when they are first needed, so that is done here."""
    wheel = wheels[0] if wheels else "cupy-cuda13x"
    trials = {
        "memory": lambda: cupy.asarray(np.ones((4, 4), np.float32)),
        "cuBLAS": lambda: _multiply(cupy),
        "NVRTC": lambda: _launch(cupy),
    }
    for library, trial in trials.items():
        try:
            with cupy.cuda.Device(number):
                trial()
        except Exception as error:  # whatever CuPy raises: ImportError, RuntimeError, its own
            if _is_missing(error):
                raise DeviceError(
                    f'CuPy cannot load {library}: pip install "{wheel}[ctk]" ({_first_line(error)})'
                ) from error
            raise DeviceError(
                f"{gpu} fails the first trial of its {library} ({_first_line(error)}); see what "
                "nvidia-smi says, or use device='cpu'"
            ) from error


def _is_missing(error: Exception) -> bool:
    """True if CuPy found no library. It looks for NVRTC with a package that has its own class."""
    return isinstance(error, ImportError | OSError) or (
        type(error).__name__ == "DynamicLibNotFoundError"
    )


def _first_line(error: Exception) -> str:
    """The first line that says something: CuPy frames some texts with lines of '=' and blank ones.
    The error's class where there is no text.
    """
    said = [line.strip() for line in str(error).splitlines() if re.search(r"\w", line)]
    return said[0] if said else type(error).__name__


def _multiply(cupy: ModuleType) -> None:
    ones = cupy.asarray(np.ones((4, 4), np.float32))
    (ones @ ones).get()  # waits, so that an error shows here


def _launch(cupy: ModuleType) -> None:
    x = cupy.asarray(np.zeros(4, np.float32))
    cupy.RawModule(code=TRIAL).get_function("trial")((1,), (4,), (x,))
    x.get()
