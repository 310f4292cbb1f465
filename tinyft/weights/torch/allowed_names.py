"""The names that a torch checkpoint may mention, and what each of them means here.

A name never imports anything.  It is one of four things:

- a *rebuilder*: a function of ours with the same arguments as torch's, such as _rebuild_tensor_v2;
- a *storage type*: a dtype tag, such as torch.FloatStorage;
- a harmless companion of training checkpoints (an optimizer, an argparse.Namespace, a NumPy
  scalar), which becomes an *Inert* stand-in: it absorbs every call and holds nothing;
- anything else, which refuses the file, unless the caller wants those inert, too.  That is still
  safe, since nothing but our own classes is ever called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinyft.errors import WeightsError
from tinyft.weights.torch.tensors import (
    MOST_DIMENSIONS,
    UNTYPED,
    StorageType,
    StoredTensor,
    UnreadableTensorError,
    stored_tensor,
)


@dataclass(frozen=True)
class Inert:
    """Stands for an object that is not wanted; ``name`` says what it would have been."""

    name: str


@dataclass(frozen=True)
class Rebuilder:
    """A function of ours that stands for one of torch's."""

    rebuild: Callable[..., object]


def describe(value: object) -> str:
    """A short word for an unpickled value, for messages.

    Never the repr of a container: through the memo, forty nested pairs are 2^40 items long.
    """
    if isinstance(value, Inert):
        return value.name[:80]
    if isinstance(value, (bool, int, float, str, type(None))):
        return f"{value!r:.40}"
    return type(value).__name__


# A dict hashes its keys; a crafted key (tuples nested a million deep, integers that all collide)
# could crash or stall it.  Checkpoints have names and small numbers.
_KEY_TYPES = (str, int, float, bool, type(None))
_LARGEST_KEY = 1 << 63


def is_plain_key(key: object) -> bool:
    """Whether a key may be hashed; an item of any other key is of no use here, and left out."""
    return isinstance(key, _KEY_TYPES) and not (isinstance(key, int) and abs(key) > _LARGEST_KEY)


def _ordered_dict(pairs: object = ()) -> dict[object, object]:
    """collections.OrderedDict: empty, or (as Python 2 wrote it) with a list of pairs."""
    if not isinstance(pairs, (list, tuple)):
        raise TypeError(f"an OrderedDict is made of a list of pairs, not of a {describe(pairs)}")
    return {key: value for key, value in pairs if is_plain_key(key)}


def _tensor(storage, offset, size, stride, *rest) -> StoredTensor | Inert:
    """torch._utils._rebuild_tensor and _v2, whose rest is requires_grad, hooks, [metadata].

    metadata is not harmless: {'neg': True} flips the sign of every number.
    """
    if len(rest) > 2 and rest[2]:
        return Inert("tensor with metadata (a negative or conjugate view)")
    try:
        return stored_tensor(storage, offset, size, stride)
    except UnreadableTensorError as error:
        return Inert(str(error))


def _tensor_v3(storage, offset, size, stride, grad, hooks, dtype, *_):
    """torch._utils._rebuild_tensor_v3: the dtypes without a storage class (uint16, float8)."""
    return Inert(f"tensor of dtype {describe(dtype)}")


def _parameter(tensor, *_):
    """torch._utils._rebuild_parameter: a parameter is its tensor."""
    if not isinstance(tensor, (StoredTensor, Inert)):
        raise TypeError("a parameter holds no tensor")
    return tensor


def _size(dimensions: object = ()) -> tuple[object, ...]:
    """torch.Size: a tuple.

    Nothing else is copied: through the memo, one long text could become a million tuples.
    """
    if not isinstance(dimensions, (list, tuple)) or len(dimensions) > MOST_DIMENSIONS:
        raise TypeError(f"a torch.Size is at most {MOST_DIMENSIONS} numbers")
    return tuple(dimensions)


_REBUILDERS: dict[str, Rebuilder] = {
    "collections.OrderedDict": Rebuilder(_ordered_dict),
    "torch._utils._rebuild_tensor": Rebuilder(_tensor),  # 2017's, in the CIFAR ResNets
    "torch._utils._rebuild_tensor_v2": Rebuilder(_tensor),
    "torch._utils._rebuild_tensor_v3": Rebuilder(_tensor_v3),
    "torch._utils._rebuild_parameter": Rebuilder(_parameter),
    "torch.Size": Rebuilder(_size),
}

# Names met in training checkpoints; ending in a dot, whole modules, in _rebuild_, whatever torch
# rebuilds.
_HARMLESS = (
    "__builtin__.bytearray",
    "__builtin__.complex",
    "__builtin__.dict",
    "__builtin__.list",
    "__builtin__.object",
    "__builtin__.set",
    "_codecs.encode",
    "argparse.Namespace",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.dict",
    "builtins.list",
    "builtins.object",
    "builtins.set",
    "collections.Counter",
    "collections.defaultdict",
    "copy_reg._reconstructor",
    "copyreg._reconstructor",
    "datetime.",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "omegaconf.",
    "pathlib.",
    "torch.Tensor",
    "torch._utils._rebuild_",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.optim.",
    "torch.per_channel_affine",
    "torch.per_tensor_affine",
    "torch.serialization._get_layout",
    "typing.Any",
    "yacs.config.CfgNode",
)
_TORCH_DTYPES = frozenset(
    [
        *("torch.float16", "torch.float32", "torch.float64", "torch.bfloat16", "torch.bool"),
        *("torch.half", "torch.float", "torch.double", "torch.short", "torch.int", "torch.long"),
        *("torch.int8", "torch.int16", "torch.int32", "torch.int64"),
        *("torch.uint8", "torch.uint16", "torch.uint32", "torch.uint64"),
        *("torch.complex32", "torch.complex64", "torch.complex128"),
        *("torch.float8_e4m3fn", "torch.float8_e4m3fnuz"),
        *("torch.float8_e5m2", "torch.float8_e5m2fnuz"),
        *("torch.qint8", "torch.qint32", "torch.quint8"),
    ]
)
# Classes that only a pickled model, not a state dict, mentions.
_MODULES = ("torch.nn.modules.", "torchvision.models.", "timm.models.", "fastai.", "torch.jit.")


def meaning_of(name: str) -> Rebuilder | StorageType | Inert:
    """What a global means; a name outside the allow-list is Inert (check_names comes first)."""
    if name in _REBUILDERS:
        return _REBUILDERS[name]
    storage = _storage_type(name)
    return Inert(name) if storage is None else storage


def check_names(names: list[str], ignore_unknown: bool) -> None:
    """Refuse a file by the names it mentions.

    Raises: WeightsError for a pickled model, or (unless ``ignore_unknown``) for names outside
    the allow-list, each of which is listed.
    """
    modules = [name for name in names if name.startswith(_MODULES)]
    if modules:
        raise WeightsError(
            f"this is a whole pickled model ({modules[0][:80]}), which only its own code can "
            f"read; in PyTorch, save model.state_dict() instead"
        )
    unknown = [name for name in names if not _is_known(name)]
    if unknown and not ignore_unknown:
        shown = ", ".join(name[:80] for name in unknown[:20])
        more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
        raise WeightsError(
            f"refused, nothing was executed: the pickle names {shown}{more}, which no state dict "
            "needs",
            remedy="if you know the file, save its state dict alone, or load it with "
            "{ignore_unknown}, which leaves these objects out",
            ignore_unknown=True,
        )


def _is_known(name: str) -> bool:
    if name in _REBUILDERS or name in _TORCH_DTYPES or _storage_type(name) is not None:
        return True
    return any(
        name.startswith(entry) if entry.endswith((".", "_rebuild_")) else name == entry
        for entry in _HARMLESS
    )


def _storage_type(name: str) -> StorageType | None:
    """``torch.FloatStorage``, ``torch.cuda.FloatStorage`` or ``torch.storage.UntypedStorage``."""
    if name == "torch.storage.UntypedStorage":
        return StorageType(UNTYPED)
    module, _, last = name.rpartition(".")
    if module in ("torch", "torch.cuda") and last.endswith("Storage"):
        return StorageType(last.removesuffix("Storage"))
    return None
