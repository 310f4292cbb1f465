"""Downloads published weights, once, and trusts nothing that has not the published sha256.

The hash is compared before any parser sees a byte: it is the cheapest of all protections.  A file
of another hash is thrown away, never "used anyway".

Next: tinyft/data/decode.py
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tinyft.bundled import bundled
from tinyft.errors import WeightsError
from tinyft.weights.files import file_sha256, replacing
from tinyft.weights.registry import Entry

if TYPE_CHECKING:
    from http.client import HTTPResponse

_BLOCK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
_LARGEST_UNKNOWN = 2 << 30  # bytes, for an entry whose publisher states no size

_CAVEAT = (
    "ImageNet was released for non-commercial research; what that means for weights trained on it "
    "is for you to judge"
)


def cache_folder() -> Path:
    """Where fetched weights are kept: ``TINYFT_HOME``, else the platform's cache folder."""
    import platformdirs

    home = os.environ.get("TINYFT_HOME") or platformdirs.user_cache_dir("tinyft")
    return Path(home) / "weights"


def cached_path(entry: Entry) -> Path:
    """Where an entry's file is, or will be once it is fetched."""
    if entry.bundled_file:
        return bundled(f"weights/{entry.bundled_file}")
    # Every file of one publisher is called model.safetensors; the id tells them apart.
    return cache_folder() / f"{entry.id.replace('/', '_')}{Path(entry.url).suffix}"


def fetch(entry: Entry, announce: Callable[[str], None] | None = None) -> Path:
    """The path of an entry's file, downloaded if it is not in the cache.

    ``announce`` gets the one line that says what is fetched, how large, under which licence; it
    goes to stderr by default.  Two processes that want the same file wait for one another.

    Raises: WeightsError if ``TINYFT_OFFLINE=1`` forbids it, the network fails, or the file has
    not the published hash or size.
    """
    from filelock import FileLock

    path = cached_path(entry)
    if entry.bundled_file or path.exists():
        return path
    if os.environ.get("TINYFT_OFFLINE", "0") not in ("", "0"):
        raise WeightsError(f"TINYFT_OFFLINE forbids to fetch {entry.id}; {_by_hand(entry, path)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")):
        if not path.exists():  # another process may have fetched it while we waited
            (announce or _print_to_stderr)(_announcement(entry))
            _download(entry, path)
    return path


def verify(entry: Entry) -> str:
    """The sha256 of an entry's cached file.

    Raises: WeightsError if it is not the published one; OSError if the file is not there.
    """
    found = file_sha256(cached_path(entry))
    _check_digest(entry, found)
    return found


def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _announcement(entry: Entry) -> str:
    size = f"{entry.size / 1e6:.1f} MB" if entry.size else "of unknown size"
    trust = "" if entry.sha256 else " No sha256 is published for it."
    return f"Fetching {entry.id} ({size}, {entry.licence}) from {entry.url}.{trust} {_CAVEAT}."


def _by_hand(entry: Entry, path: Path) -> str:
    return f"to place it by hand, download {entry.url} and save it as {path}"


def _download(entry: Entry, path: Path) -> None:
    """Stream to a temporary name, hash while writing, and rename only what has the right hash."""
    if not entry.sha256 and entry.format != "safetensors":
        raise WeightsError(f"{entry.id} has no published sha256; {_by_hand(entry, path)}")
    with replacing(path) as temporary, open(temporary, "xb") as file:
        with _network_errors(entry, path), _connect(entry.url) as response:
            digest = _stream(response, file, entry)
        _check_digest(entry, digest)


def _connect(url: str) -> HTTPResponse:
    from urllib.request import Request, urlopen

    return urlopen(Request(url, headers={"User-Agent": "tinyft"}), timeout=_TIMEOUT)


@contextlib.contextmanager
def _network_errors(entry: Entry, path: Path) -> Iterator[None]:
    """A failed connection is the user's to solve, so the message says how to do without one."""
    from http.client import HTTPException

    try:
        yield
    except (HTTPException, OSError) as error:  # urllib's URLError is an OSError
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise  # our own disk, not the network
        reason = getattr(error, "reason", error)
        raise WeightsError(
            f"{entry.id} could not be fetched from {entry.url} ({reason}); {_by_hand(entry, path)}"
        ) from error


def _stream(response: HTTPResponse, file: BinaryIO, entry: Entry) -> str:
    """Copy the response into the file; the sha256 of what came.

    Raises: WeightsError if it is twice as long as published, or ends early.
    """
    limit = 2 * entry.size or _LARGEST_UNKNOWN
    promised = response.length  # None where the server does not say
    digest, received = hashlib.sha256(), 0
    while block := response.read(_BLOCK):
        received += len(block)
        if received > limit:
            raise WeightsError(
                f"{entry.id}: more than {limit:,} bytes came, {entry.size:,} were expected; "
                f"the download was stopped and thrown away"
            )
        digest.update(block)
        file.write(block)
    if promised is not None and received < promised:
        raise WeightsError(
            f"{entry.id}: the connection ended after {received:,} of {promised:,} bytes; try again"
        )
    return digest.hexdigest()


def _check_digest(entry: Entry, found: str) -> None:
    if not found.startswith(entry.sha256):
        raise WeightsError(
            f"{entry.id}: expected sha256 {entry.sha256}, found {found}; the file is not the "
            f"published one and was not used; fetch it again, or report it if it stays so"
        )
