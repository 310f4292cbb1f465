"""fetch: published weights by name, from the network once and then from the cache.

The cache holds tinyft's own HDF5 files, with the registry's preprocessing, licence and class names
in them.  A published file is downloaded, compared with its sha256, converted, and dropped.  Where
the same weights are published as safetensors too, that file is taken, so that no pickle is read.

    ~/.cache/tinyft/weights/torchvision_resnet18-v1.h5                 what load_weights reads
    ~/.cache/tinyft/weights/torchvision_resnet18-v1.safetensors.part   an interrupted download
    ~/.cache/tinyft/weights/torchvision_resnet18-v1.pth                a file placed by hand
    ~/.cache/tinyft/weights/timm_resnet18.a1_in1k.sha256               of what came first, where the
                                                                       publisher states no whole one
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tinyft.bundled import bundled
from tinyft.display import fitted, terminal_width
from tinyft.errors import WeightsError
from tinyft.weights.files import file_sha256, replacing
from tinyft.weights.hdf5.weights_file import save_weights
from tinyft.weights.published.download import Announce, check_digest, download
from tinyft.weights.published.registry import SHA256_DIGITS, Entry, sources
from tinyft.weights.read import read_weights

_CAVEAT = (
    "ImageNet was released for non-commercial research; what that means for weights trained on it "
    "is for you to judge"
)


def cache_folder() -> Path:
    """Return where fetched weights are kept: `TINYFT_HOME`, else the platform's cache folder."""
    import platformdirs

    # a "~" that no shell has replaced, as in a container's settings
    home = os.path.expanduser(os.environ.get("TINYFT_HOME", ""))
    return Path(home or platformdirs.user_cache_dir("tinyft")) / "weights"


def cached_path(entry: Entry) -> Path:
    """Return where an entry's file is, or will be once it is fetched."""
    if entry.bundled_file:
        return bundled(f"weights/{entry.bundled_file}")
    return cache_folder() / f"{_file_name(entry)}.h5"


def fetch(entry: Entry, announce: Announce | None = None) -> Path:
    """Return the path of an entry's file, downloaded and converted if it is not in the cache.

    `announce` gets the line that says what is fetched, how large, under which licence, and then
    how far it is; they go to stderr by default.  An interrupted download is resumed.  Two processes
    that want the same file wait for one another.

    Raises: NetworkError if the network fails; WeightsError if `TINYFT_OFFLINE=1` forbids it, the
    cache cannot be locked, or a file has not the published hash or size; OSError if it cannot be
    written, as on a full disk.
    """
    path = cached_path(entry)
    if entry.bundled_file:
        verify(entry)
        return path
    if path.exists():
        return path
    if os.environ.get("TINYFT_OFFLINE", "0") not in ("", "0") and not _placed_by_hand(entry):
        raise WeightsError(f"TINYFT_OFFLINE forbids to fetch {entry.id}; {_by_hand(entry)}")
    announce = announce or _print
    with _locked(path, announce):
        if not path.exists():  # another process may have fetched it while we waited
            _fill_cache(entry, path, announce)
    return path


def verify(entry: Entry) -> str:
    """Return the sha256 of the published file that an entry's file is, or was made from.

    Raises: WeightsError if it is not the published one, or the cached file was changed since;
    OSError if it is not there.
    """
    path = cached_path(entry)
    if entry.bundled_file:
        digest = file_sha256(path)
        check_digest(entry, digest)
        return digest
    digest = str(read_weights(path).metadata.get("source_sha256", ""))  # checks the content's hash
    if not any(digest.startswith(source.sha256) for source in sources(entry)):
        check_digest(entry, digest)
    return digest


def _print(text: str) -> None:
    print(fitted(text, terminal_width(sys.stderr)), file=sys.stderr, flush=True)


def _fill_cache(entry: Entry, path: Path, announce: Announce) -> None:
    """Make the cached file from one placed by hand, or the first source that can be had."""
    for unfinished in path.parent.glob(f".{path.name}.*.part"):  # of a process that was killed
        unfinished.unlink()
    if placed := _placed_by_hand(entry):
        source, file = placed
        try:
            digest = file_sha256(file)
            check_digest(source, digest)
            _check_pin(source, digest)
        except WeightsError as error:
            raise WeightsError(f"{error}. It is {file}: delete it first") from None
        _convert(entry, source, file, digest, path)
        return
    candidates = sources(entry)
    first = candidates[0]
    size = f"{first.size / 1e6:.1f} MB" if first.size else "of unknown size"
    kept = " No sha256 is published for it: that of what comes first is kept, and compared later."
    trust = "" if first.sha256 else kept
    announce(f"Fetching {entry.id} ({size}, {entry.licence}) from {first.url}.{trust} {_CAVEAT}.")
    for source, next_one in zip(candidates, [*candidates[1:], None], strict=True):
        try:
            return _download_and_convert(entry, source, path, announce)
        except WeightsError as error:
            if next_one is None:
                raise type(error)(
                    f"{entry.id} could not be fetched: {error}; {_by_hand(entry)}"
                ) from error
            announce(f"{error}; trying {next_one.url}")


def _download_and_convert(entry: Entry, source: Entry, path: Path, announce: Announce) -> None:
    if not source.sha256 and source.format != "safetensors":
        raise WeightsError("it has no published sha256")
    published = _published_path(entry, source)
    part = published.with_name(f"{published.name}.part")
    digest = download(source, part, announce)
    try:
        _check_pin(source, digest)
        _convert(entry, source, part, digest, path)
    except WeightsError:  # of no use to resume from
        part.unlink()
        raise
    part.unlink()


def _pin_path(source: Entry) -> Path | None:
    """Return where the sha256 of what came first is kept; None if all of it is published."""
    if len(source.sha256) == SHA256_DIGITS:
        return None
    return cache_folder() / f"{_file_name(source)}.sha256"


def _check_pin(source: Entry, found: str) -> None:
    """Raises: WeightsError if the publisher's file is not the one that came at the first time"""
    pin = _pin_path(source)
    if pin is None or not pin.exists():
        return
    first = pin.read_text(encoding="utf-8", errors="replace").strip()
    if found != first:
        raise WeightsError(
            f"{source.id}: its sha256 was {first:.80} when it was first fetched, and is {found} "
            f"now; no whole one is published to tell which is right; delete {pin} to take the new "
            f"file"
        )


def _convert(entry: Entry, source: Entry, file: Path, digest: str, path: Path) -> None:
    """Cache what a published file holds, and what the registry knows about it; then keep its
    sha256 where the publisher states no whole one.
    """
    save_weights(path, read_weights(file, replace(source, preprocess=entry.preprocess)))
    if pin := _pin_path(source):
        with replacing(pin) as temporary:
            temporary.write_text(f"{digest}\n", encoding="utf-8")


def _file_name(entry: Entry) -> str:
    """Names a file by its id: all of one publisher's are called model.safetensors."""
    return entry.id.replace("/", "_")


def _published_path(entry: Entry, source: Entry) -> Path:
    """Return where a file as it was published is expected."""
    return cache_folder() / f"{_file_name(entry)}{Path(source.url).suffix}"


def _placed_by_hand(entry: Entry) -> tuple[Entry, Path] | None:
    for source in sources(entry):
        if (file := _published_path(entry, source)).exists():
            return source, file
    return None


def _by_hand(entry: Entry) -> str:
    source = sources(entry)[-1]
    path = _published_path(entry, source)
    return (
        f"to place it by hand, download {source.url} and save it as {path}; the small resnet10s "
        "comes with tinyft and needs no download"
    )


@contextlib.contextmanager
def _locked(path: Path, announce: Announce) -> Iterator[None]:
    """Let no other process fetch the same file within this block."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            announce(f"waiting for another process that fetches {path.stem}")
            lock.acquire()
    except OSError as error:
        raise WeightsError(
            f"{path.parent} cannot be written ({error.strerror or error}); "
            f"set TINYFT_HOME to a folder that can"
        ) from error
    try:
        yield
    finally:
        lock.release()
