"""A virtual machine for the pickles inside torch checkpoints, which runs no code from the file.

A pickle is a program.  Its opcodes push values on a stack, collect them into lists and dicts, and
keep some in a numbered *memo*.  Two of them are why a pickle can take over a computer: GLOBAL
imports any function by name, and REDUCE calls it.

Python's own `pickle.Unpickler` can be tamed by overriding `find_class`.  We interpret the
opcodes ourselves instead: the whole language that a checkpoint needs is then visible on one screen
(`_DO`), each opcode outside it is refused by its name, and the unpickler's memory bombs do not
exist (its memo is an array as long as the largest index named, ours is a dict).
`pickletools.genops` cuts the bytes into opcodes; it executes nothing.

A name never imports anything.  It is one of four things:

- a *rebuilder*: a function of ours with the same arguments as torch's, such as _rebuild_tensor_v2;
- a *storage type*: a dtype tag, such as torch.FloatStorage;
- a harmless companion of training checkpoints (an optimizer, an argparse.Namespace, a NumPy
  scalar), which becomes an *Inert* stand-in: it absorbs every call and holds nothing;
- anything else, which refuses the file, unless the caller wants those inert, too.  That is still
  safe, since nothing but our own classes is ever called.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from tinyft.display import first_few
from tinyft.errors import WeightsError
from tinyft.weights.torch.tensors import (
    MOST_DIMENSIONS,
    UNTYPED,
    Inert,
    StorageType,
    StoredTensor,
    stored_tensor,
)

# ResNet-152 needs about 30,000 opcodes in 115 kB.  Each opcode may cost some 200 bytes of memory.
LARGEST_PICKLE = 16 << 20
_MOST_OPCODES = 1_000_000

SIMPLE = (bool, int, float, str, type(None))  # what is shown as it is, and may be a key
_MARK = object()


@dataclass(frozen=True)
class _Rebuilder:
    """A function of ours that stands for one of torch's."""

    rebuild: Callable[..., object]


def unpickle(
    stream: BinaryIO, load_storage: Callable[[object], object], ignore_unknown: bool = False
) -> object:
    """Build the object of the next pickle out of plain Python values, StoredTensor records (no
    array is read yet) and Inert stand-ins.

    `load_storage` turns the tuple that stands for a storage into a record of it.  With
    `ignore_unknown` names outside the allow-list are accepted, as Inert stand-ins.

    Raises: WeightsError for opcodes that no checkpoint uses, for names not in the allow-list (all
    of them together, since a first pass looks at every one), or if the program makes no sense.
    """
    start = stream.tell()
    names: dict[str, None] = {}
    for opcode, argument in _opcodes(stream):
        if opcode not in _DO:
            raise WeightsError(
                f"the pickle uses the opcode {opcode}, which no torch checkpoint of protocol 2 "
                f"does; save it again with torch.save and its default protocol"
            )
        if opcode == "GLOBAL":
            names[_dotted(argument)] = None
    _check_names(list(names), ignore_unknown)
    stream.seek(start)
    machine = _Machine(load_storage)
    try:
        for opcode, argument in _opcodes(stream):
            _DO[opcode](machine, argument)
        (result,) = machine.stack
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"the pickle is damaged ({type(error).__name__}: {error})") from error
    return result


def _opcodes(stream: BinaryIO) -> Iterator[tuple[str, object]]:
    """Yield each opcode's name and argument, up to and including STOP; at most _MOST_OPCODES."""
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count == _MOST_OPCODES:
                raise WeightsError(
                    f"the pickle has more than {_MOST_OPCODES:,} opcodes (a ResNet-152 has "
                    f"30,000); save model.state_dict() alone"
                )
            yield opcode.name, argument
    except (ValueError, OverflowError, UnicodeDecodeError) as error:
        raise WeightsError(f"the pickle is damaged or cut off ({error})") from error


def _dotted(argument: object) -> str:
    """Spell `"torch FloatStorage"`, as genops has it, `"torch.FloatStorage"`."""
    return str(argument).replace(" ", ".", 1)


class _Machine:
    """The stack, the memo, and one short method per opcode."""

    def __init__(self, load_storage: Callable[[object], object]) -> None:
        self.stack: list[object] = []
        self.memo: dict[object, object] = {}
        self.load_storage = load_storage
        self.arguments_seen = 0

    def nothing(self, argument: object) -> None:
        """PROTO and STOP: the end of the loop says the rest."""

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self, _: object = None) -> object:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a value was expected and a mark found")
        return value

    def pop_to_mark(self) -> list[object]:
        """Take the values above the topmost mark, and the mark, off the stack."""
        values: list[object] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def remember(self, index: object) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: object) -> None:
        self.push(self.memo[index])

    def make_tuple(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(values[::-1]))

    def append(self, values: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Inert):
            raise TypeError(f"cannot append to a {type(target).__name__}")

    def set_items(self, values: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(values[::2], values[1::2], strict=True):
                if _is_plain_key(key):
                    target[key] = value
        elif not isinstance(target, Inert):
            raise TypeError(f"cannot set items of a {type(target).__name__}")

    def call(self, _: object) -> None:
        """REDUCE and NEWOBJ: calls one of our own rebuilders, or an Inert that absorbs the call."""
        arguments, function = self.pop(), self.pop()
        if isinstance(function, Inert):
            self.push(function)
        elif isinstance(function, _Rebuilder) and isinstance(arguments, tuple):
            # The memo hands one long list to a million calls for 8 bytes each; a limit ends that.
            lengths = [len(value) for value in arguments if isinstance(value, (list, tuple))]
            self.arguments_seen += len(arguments) + sum(lengths)
            if self.arguments_seen > _MOST_OPCODES:
                raise ValueError("its calls have too many arguments")
            self.push(function.rebuild(*arguments))
        else:
            raise TypeError(f"a {type(function).__name__} cannot be called")

    def push_global(self, name: str) -> None:
        """GLOBAL: looks a name up, which passed the check or is not wanted."""
        self.push(_meaning_of(name) or Inert(name))

    def set_state(self, _: object) -> None:
        """BUILD: drops attributes of an object, such as `_metadata` of a state dict."""
        self.pop()
        if not isinstance(self.stack[-1], (dict, Inert, StoredTensor)):
            raise TypeError(f"a {type(self.stack[-1]).__name__} has no state")


# The whole language: what torch.save writes, and two string opcodes of Python 2.  POP and POP_MARK
# belong to tuples that contain themselves.
_DO: dict[str, Callable[[_Machine, object], object]] = {
    "PROTO": _Machine.nothing,
    "STOP": _Machine.nothing,
    # Values
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "BININT": _Machine.push,
    "BININT1": _Machine.push,
    "BININT2": _Machine.push,
    "LONG1": _Machine.push,
    "LONG4": lambda machine, _: machine.push(Inert("an integer of more than 255 bytes")),
    "BINFLOAT": _Machine.push,
    "BINUNICODE": _Machine.push,
    "BINSTRING": _Machine.push,
    "SHORT_BINSTRING": _Machine.push,
    # Containers
    "MARK": lambda machine, _: machine.push(_MARK),
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, _: machine.pop_to_mark(),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.make_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_tuple(3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    # Memo
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    # Objects: the dangerous part, made harmless
    "GLOBAL": lambda machine, argument: machine.push_global(_dotted(argument)),
    "BINPERSID": lambda machine, _: machine.push(machine.load_storage(machine.pop())),
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.set_state,
}


# -------------------------------------------------------------------------------- what a name means


def describe(value: object) -> str:
    """Return a short word for an unpickled value, for messages.

    Never the repr of a container: through the memo, forty nested pairs are 2^40 items long.
    """
    if isinstance(value, Inert):
        return value.name[:80]
    if isinstance(value, SIMPLE):
        return f"{value!r:.40}"
    return type(value).__name__


# A dict hashes its keys; a crafted key (tuples nested a million deep, integers that all collide)
# could crash or stall it.  Checkpoints have names and small numbers.
_LARGEST_KEY = 1 << 63


def _is_plain_key(key: object) -> bool:
    """Tell whether a key may be hashed; an item of any other is of no use here, and left out."""
    return isinstance(key, SIMPLE) and not (isinstance(key, int) and abs(key) > _LARGEST_KEY)


def _ordered_dict(pairs: object = ()) -> dict[object, object]:
    """collections.OrderedDict: empty, or (as Python 2 wrote it) with a list of pairs."""
    if not isinstance(pairs, (list, tuple)):
        raise TypeError(f"an OrderedDict is made of a list of pairs, not of a {describe(pairs)}")
    return {key: value for key, value in pairs if _is_plain_key(key)}


def _tensor(storage, offset, size, stride, *rest) -> StoredTensor | Inert:
    """torch._utils._rebuild_tensor and _v2, whose rest is requires_grad, hooks, [metadata].

    metadata is not harmless: {'neg': True} flips the sign of every number.
    """
    if len(rest) > 2 and rest[2]:
        return Inert("tensor with metadata (a negative or conjugate view)")
    return stored_tensor(storage, offset, size, stride)


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


_REBUILDERS: dict[str, _Rebuilder] = {
    "collections.OrderedDict": _Rebuilder(_ordered_dict),
    "torch._utils._rebuild_tensor": _Rebuilder(_tensor),  # 2017's, in the CIFAR ResNets
    "torch._utils._rebuild_tensor_v2": _Rebuilder(_tensor),
    "torch._utils._rebuild_tensor_v3": _Rebuilder(_tensor_v3),
    "torch._utils._rebuild_parameter": _Rebuilder(_parameter),
    "torch.Size": _Rebuilder(_size),
}

# Names met in training checkpoints, and what whole families of them begin with.
_HARMLESS = {
    "__builtin__.bytearray", "__builtin__.complex", "__builtin__.dict", "__builtin__.list",
    "__builtin__.object", "__builtin__.set", "_codecs.encode", "argparse.Namespace",
    "builtins.bytearray", "builtins.complex", "builtins.dict", "builtins.list", "builtins.object",
    "builtins.set", "collections.Counter", "collections.defaultdict", "copy_reg._reconstructor",
    "copyreg._reconstructor", "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar", "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar", "numpy.dtype", "numpy.ndarray", "torch.Tensor", "torch.device",
    "torch.nn.parameter.Parameter", "torch.per_channel_affine", "torch.per_tensor_affine",
    "torch.serialization._get_layout", "typing.Any", "yacs.config.CfgNode",
    # torch's dtypes
    "torch.float16", "torch.float32", "torch.float64", "torch.bfloat16", "torch.bool",
    "torch.half", "torch.float", "torch.double", "torch.short", "torch.int", "torch.long",
    "torch.int8", "torch.int16", "torch.int32", "torch.int64",
    "torch.uint8", "torch.uint16", "torch.uint32", "torch.uint64",
    "torch.complex32", "torch.complex64", "torch.complex128",
    "torch.float8_e4m3fn", "torch.float8_e4m3fnuz", "torch.float8_e5m2", "torch.float8_e5m2fnuz",
    "torch.qint8", "torch.qint32", "torch.quint8",
}  # fmt: skip
_HARMLESS_FAMILIES = (
    "datetime.",
    "omegaconf.",
    "pathlib.",
    "torch._utils._rebuild_",
    "torch.optim.",
)
# Classes that only a pickled model, not a state dict, mentions.
_MODULES = ("torch.nn.modules.", "torchvision.models.", "timm.models.", "fastai.", "torch.jit.")


def _meaning_of(name: str) -> _Rebuilder | StorageType | Inert | None:
    """Return what a global means; None for a name outside the allow-list."""
    if name in _REBUILDERS:
        return _REBUILDERS[name]
    if name == "torch.storage.UntypedStorage":
        return StorageType(UNTYPED)
    module, _, last = name.rpartition(".")
    if module in ("torch", "torch.cuda") and last.endswith("Storage"):  # as torch.FloatStorage
        return StorageType(last.removesuffix("Storage"))
    is_harmless = name in _HARMLESS or name.startswith(_HARMLESS_FAMILIES)
    return Inert(name) if is_harmless else None


def _check_names(names: list[str], ignore_unknown: bool) -> None:
    """Refuse a file by the names it mentions.

    Raises: WeightsError for a pickled model, or (unless `ignore_unknown`) for names outside
    the allow-list, each of which is listed.
    """
    modules = [name for name in names if name.startswith(_MODULES)]
    if modules:
        raise WeightsError(
            f"this is a whole pickled model ({modules[0][:80]}), which only its own code can "
            f"read; in PyTorch, save model.state_dict() instead"
        )
    unknown = [name for name in names if _meaning_of(name) is None]
    if unknown and not ignore_unknown:
        shown = first_few([name[:80] for name in unknown], 20)
        raise WeightsError(
            f"refused, nothing was executed: the pickle names {shown}, which no state dict needs",
            remedy="if you know the file, save its state dict alone, or load it with "
            "{ignore_unknown}, which leaves these objects out",
            ignore_unknown=True,
        )
