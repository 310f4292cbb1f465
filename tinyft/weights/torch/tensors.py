"""From a torch checkpoint's storages to NumPy arrays.

torch keeps values in *storages*: flat runs of one dtype.  A tensor is a view of one: an offset, a
size and a stride per dimension, counted in elements.  Transposed, sliced and channels-last tensors
are saved as such views, and several tensors may share one storage.

NumPy has the same idea (`as_strided`), but trusts its caller: a stride that is a lie reads memory
that is not ours.  So each view is checked against its storage when its record is made, and each
storage against the bytes that the file has for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeGuard

import numpy as np

from tinyft.errors import WeightsError

# Names as in torch.FloatStorage; the value is NumPy's dtype, without its byte order.
_DTYPES = {
    "Float": "f4",
    "Double": "f8",
    "Half": "f2",
    "BFloat16": "u2",  # NumPy has no bfloat16: its bits are the upper half of a float32
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}
UNTYPED = "Untyped"
MOST_DIMENSIONS = 8
# A view may repeat elements (stride 0), so its size is no sign of the bytes behind it.  An expanded
# BatchNorm vector is fine; a million million floats over four bytes are not.
_LARGEST_EXPANSION = 1 << 20


@dataclass(frozen=True)
class Inert:
    """Stands for an object that is not wanted; `name` says what it would have been."""

    name: str


@dataclass(frozen=True)
class StorageType:
    """A dtype tag: `Float` for torch.FloatStorage."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A flat run of `count` values in the file, found by its key."""

    type: str
    key: str
    count: int

    @property
    def itemsize(self) -> int:
        """Return bytes per value. Raises: WeightsError for types of no fixed, known size."""
        if self.type == UNTYPED:
            return 1
        if self.type not in _DTYPES:
            raise WeightsError(
                f"the file holds a torch.{self.type[:40]}Storage (quantised, complex or newer than "
                f"tinyft); convert it to float32 in PyTorch"
            )
        return np.dtype(_DTYPES[self.type]).itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor still in its file: a view of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """Return the stored dtype, in NumPy's spelling, or `bfloat16`."""
        return "bfloat16" if self.storage.type == "BFloat16" else "<" + _DTYPES[self.storage.type]


def storage_from_id(identity: object) -> Storage:
    """Read a persistent id `('storage', type, key, location, count, ...)`.

    Raises: WeightsError for a pickled module, a view of a storage (2016's files), or nonsense.
    """
    if isinstance(identity, tuple) and identity[:1] == ("module",):
        raise WeightsError("this is a whole pickled model; in PyTorch, save model.state_dict()")
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise WeightsError("the pickle refers to something that is no storage; the file is damaged")
    kind, key, count = identity[1], identity[2], identity[4]
    if not (isinstance(kind, StorageType) and isinstance(key, str) and _is_count(count)):
        raise WeightsError("the pickle describes a storage wrongly; the file is damaged")
    if len(identity) == 6 and identity[5] is not None:
        raise WeightsError("the file is from torch 0.1 (views of storages); save it again")
    return Storage(kind.name, key, count)


def stored_tensor(
    storage: object, offset: object, shape: object, strides: object
) -> StoredTensor | Inert:
    """Record a view, checked to lie inside its storage; Inert for dtypes that NumPy lacks.

    Raises: WeightsError if it does not lie there, or is described wrongly.
    """
    if not isinstance(storage, Storage):
        raise WeightsError("a tensor of the pickle has no storage; the file is damaged")
    if storage.type not in _DTYPES:
        return Inert(f"tensor of a torch.{storage.type[:40]}Storage")
    if not (are_counts(shape) and are_counts(strides) and _is_count(offset)):
        raise WeightsError("a tensor's offset, size or stride is no count; the file is damaged")
    if len(shape) != len(strides):
        raise WeightsError("a tensor has more sizes than strides; the file is damaged")
    count = storage.count
    elements = math.prod(shape)
    steps = zip(shape, strides, strict=True)
    last = offset + sum((size - 1) * stride for size, stride in steps)
    if elements and last >= count:
        raise WeightsError(
            f"a tensor of shape {shape} reaches element {last} of a storage of {count}; "
            f"the file is damaged or made to deceive"
        )
    if elements > max(count, _LARGEST_EXPANSION):
        raise WeightsError(
            f"a tensor of shape {shape} repeats a storage of {count} numbers; call "
            f".contiguous() on it before saving"
        )
    return StoredTensor(storage, offset, shape, strides)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 1 << 63


def are_counts(values: object) -> TypeGuard[tuple[int, ...]]:
    """Tell whether they can be a shape: a tuple of at most MOST_DIMENSIONS whole numbers."""
    if not isinstance(values, tuple) or len(values) > MOST_DIMENSIONS:
        return False
    return all(_is_count(value) for value in values)


def to_array(tensor: StoredTensor, raw: bytes, order: Literal["<", ">"]) -> np.ndarray:
    """Return the tensor as a new C-contiguous array of native byte order; bfloat16 as float32.

    `raw` are the bytes of its storage, `order` is their byte order.
    Raises: WeightsError if the storage has other than `count * itemsize` bytes.
    """
    storage = tensor.storage
    if len(raw) != storage.count * storage.itemsize:
        raise WeightsError(
            f"storage {storage.key[:40]} has {len(raw)} bytes, {storage.count} numbers were "
            f"promised; the file is damaged"
        )
    flat = np.frombuffer(raw, np.dtype(_DTYPES[storage.type]).newbyteorder(order))
    if math.prod(tensor.shape) == 0:
        flat, steps = np.empty(0, flat.dtype), (0,) * len(tensor.shape)
    else:
        flat, steps = flat[tensor.offset :], tensor.strides
    view = np.lib.stride_tricks.as_strided(
        flat, tensor.shape, [step * flat.itemsize for step in steps], writeable=False
    )
    array = np.array(view, dtype=flat.dtype.newbyteorder("="), order="C")
    return bfloat16_to_float32(array) if storage.type == "BFloat16" else array


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """Widen bfloat16, a float32 without its lower 16 bits: exact. bits is uint16, any shape."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
