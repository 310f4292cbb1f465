"""Serves every reader and writer of weights: arrays not read yet, and safe file handling.

A weights file may come from a stranger.  The readers therefore hand out *lazy* arrays: name, shape
and dtype are known and checked while the bytes are still in the file.  Only an array whose shape is
the expected one is ever read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyft.errors import TinyftError, WeightsError


@dataclass(frozen=True)
class LazyArray:
    """An array that is still in its file.

    `dtype` is the stored one, in NumPy's spelling (`<f4`) or `bfloat16`, which NumPy lacks.
    `read()` returns a new C-contiguous array of native byte order (bfloat16 as float32).
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@contextlib.contextmanager
def damage_is_an_error(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever a damaged file makes a parser raise within this block into a WeightsError.

    The parsers check what can hurt; they do not foresee each way in which bytes can be nonsense.
    An unexpected exception inside the block means just that, so the net is wide on purpose.
    """
    try:
        yield
    except (TinyftError, OSError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise WeightsError(
            f"{path}: the file is damaged or not what it seems ({reason}); "
            f"get it again and compare its sha256 with the published one"
        ) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder that takes the place of `path` at the end.

    The bytes are on the disk before the name changes, and the name before this returns, so that a
    reader, or the next start after a crash, sees the old file or the new one and never half of
    either.  On any failure, Ctrl-C included, the temporary file is removed and `path` is as it
    was; an OSError names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_folder_to_disk(path.parent)
    except OSError as error:
        if error.errno and error.filename in (None, os.fspath(temporary)):
            error.filename = os.fspath(path)  # the name that the user gave
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_page(path: str | os.PathLike[str], text: str) -> None:
    """Write a page for people whole, or leave an old one as it is. Raises: OSError"""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def flush_to_disk(path: Path, access: int = os.O_RDWR) -> None:
    """Return when a file's bytes are on the disk, and no power failure can take them."""
    descriptor = os.open(path, access)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder_to_disk(path: Path) -> None:
    """Do the same for a folder's names, where the system can (Windows, some mounts cannot)."""
    with contextlib.suppress(OSError):
        flush_to_disk(path, os.O_RDONLY)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
