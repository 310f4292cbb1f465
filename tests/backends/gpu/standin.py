"""A stand-in for CuPy, for machines without a GPU: it behaves like CuPy and runs CUDA source on the
CPU.

Arrays wrap NumPy's and are less friendly than CuPy's: they mix with nothing but Python's numbers
and each other, every NumPy function refuses them, `empty` is full of NaN, reductions give 0-d
device arrays. `waits` counts what would make a program wait for the GPU, `launches` which kernels
ran. A copy on a stream of its own happens when somebody waits for it, not before.

RawModule compiles CUDA C++ with g++ and cuda_on_cpu.h. Arguments are checked harder than by CUDA:
the type of every scalar, the dtype and contiguity of every array.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import operator
import os
import re
import subprocess
import sys
import tempfile
import types
from collections import Counter
from pathlib import Path

import numpy as np

OPTIMISE = "-O2"
HEADER = Path(__file__).with_name("cuda_on_cpu.h")
KERNEL = re.compile(
    r'extern "C" __global__ void(?:\s+__launch_bounds__\([^)]*\))?\s+(\w+)\(([^)]*)\)'
)
SCALARS = {
    "int": np.int32, "unsigned": np.uint32, "long long": np.int64, "float": np.float32,
    "double": np.float64,
}  # fmt: skip
POINTERS = {
    "float": "f4", "double": "f8", "long long": "i8", "unsigned short": "u2", "unsigned char": "u1",
}  # fmt: skip

__version__ = "14.2.0"
waits: Counter[str] = Counter()
launches: list[str] = []


# ------------------------------------------------------------------------------------------- arrays


def _opened(x, sort=object):
    """The NumPy array inside, Python's numbers as they are, sequences of them; nothing else."""
    if isinstance(x, ndarray):
        return x.a
    if isinstance(x, np.ndarray | np.generic):
        raise TypeError(f"Unsupported type {type(x)}: from main memory, where a device array goes")
    return type(x)(map(_opened, x)) if type(x) in (tuple, list) else x


def _closed(x, source=None):
    """As a device array; a view of `source` if it shares its memory."""
    if not isinstance(x, np.ndarray | np.generic):
        return x
    view = isinstance(x, np.ndarray) and source is not None and np.may_share_memory(x, source.a)
    owner = source if not view or source.base is None else source.base
    return ndarray(np.asarray(x), owner if view else None)


def _waiting(name, compute):
    def wait(self, *args, **options):
        waits[name] += 1
        return compute(self, *args, **options)

    return wait


def _binary(function):
    return lambda self, other: _closed(function(self.a, _opened(other)))


def _reflected(function):
    return lambda self, other: _closed(function(_opened(other), self.a))


def _in_place(ufunc):
    def change(self, other):
        ufunc(self.a, _opened(other), out=self.a)
        return self

    return change


class ndarray:
    """A device array around a NumPy array."""

    def __init__(self, a, base=None):
        self.a, self.base = a, base

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use `.get()`.")

    def __array_ufunc__(self, ufunc, *_, **__):
        raise TypeError(f"a NumPy function, {ufunc.__name__}, was called on a device array")

    def __array_function__(self, function, *_, **__):
        raise TypeError(f"a NumPy function, {function.__name__}, was called on a device array")

    def __getitem__(self, index):
        return _closed(self.a[_opened(index)], self)

    def __setitem__(self, index, value):
        self.a[_opened(index)] = _opened(value)

    def __len__(self):
        return len(self.a)

    def __deepcopy__(self, memo):
        return ndarray(self.a.copy(order="K"))

    def __repr__(self):
        waits["repr"] += 1
        return f"device {self.a!r}"

    __hash__ = None

    get = _waiting("get", lambda self: self.a.copy())
    item = _waiting("item", lambda self: self.a.item())
    tolist = _waiting("tolist", lambda self: self.a.tolist())
    tobytes = _waiting("tobytes", lambda self, *args: self.a.tobytes(*args))
    __float__ = _waiting("float", lambda self: float(self.a))
    __int__ = _waiting("int", lambda self: int(self.a))
    __bool__ = _waiting("bool", lambda self: bool(self.a))
    __index__ = _waiting("index", lambda self: operator.index(self.a.item()))

    def set(self, host, stream=None):
        if not isinstance(host, np.ndarray) or host.shape != self.shape or host.dtype != self.dtype:
            raise ValueError(f"set: {host.dtype} {host.shape} into {self.dtype} {self.shape}")
        if stream is None:
            self.a[...] = host
        else:
            stream.todo.append(lambda: self.a.__setitem__(..., host))

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.a.ctypes.data)

    @property
    def device(self):
        return cuda.Device(0)

    @property
    def T(self):
        return _closed(self.a.T, self)


for _name in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize", "strides", "flags"):
    setattr(ndarray, _name, property(lambda self, name=_name: getattr(self.a, name)))
for _name in ("reshape", "transpose", "swapaxes", "ravel", "copy", "astype", "sum", "mean", "max",
              "min", "argmax", "view", "any", "all", "std"):  # fmt: skip
    setattr(
        ndarray,
        _name,
        lambda self, *args, name=_name, **options: _closed(
            getattr(self.a, name)(*map(_opened, args), **options), self
        ),
    )
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    _function = getattr(operator, f"{_name}_" if _name in ("and", "or") else _name)
    setattr(ndarray, f"__{_name}__", _binary(_function))
    setattr(ndarray, f"__r{_name}__", _reflected(_function))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(ndarray, f"__{_name}__", _binary(getattr(operator, _name)))
for _name, _ufunc in (("add", "add"), ("sub", "subtract"), ("mul", "multiply"),
                      ("truediv", "divide")):  # fmt: skip
    setattr(ndarray, f"__i{_name}__", _in_place(getattr(np, _ufunc)))
ndarray.__neg__ = lambda self: _closed(-self.a)
ndarray.__invert__ = lambda self: _closed(~self.a)


def _matmul(a, b):
    """As cuBLAS computes it: TF32 rounds both sides to 10 bits of fraction."""
    a, b = _opened(a), _opened(b)
    if a.dtype == np.float32 and _core.compute_type == _core.COMPUTE_TYPE_TF32:
        a, b = tf32(a), tf32(b)
    with np.errstate(all="ignore"):
        return _closed(a @ b)


def tf32(x):
    bits = (np.ascontiguousarray(x).view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), bits.view(np.float32), x)


ndarray.__matmul__ = _matmul


def empty(shape, dtype=float):
    return ndarray(np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 77, dtype))


def zeros(shape, dtype=float):
    return ndarray(np.zeros(shape, dtype))


def zeros_like(x):
    return ndarray(np.zeros_like(_opened(x)))


def asarray(x):
    """CuPy keeps C and Fortran order; any other becomes C."""
    if isinstance(x, ndarray):
        return x
    order = "F" if x.flags.f_contiguous and not x.flags.c_contiguous else "C"
    return ndarray(np.array(x, order=order))


def ascontiguousarray(x):
    return ndarray(np.ascontiguousarray(_opened(x)))


def broadcast_to(x, shape):
    return _closed(np.broadcast_to(_opened(x), shape), x)


def concatenate(arrays, axis=0):
    return ndarray(np.concatenate(_opened(list(arrays)), axis))


class _Function:
    """An elementwise function of arrays on the device."""

    def __init__(self, ufunc):
        self.ufunc = ufunc

    def __call__(self, *x):
        return _closed(self.ufunc(*map(_opened, x)))

    def at(self, out, indices, values):
        self.ufunc.at(out.a, _opened(indices), _opened(values))


add, exp, log, maximum, sqrt, tanh = map(
    _Function, (np.add, np.exp, np.log, np.maximum, np.sqrt, np.tanh)
)


# ------------------------------------------------------------------------------ devices and streams


class Stream:
    """Copies in the order in which they were asked for; nothing happens before it has to."""

    def __init__(self, non_blocking=False):
        self.todo: list = []
        self.done = 0

    def run_until(self, position):
        while self.done < position:
            self.todo[self.done]()
            self.done += 1

    def wait_event(self, event):
        event.stream.run_until(event.position)

    def synchronize(self):
        waits["synchronize"] += 1
        self.run_until(len(self.todo))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Event:
    def __init__(self, disable_timing=False):
        self.stream, self.position = _null, 0

    def record(self, stream=None):
        self.stream = stream or _null
        self.position = len(self.stream.todo)

    def synchronize(self):
        """Not a wait for the computation: it is the copy's event that is waited for."""
        self.stream.run_until(self.position)


_null = Stream()


class Device:
    compute_capability = "90"

    def __init__(self, number=0):
        self.id = number

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def synchronize(self):
        waits["synchronize"] += 1


class _Pool:
    def used_bytes(self):
        return 3 << 20

    def total_bytes(self):
        return 5 << 20

    def free_all_blocks(self):
        pass


cuda = types.SimpleNamespace(
    Device=Device,
    Stream=Stream,
    Event=Event,
    get_current_stream=lambda: _null,
    runtime=types.SimpleNamespace(
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13020,
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda i: {"name": b"stand-in", "totalGlobalMem": 8 << 30},
    ),
)


def get_default_memory_pool():
    return _Pool()


class _core:
    COMPUTE_TYPE_DEFAULT, COMPUTE_TYPE_TF32 = 1, 3
    compute_type = COMPUTE_TYPE_DEFAULT
    _routines_linalg = types.SimpleNamespace(COMPUTE_TYPE_TF32=COMPUTE_TYPE_TF32)

    @staticmethod
    def get_compute_type(dtype):
        return _core.compute_type

    @staticmethod
    def set_compute_type(dtype, value):
        _core.compute_type = value


# ------------------------------------------------------------------------------------------ kernels


class RawModule:
    def __init__(self, code, options=()):
        self.code, self.options, self.library = code, options, None
        real = next((o.removeprefix("-DREAL=") for o in options if o.startswith("-DREAL=")), "")
        self.kernels = {
            name: [_Parameter(p, real) for p in parameters.split(",")]
            for name, parameters in KERNEL.findall(code)
        }

        for parameters in self.kernels.values():
            for parameter in parameters:
                vectors = parameter.name in ("x", "weight", "dout")
                parameter.reads_16_bytes = vectors and "real4" in code

    def get_function(self, name):
        parameters = self.kernels[name]
        if self.library is None:
            self.library = ctypes.CDLL(compiled(self.code, self.options, self.kernels))

        def kernel(grid, block, args):
            launches.append(name)
            boxes = [p.box(name, a) for p, a in zip(parameters, args, strict=True)]
            pointers = (ctypes.c_void_p * len(boxes))(*[b.ctypes.data for b in boxes])
            sizes = (ctypes.c_uint * 3)(*(*grid, 1, 1)[:3])
            if min(sizes) < 1 or max(sizes[1:]) > 65535:
                raise ValueError(f"{name}: CUDA refuses a grid of {tuple(sizes)}")
            getattr(self.library, f"run_{name}")(sizes, int(block[0]), pointers)

        return kernel


class _Parameter:
    """A parameter of a kernel: its type, and what may be passed."""

    def __init__(self, text, real):
        self.name = text.split()[-1]
        self.type = re.sub(r"\w+$", "", text.strip()).strip()
        self.reads_16_bytes = False
        self.plain = self.type.replace("const ", "").replace("real", real).strip()

    def box(self, name, argument):
        """The argument's bytes, as a NumPy array that holds them."""
        if not self.plain.endswith("*"):
            wanted = SCALARS.get(self.plain)
            if wanted is None and isinstance(argument, np.ndarray) and argument.ndim == 0:
                return argument  # a struct
            if type(argument) is not wanted:
                raise TypeError(f"{name}: {self.type} wants {wanted}, got {type(argument)}")
            return np.array(argument)
        if type(argument) is np.uint64 and argument == 0:
            return np.array(argument)  # no array
        if not isinstance(argument, ndarray):
            raise TypeError(f"{name}: {self.type} wants a device array, got {type(argument)}")
        wanted = POINTERS.get(self.plain[:-1].strip(), "u1")  # a table arrives as bytes
        if argument.dtype != np.dtype(wanted):
            raise TypeError(f"{name}: {self.type} wants {wanted}, got {argument.dtype}")
        if not argument.flags.c_contiguous:
            raise ValueError(f"{name}: a kernel ignores strides; pass a contiguous array")
        if self.reads_16_bytes and argument.a.ctypes.data % 16:
            raise ValueError(f"{name}: {self.name} is read 16 bytes at a time, and not aligned")
        return np.array(argument.a.ctypes.data)


def compiled(code, options, kernels):
    """The path of a library that runs the kernels; compiled once for each source."""
    launchers = "".join(
        f'extern "C" void run_{name}(unsigned* g, unsigned t, void** a) '
        "{ launch({g[0], g[1], g[2]}, t, [=] { "
        + f"{name}({', '.join(f'*({p.type}*)a[{i}]' for i, p in enumerate(ps))}); }}); }}\n"
        for name, ps in kernels.items()
    )
    barriers = "__sync" in code
    source = ("" if barriers else "#define NO_BARRIERS\n") + f'#include "{HEADER}"\n{code}\n'
    defines = [o for o in options if o.startswith("-D")]
    key = hashlib.sha256(
        (source + launchers + str(defines) + OPTIMISE + HEADER.read_text()).encode()
    )
    folder = Path(tempfile.gettempdir()) / f"tinyft-standin-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    library = folder / f"{key.hexdigest()[:32]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            text = Path(scratch, "kernels.cpp")
            text.write_text(source + launchers)
            flags = ["-std=c++17", OPTIMISE, "-w", "-shared", "-fPIC", "-U_FORTIFY_SOURCE"]
            command = ["g++", *flags, *defines, "-o", f"{scratch}/kernels.so", str(text)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"g++ does not compile it:\n{done.stderr}")
            os.replace(f"{scratch}/kernels.so", library)  # two processes may compile at once
    return str(library)


@contextlib.contextmanager
def installed():
    """Within this block `import cupy` finds the stand-in."""
    pinned = types.ModuleType("cupyx")
    pinned.empty_pinned = lambda shape, dtype=float: np.empty(shape, dtype)
    before = {name: sys.modules.get(name) for name in ("cupy", "cupyx")}
    sys.modules |= {"cupy": sys.modules[__name__], "cupyx": pinned}
    try:
        yield sys.modules[__name__]
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
