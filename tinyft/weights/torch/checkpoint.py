"""Reads torch checkpoints (.pth, .pt, .th, .pth.tar) without torch and without running them.

A checkpoint is a pickle, which describes the object (dicts, names, shapes), and storages, which
hold the numbers.  Three containers exist: a zip (torch 1.6 and later), a stream of pickles
(before), and a tar (torch 0.1, refused).  Which one a file is, its first bytes say; names lie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

import numpy as np

from tinyft.errors import WeightsError
from tinyft.weights.files import LazyArray
from tinyft.weights.torch.legacy import LegacyFile
from tinyft.weights.torch.tensors import Storage, StoredTensor, to_array
from tinyft.weights.torch.zip_file import ZipFile

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGICS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # by protocol
TAR_MAGIC, TAR_MAGIC_AT = b"ustar", 257


class Container(Protocol):
    """What both kinds of file offer: the pickled object, the byte order, and storages."""

    content: object
    byte_order: str  # "<" or ">"

    def read(self, storage: Storage) -> bytes:
        """The bytes of one storage."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose numbers are still in the file, which must stay open.

    ``content`` consists of dicts, lists, tuples, text, numbers, StoredTensor and Inert records.
    """

    content: object
    container: Container
    shared: dict[str, bytes] = field(default_factory=dict)  # storages, by their keys

    def lazy(self, tensor: StoredTensor) -> LazyArray:
        """The tensor as an array that can be read."""

        def read() -> np.ndarray:
            return to_array(tensor, self._bytes(tensor), self.container.byte_order)

        return LazyArray(tensor.shape, tensor.dtype, read)

    def _bytes(self, tensor: StoredTensor) -> bytes:
        """Those of a tensor's storage. One of which a tensor is but a part is kept for the others,
        or reading a large one for thousands of small tensors would take hours.
        """
        storage = tensor.storage
        if math.prod(tensor.shape) >= storage.count:
            return self.container.read(storage)
        if storage.key not in self.shared:
            self.shared[storage.key] = self.container.read(storage)
        return self.shared[storage.key]


def open_checkpoint(file: BinaryIO, ignore_unknown: bool = False) -> Checkpoint:
    """Read the structure of the checkpoint in a file opened for reading bytes.

    Raises: WeightsError if it is not one, is refused, or lies about its sizes.
    """
    head = file.read(TAR_MAGIC_AT + len(TAR_MAGIC))
    if head.startswith(ZIP_MAGIC):
        container: Container = ZipFile(file, ignore_unknown)
    elif head[TAR_MAGIC_AT:] == TAR_MAGIC:
        raise WeightsError(
            "this is a tar checkpoint of torch 0.1, which tinyft does not read; load it and save "
            "it again with any torch from 0.4 on"
        )
    elif head.startswith(PICKLE_MAGICS):
        container = LegacyFile(file, ignore_unknown)
    else:
        raise WeightsError("this is no torch checkpoint (neither a zip nor a pickle)")
    return Checkpoint(container.content, container)
