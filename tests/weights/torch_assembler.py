"""Writes torch checkpoints by hand, honest and dishonest ones, without torch.

The pickles are assembled opcode by opcode (protocol 2), so that a test can say anything at all.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
STORAGES = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "u1": "Byte", "i4": "Int"}


@dataclass(frozen=True)
class Global:
    name: str


@dataclass(frozen=True)
class Call:
    function: str
    arguments: tuple


@dataclass(frozen=True)
class Persistent:
    identity: tuple


def program(value) -> bytes:
    """The opcodes that push a value, without PROTO and STOP."""
    if isinstance(value, Global):
        module, _, name = value.name.rpartition(".")
        return f"c{module}\n{name}\n".encode()
    if isinstance(value, Call):
        return program(Global(value.function)) + program(value.arguments) + b"R"
    if isinstance(value, Persistent):
        return program(value.identity) + b"Q"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(program, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(program, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(program(k) + program(v) for k, v in value.items()) + b"u"
    return pickle.dumps(value, protocol=2)[2:-1]


def whole(value) -> bytes:
    """A complete pickle."""
    return b"\x80\x02" + program(value) + b"."


def storage(key: str, kind: str, count: int, *more) -> Persistent:
    return Persistent(("storage", Global(f"torch.{kind}Storage"), key, "cpu", count, *more))


def tensor(stored: Persistent, offset: int, shape: tuple, strides: tuple, *metadata) -> Call:
    hooks = Call("collections.OrderedDict", ())
    arguments = (stored, offset, shape, strides, False, hooks, *metadata)
    return Call("torch._utils._rebuild_tensor_v2", arguments)


def tensor_of(key: str, array: np.ndarray, *more) -> Call:
    """A contiguous tensor that has a storage to itself."""
    kind = STORAGES[array.dtype.str[1:]]
    strides = tuple(step // array.itemsize for step in array.strides)
    return tensor(storage(key, kind, array.size, *more), 0, array.shape, strides)


def zip_bytes(content, storages: dict[str, bytes], **options) -> bytes:
    """A zip checkpoint. Options: root, byteorder, extra members, compression."""
    root = options.get("root", "archive")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", options.get("compression", zipfile.ZIP_STORED)) as archive:

        def put(name: str, content: bytes | str) -> None:
            """With a fixed time: these bytes are parts of tests' names, which workers share."""
            archive.writestr(zipfile.ZipInfo(name), content, archive.compression)

        pickled = content if isinstance(content, bytes) else whole(content)
        put(f"{root}/data.pkl", pickled)
        put(f"{root}/byteorder", options.get("byteorder", "little"))
        put(f"{root}/version", "3\n")
        for key, raw in storages.items():
            put(f"{root}/data/{key}", raw)
        for name, raw in options.get("extra", {}).items():
            put(name, raw)
    return buffer.getvalue()


def legacy_bytes(content, storages: dict[str, np.ndarray], **options) -> bytes:
    """A legacy checkpoint. Options: little_endian, counts (what the file says of each storage)."""
    little = options.get("little_endian", True)
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
    head = whole(MAGIC_NUMBER) + whole(1001) + whole(system)
    body = content if isinstance(content, bytes) else whole(content)
    tail = whole(list(storages))
    for key, array in storages.items():
        count = options.get("counts", {}).get(key, array.size)
        tail += struct.pack("<q", count) + array.tobytes()
    return head + body + tail


def state_dict_zip(arrays: dict[str, np.ndarray], wrap=lambda state: state, **options) -> bytes:
    """An honest zip checkpoint of arrays; ``wrap`` may nest the state dict."""
    state = {name: tensor_of(str(i), array) for i, (name, array) in enumerate(arrays.items())}
    raw = {str(i): array.tobytes() for i, array in enumerate(arrays.values())}
    return zip_bytes(wrap(state), raw, **options)


def state_dict_legacy(arrays: dict[str, np.ndarray], wrap=lambda state: state, **options) -> bytes:
    """An honest legacy checkpoint of arrays."""
    state = {n: tensor_of(str(i), array, None) for i, (n, array) in enumerate(arrays.items())}
    storages = {str(i): array for i, array in enumerate(arrays.values())}
    return legacy_bytes(wrap(state), storages, **options)


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path
