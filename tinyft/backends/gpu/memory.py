"""The GPU's memory: arrays there and back, the launch of a kernel on them, and batches that travel
while the one before is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVarTuple

import numpy as np

from tinyft.backends.gpu.open import Gpu
from tinyft.backends.reference import Backend
from tinyft.errors import DeviceError

FOLDER = Path(__file__).parent
THREADS = 256  # of a block that computes element by element
MOST_BLOCKS = 4096  # of such blocks; each thread then takes several elements
NOTHING = np.uint64(0)  # the pointer of an array that is not there

Array = Any  # cupy.ndarray, which exists only where CuPy does
Arrays = TypeVarTuple("Arrays")  # some arrays, of which some may be None


class Memory(Backend):
    """Holds the arrays of one GPU, and hands them to kernels."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.cupy = gpu, gpu.cupy
        self._module = functools.cache(self._compile)
        self._function = functools.cache(self._find)

    # ---------------------------------------------------------------------------------- there, back

    def current(self) -> AbstractContextManager:
        return self.cupy.cuda.Device(self.gpu.number)

    def upload(self, x: Array) -> Array:
        """CuPy keeps C and Fortran order only; a convolution's weight has another, so the axes are
        put into memory's order for the way.
        """
        if isinstance(x, self.cupy.ndarray):
            return x
        axes = memory_order(x)
        with self.current():
            return self.cupy.asarray(np.asarray(x.transpose(axes), order="C")).transpose(back(axes))

    def download(self, x: Array) -> np.ndarray:
        axes = memory_order(x)
        with self.current():
            return self.contiguous(x.transpose(axes)).get().transpose(back(axes))

    def uploads(self, batches: Iterator) -> Iterator:
        with self.current():
            yield from send_ahead(self.cupy, batches)

    def synchronize(self) -> None:
        self.cupy.cuda.Device(self.gpu.number).synchronize()

    def peak_bytes(self) -> int:
        """Return what CuPy's pool holds: it gives nothing back by itself."""
        with self.current():
            return self.cupy.get_default_memory_pool().total_bytes()

    # ---------------------------------------------------------------------------------- new arrays

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        with self.current():
            return self.cupy.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        with self.current():
            return self.cupy.zeros(shape, dtype)

    def zeros_like(self, x: Array) -> Array:
        axes = memory_order(x)
        return self.zeros(tuple(x.shape[a] for a in axes), x.dtype).transpose(back(axes))

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        out = self.empty(shape, x.dtype)
        out[...] = x
        return out

    def concatenate(self, arrays: list[Array], axis: int) -> Array:
        with self.current():
            return self.cupy.concatenate(arrays, axis)

    def elementary(self, function: str, *x: Array) -> Array:
        with self.current():
            return getattr(self.cupy, function)(*x)

    def add_at(self, shape: tuple[int, ...], at: tuple, values: Array) -> Array:
        out = self.zeros(shape, values.dtype)
        with self.current():
            self.cupy.add.at(out, at, values)
        return out

    # -------------------------------------------------------------------------------------- kernels

    def ready(self, kernel: str, *arrays: *Arrays) -> tuple[*Arrays]:
        """The arrays as kernels take them: `check`ed, each one piece of memory, None as it is."""
        self.check(kernel, arrays)
        pieces = tuple(x if x is None else self.contiguous(x) for x in arrays)
        return pieces  # type: ignore[return-value]  # as many, each of the type that it came with

    def check(self, kernel: str, arrays: Iterable[Array | None]) -> None:
        """Refuse arrays that are not on this GPU, or not of one dtype that kernels have.

        Raises: DeviceError for an array that is elsewhere, TypeError for a dtype without kernels
        """
        dtypes = set()
        for x in arrays:
            if x is None:
                continue
            if not isinstance(x, self.cupy.ndarray):
                raise DeviceError(
                    f"{kernel}: expected arrays on {self.name}, got one in main memory; move it "
                    f"with backends.place(array, {self.name!r}), or its Tensor with .to()"
                )
            if x.device.id != self.gpu.number:
                raise DeviceError(
                    f"{kernel}: expected arrays on {self.name}, got one on gpu:{x.device.id}; move "
                    "it, or its Tensor with .to()"
                )
            dtypes.add(x.dtype.name)
        if len(dtypes) > 1 or dtypes - {"float32", "float64"}:
            raise TypeError(
                f"{kernel}: the GPU has kernels for float32 and for float64, got {sorted(dtypes)}"
            )

    def contiguous(self, x: Array) -> Array:
        """x itself, or a copy in one piece (of at least one axis, as CuPy makes them)."""
        return x if x.flags.c_contiguous else self.cupy.ascontiguousarray(x)

    def launch(
        self,
        kernel: str,
        grid: tuple[int, ...],
        arguments: tuple,
        *,
        dtype: np.dtype,
        threads: int = THREADS,
        defines: tuple[str, ...] = (),
    ) -> None:
        """Run `file.function` with `real` as the dtype says. Whole numbers go as int, others as
        real; a NumPy scalar goes as what it is, None as no array.
        """
        real = {"float32": "float", "float64": "double"}[dtype.name]
        function = self._function(kernel, (f"-DREAL={real}", *defines))
        number = {"float": np.float32, "double": np.float64}[real]
        converted = []
        for argument in arguments:
            if argument is None:
                argument = NOTHING
            elif isinstance(argument, int):
                argument = np.int32(argument)  # True is 1
            elif isinstance(argument, float) and not isinstance(argument, np.generic):
                argument = number(argument)
            converted.append(argument)
        with self.current():
            function(grid, (threads,), tuple(converted))

    def launch_each(self, kernel: str, size: int, arguments: tuple, *, dtype: np.dtype) -> None:
        """Run a kernel that computes `size` elements, if there are any."""
        if size:
            blocks = min(-(-size // THREADS), MOST_BLOCKS)
            self.launch(kernel, (blocks,), arguments, dtype=dtype)

    def _find(self, kernel: str, defines: tuple[str, ...]) -> Any:
        """`file.function`, compiled when first asked for."""
        file, _, function = kernel.partition(".")
        return self._module(file, defines).get_function(function)

    def _compile(self, file: str, defines: tuple[str, ...]) -> Any:
        """CuPy compiles with NVRTC, and keeps what comes out on disk for the next process."""
        code = (FOLDER / f"{file}.cu").read_text()
        return self.cupy.RawModule(code=code, options=("-std=c++17", *defines))


def memory_order(x: Array) -> tuple[int, ...]:
    """The axes of x from the widest step in memory to the narrowest."""
    return tuple(sorted(range(x.ndim), key=lambda axis: -x.strides[axis]))


def back(axes: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes a permutation of axes."""
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


# ------------------------------------------------------------------------------------------ uploads


class Slot:
    """A buffer in pinned memory, which the system may not move, so that a copy needs no help from
    the processor, and one on the GPU; each as large as the largest batch so far.

    Two slots take turns: one batch travels while the GPU computes on the one before. Copies have a
    stream of their own, so they run beside the kernels. Two events a slot keep the order:

        pinned buffer    is filled again when the copy out of it has happened      (the host waits)
        GPU's buffer     is filled again when the step that read it has happened   (the copy waits)
        step             begins when its batch has arrived                         (kernels wait)

    The host's wait is for the batch before the last one, which has usually been there for long; it
    also keeps the host from running more than two steps ahead of the GPU.
    """

    def __init__(self, cupy: Any):
        self.cupy = cupy
        self.pinned, self.on_gpu = np.empty(0, np.uint8), cupy.empty(0, np.uint8)
        self.arrived = cupy.cuda.Event(disable_timing=True)
        self.consumed = cupy.cuda.Event(disable_timing=True)

    def send(self, images: np.ndarray, stream: Any) -> Array:
        """Begin to copy; the array on the GPU that will hold the images."""
        self.arrived.synchronize()
        if self.pinned.size < images.size:
            import cupyx  # where CuPy is, so is it

            self.consumed.synchronize()
            self.pinned = cupyx.empty_pinned(images.size, np.uint8)
            self.on_gpu = self.cupy.empty(images.size, np.uint8)
            self.consumed.record()  # the pool may hand out memory that a kernel still reads
        pinned = self.pinned[: images.size].reshape(images.shape)
        pinned[...] = images
        stream.wait_event(self.consumed)
        sent = self.on_gpu[: images.size].reshape(images.shape)
        sent.set(pinned, stream=stream)
        self.arrived.record(stream)
        return sent

    def use(self, batch: Any, images: Array) -> Iterator:
        """Yield the batch with its images on the GPU, which are lent until the caller goes on."""
        computing = self.cupy.cuda.get_current_stream()
        computing.wait_event(self.arrived)
        yield replace(batch, images=images)
        self.consumed.record(computing)


def send_ahead(cupy: Any, batches: Iterator) -> Iterator:
    """Yield the same batches with `images` on the GPU: lent until the next one is asked for.

    A batch needs an array `images` of bytes, and is a dataclass; its labels stay where they are,
    since the loss checks them before it sends them.
    """
    stream = cupy.cuda.Stream(non_blocking=True)
    slots = [Slot(cupy), Slot(cupy)]
    sent = None
    for number, batch in enumerate(batches):
        slot = slots[number % 2]
        following = slot, batch, slot.send(batch.images, stream)
        if sent is not None:
            yield from sent[0].use(*sent[1:])
        sent = following
    if sent is not None:
        yield from sent[0].use(*sent[1:])
