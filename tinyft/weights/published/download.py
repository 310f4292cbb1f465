"""download: one file from the network, whole and as it was published, or an error.

The hash is compared before any parser sees a byte: it is the cheapest of all protections.  A file
of another hash is thrown away, never "used anyway".  What came before a connection broke is kept,
and the next attempt asks the server for the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tinyft.errors import NetworkError, WeightsError
from tinyft.weights.published.registry import Entry

if TYPE_CHECKING:
    from http.client import HTTPResponse
    from urllib.request import OpenerDirector

Announce = Callable[[str], None]

_BLOCK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
_LARGEST_UNKNOWN = 2 << 30  # bytes, for an entry whose publisher states no size
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_COUNTS = 0.2  # on a terminal, where the line is written over


def download(entry: Entry, part: Path, announce: Announce) -> str:
    """Make `part` the whole file of an entry, from what an earlier attempt left of it; return
    its sha256.

    Raises: NetworkError if it could not be had, or not all of it (what came is kept then);
    WeightsError if what came is not the published file (`part` is then deleted), OSError if it
    cannot be written.
    """
    if not entry.sha256:  # nothing would tell if the rest came from another version
        part.unlink(missing_ok=True)
    digest, received = hashlib.sha256(), 0
    if part.exists():
        with open(part, "rb") as file:
            digest, received = hashlib.file_digest(file, "sha256"), part.stat().st_size
    if not (received and digest.hexdigest().startswith(entry.sha256)):
        digest = _transfer(entry, part, digest, received, announce)
    try:
        check_digest(entry, digest.hexdigest())
    except WeightsError:
        part.unlink()
        raise
    return digest.hexdigest()


def check_digest(entry: Entry, found: str) -> None:
    """Raises: WeightsError if `found` is not the published sha256, or does not begin with it"""
    if not found.startswith(entry.sha256):
        raise WeightsError(
            f"{entry.id}: expected sha256 {entry.sha256}, found {found}; the file is not the "
            f"published one and was not used; fetch it again, or report it if it stays so"
        )


def _transfer(
    entry: Entry, part: Path, digest: hashlib._Hash, received: int, announce: Announce
) -> hashlib._Hash:
    """Add to `part` what the server has beyond the bytes received; return the whole digest."""
    with _connect(entry.url, received, announce) as response:
        if response.status != 206:  # the whole file: the server cannot, or there was nothing yet
            digest, received = hashlib.sha256(), 0
        promised = None if response.length is None else received + response.length
        limit = 2 * entry.size or _LARGEST_UNKNOWN
        progress = _Progress(announce, promised or entry.size)
        with open(part, "ab" if received else "wb") as file:
            for block in _blocks(response, entry.url):
                received += len(block)
                if received > limit:
                    break
                digest.update(block)
                file.write(block)
                progress(received)
        progress.end()
    if received > limit:
        part.unlink()
        raise WeightsError(
            f"{entry.id}: more than {limit:,} bytes came, {entry.size:,} were expected; "
            f"the download was stopped and thrown away"
        )
    if promised is not None and received < promised:
        kept = "; what came is kept, and the next attempt goes on from there"
        raise NetworkError(
            f"{entry.url}: ended after {received:,} of {promised:,} bytes"
            f"{kept if entry.sha256 else ''}"
        )
    return digest


def _connect(url: str, received: int, announce: Announce) -> HTTPResponse:
    """Ask the server for the file from byte `received` on, or all of it if it cannot."""
    from urllib.error import HTTPError
    from urllib.request import Request

    rest = {"Range": f"bytes={received}-"} if received else {}
    with _network_errors(url):
        try:
            request = Request(url, headers={"User-Agent": "tinyft", **rest})
            response = opener(url, announce).open(request, timeout=_TIMEOUT)
        except HTTPError as error:
            error.close()
            if not (received and error.code == 416):
                raise
            return _connect(url, 0, announce)  # no rest: what came before is of another file
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if response.status == 206 and start != str(received):
        response.close()
        return _connect(url, 0, announce)
    return response


def opener(url: str, announce: Announce) -> OpenerDirector:
    """Make an opener of addresses that follows redirects to encrypted ones only (a server on this
    machine may be plain, as in tests), and says which other host one leads to.
    """
    from urllib.parse import urlsplit
    from urllib.request import HTTPRedirectHandler, build_opener

    class Redirects(HTTPRedirectHandler):
        def redirect_request(self, req, fp, code, msg, headers, newurl):
            old, new = urlsplit(req.full_url), urlsplit(newurl)
            if new.scheme not in ("https", urlsplit(url).scheme):
                raise NetworkError(f"{url}: leads to {newurl}, which is not encrypted (https)")
            if new.hostname != old.hostname:
                announce(f"  {old.hostname} leads to {new.hostname}")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    return build_opener(Redirects)


def _blocks(response: HTTPResponse, url: str) -> Iterator[bytes]:
    """Yield what comes, as it comes."""
    with _network_errors(url):
        while block := response.read1(_BLOCK):
            yield block


@contextlib.contextmanager
def _network_errors(url: str) -> Iterator[None]:
    """Turn whatever goes wrong on the way, within this block, into a NetworkError."""
    from http.client import HTTPException

    try:
        yield
    except TimeoutError as error:
        raise NetworkError(f"{url}: nothing came for {_TIMEOUT} s") from error
    except (HTTPException, OSError) as error:  # urllib's URLError and HTTPError are OSErrors
        reason = error if getattr(error, "code", None) else getattr(error, "reason", error)
        raise NetworkError(f"{url}: {reason or type(error).__name__}") from error


class _Progress:
    """Says how far a download is: on a terminal in one line that is written over, elsewhere in a
    line every ten seconds.
    """

    def __init__(self, announce: Announce, total: int) -> None:
        self.announce, self.total = announce, total
        self.on_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.last = time.monotonic()

    def __call__(self, received: int) -> None:
        wait = _SECONDS_BETWEEN_COUNTS if self.on_terminal else _SECONDS_BETWEEN_LINES
        if time.monotonic() - self.last < wait:
            return
        self.last = time.monotonic()
        total = f" of {self.total / 1e6:.1f}" if self.total else ""
        line = f"  {received / 1e6:.1f}{total} MB"
        if self.on_terminal:
            print(f"\r{line}", end="", file=sys.stderr, flush=True)
        else:
            self.announce(line)

    def end(self) -> None:
        """Wipe the line."""
        if self.on_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
