"""A virtual machine for the pickles inside torch checkpoints, which runs no code from the file.

A pickle is a program.  Its opcodes push values on a stack, collect them into lists and dicts, and
keep some in a numbered *memo*.  Two of them are why a pickle can take over a computer: GLOBAL
imports any function by name, and REDUCE calls it.

Python's own ``pickle.Unpickler`` can be tamed by overriding ``find_class``.  We interpret the
opcodes ourselves instead: the whole language that a checkpoint needs is then visible on one screen,
each opcode outside it is refused by its name, GLOBAL never imports anything (it looks a name up in
``allowed_names.py``), and the unpickler's memory bombs do not exist (its memo is an array as
long as the largest index named, ours is a dict).  ``pickletools.genops`` cuts the bytes into
opcodes; it executes nothing.

Reading has two passes.  ``scan`` looks at every opcode and name, so that a refusal lists all of
them at once; ``execute`` then builds the object out of plain Python values, StoredTensor records
(no numbers are read yet) and Inert stand-ins.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from typing import BinaryIO

from tinyft.errors import WeightsError
from tinyft.weights.torch.allowed_names import (
    Inert,
    Rebuilder,
    check_names,
    is_plain_key,
    meaning_of,
)
from tinyft.weights.torch.tensors import StoredTensor

# ResNet-152 needs about 30,000 opcodes in 115 kB.  Each opcode may cost some 200 bytes of memory.
LARGEST_PICKLE = 16 << 20
_MOST_OPCODES = 1_000_000

_MARK = object()

PersistentLoad = Callable[[object], object]


def scan(stream: BinaryIO, ignore_unknown: bool = False) -> None:
    """Read one pickle up to its STOP without building anything.

    With ``ignore_unknown`` names outside the allow-list are accepted (as Inert stand-ins).
    Raises: WeightsError for opcodes that no checkpoint uses, or for the names not in the
    allow-list, all of them together.
    """
    names: dict[str, None] = {}
    for opcode, argument in _opcodes(stream):
        if opcode not in _DO:
            raise WeightsError(
                f"the pickle uses the opcode {opcode}, which no torch checkpoint of protocol 2 "
                f"does; save it again with torch.save and its default protocol"
            )
        if opcode == "GLOBAL":
            names[_dotted(argument)] = None
    check_names(list(names), ignore_unknown)


def execute(stream: BinaryIO, persistent_load: PersistentLoad) -> object:
    """Build the object of one pickle, which ``scan`` has accepted.

    ``persistent_load`` turns the tuple that stands for a storage into a record of it.
    Raises: WeightsError if the program makes no sense.
    """
    machine = _Machine(persistent_load)
    try:
        for opcode, argument in _opcodes(stream):
            _DO[opcode](machine, argument)
        (result,) = machine.stack
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"the pickle is damaged ({type(error).__name__}: {error})") from error
    return result


def _opcodes(stream: BinaryIO) -> Iterator[tuple[str, object]]:
    """Each opcode's name and argument, up to and including STOP; at most _MOST_OPCODES."""
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
    """``"torch FloatStorage"``, as genops spells a global, to ``"torch.FloatStorage"``."""
    return str(argument).replace(" ", ".", 1)


class _Machine:
    """The stack, the memo, and one short method per opcode."""

    def __init__(self, persistent_load: PersistentLoad) -> None:
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.persistent_load = persistent_load
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
        """The values above the topmost mark; both leave the stack."""
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
                if is_plain_key(key):
                    target[key] = value
        elif not isinstance(target, Inert):
            raise TypeError(f"cannot set items of a {type(target).__name__}")

    def call(self, _: object) -> None:
        """REDUCE and NEWOBJ: one of our own rebuilders, or an Inert that absorbs the call."""
        arguments, function = self.pop(), self.pop()
        if isinstance(function, Inert):
            self.push(function)
        elif isinstance(function, Rebuilder) and isinstance(arguments, tuple):
            self.count_arguments(arguments)
            self.push(function.rebuild(*arguments))
        else:
            raise TypeError(f"a {type(function).__name__} cannot be called")

    def count_arguments(self, arguments: tuple[object, ...]) -> None:
        """The memo hands one long list to a million calls for 8 bytes each; a limit ends that."""
        lengths = [len(value) for value in arguments if isinstance(value, (list, tuple))]
        self.arguments_seen += len(arguments) + sum(lengths)
        if self.arguments_seen > _MOST_OPCODES:
            raise ValueError("its calls have too many arguments")

    def set_state(self, _: object) -> None:
        """BUILD: attributes of an object, such as ``_metadata`` of a state dict.  Dropped."""
        self.pop()
        if not isinstance(self.stack[-1], (dict, Inert, StoredTensor)):
            raise TypeError(f"a {type(self.stack[-1]).__name__} has no state")


# The whole language: what torch.save writes, and two string opcodes of Python 2.  POP and POP_MARK
# belong to tuples that contain themselves.
_DO: dict[str, Callable[[_Machine, object], None]] = {
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
    "GLOBAL": lambda machine, argument: machine.push(meaning_of(_dotted(argument))),
    "BINPERSID": lambda machine, _: machine.push(machine.persistent_load(machine.pop())),
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.set_state,
}
