"""Checks of pictures before training: can they be read, is one in two places, and by which hashes
are they known again?
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np

from tinyft.data.decode import check_header, decode
from tinyft.errors import DataError


def unreadable(paths: Sequence[Path], *, whole: bool, workers: int) -> dict[Path, str]:
    """The files that are no usable picture, each with the reason.

    Opens each file and reads its first bytes, about 0.2 ms; with `whole`, decodes all of it in
    threads.
    """
    check = _decode_file if whole else _open_file
    with ThreadPoolExecutor(max(1, workers)) as pool:
        reasons = pool.map(lambda path: _reason(check, path), paths)
        return {path: why for path, why in zip(paths, reasons, strict=True) if why is not None}


def copies(places: Mapping[Path, object]) -> list[list[Path]]:
    """Files with the same bytes that are in different places, such as both sides of a split.

    Only files whose size occurs in more than one place are read.
    """
    sizes, found = defaultdict(list), defaultdict(list)
    for path in places:
        sizes[path.stat().st_size].append(path)
    for paths in sizes.values():
        if len({places[path] for path in paths}) > 1:
            for path in paths:
                found[_sha256(path)].append(path)
    return sorted(same for same in found.values() if len({places[path] for path in same}) > 1)


def _reason(check: Callable[[Path], None], path: Path) -> str | None:
    try:
        check(path)
    except (DataError, OSError) as error:
        return str(error) if isinstance(error, DataError) else f"cannot be opened: {error.strerror}"
    except MemoryError:
        return "the file is larger than the memory"
    return None


def _open_file(path: Path) -> None:
    with path.open("rb") as stream:
        check_header(stream)


def _decode_file(path: Path) -> None:
    """The first bytes first: what is no picture may be larger than the memory."""
    if path.exists() and not path.is_file():  # a pipe gives its bytes once, and is read twice
        raise DataError("not a regular file but a pipe, device or folder")
    with path.open("rb") as stream:
        check_header(stream)
        stream.seek(0)
        decode(stream.read())


def sha256s(sources: Sequence[Path | np.ndarray], workers: int) -> list[str]:
    """The sha256 of each file's bytes, or of each array's shape and numbers, as 64 digits."""
    parts = [sources[start : start + 64] for start in range(0, len(sources), 64)]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return list(chain.from_iterable(pool.map(lambda part: [*map(_sha256, part)], parts)))


def _sha256(source: Path | np.ndarray) -> str:
    if isinstance(source, np.ndarray):
        digest = hashlib.sha256(str(source.shape).encode())
        digest.update(np.ascontiguousarray(source))
        return digest.hexdigest()
    with open(source, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
