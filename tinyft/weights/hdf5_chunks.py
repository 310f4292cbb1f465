"""Arrays of an HDF5 file that are stored in chunks, which may be packed: what they unpack to is
counted before HDF5 unpacks them.

Next: tinyft/weights/hdf5_disk.py
"""

from __future__ import annotations

import itertools
import math
import zlib
from typing import TYPE_CHECKING

from tinyft.errors import WeightsError

if TYPE_CHECKING:
    import h5py

_SHUFFLE, _DEFLATE, _CHECKSUM = 2, 1, 3  # built in, in the order of packing; others load a plugin
_LARGEST_CHUNK = 1 << 20  # bytes that one chunk of a tiny dataset may unpack to
_SMALL_PRINT = 64  # bytes that packing may add
_CHECKSUM_BYTES = 4


def check_chunks(path: str, dataset: h5py.Dataset) -> None:
    """Refuse chunks that are missing, packed in an unusual way, or unpack to another size.

    Raises: WeightsError naming the dataset and what is wrong with it.
    """
    filters = _filters(dataset)
    unknown = [number for number in filters if number not in (_SHUFFLE, _DEFLATE, _CHECKSUM)]
    if unknown:
        raise WeightsError(
            f"{path} is packed with filter {unknown[0]}, whose decoder would be loaded from a "
            f"plugin; repack it with gzip (h5repack -f GZIP=1)"
        )
    if filters != [number for number in (_SHUFFLE, _DEFLATE, _CHECKSUM) if number in filters]:
        raise WeightsError(f"{path} is packed by filters {filters} in turn; the file is refused")
    chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if chunk_bytes > max(4 * dataset.nbytes, _LARGEST_CHUNK):
        raise WeightsError(f"{path} has chunks larger than itself; the file is refused")
    steps = list(zip(dataset.shape, dataset.chunks, strict=True))
    if dataset.id.get_num_chunks() != math.prod(-(-size // step) for size, step in steps):
        raise WeightsError(f"{path} is not wholly stored in the file; write it again")
    for offset in itertools.product(*(range(0, size, step) for size, step in steps)):
        _check_chunk(path, dataset, offset, filters, chunk_bytes)


def _filters(dataset: h5py.Dataset) -> list[int]:
    settings = dataset.id.get_create_plist()
    return [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]


def _check_chunk(
    path: str, dataset: h5py.Dataset, offset: tuple[int, ...], filters: list[int], chunk_bytes: int
) -> None:
    """HDF5 believes a chunk. It inflates whatever the stream holds, which may be 1000 times as many
    zeros as bytes in the file; of one that is too short it reads on behind the end, or crashes.
    """
    stored = dataset.id.get_chunk_info_by_coord(offset).size
    if stored > 2 * chunk_bytes + _SMALL_PRINT:
        raise WeightsError(f"{path} has a chunk that takes {stored:,} bytes; the file is refused")
    left_out, data = dataset.id.read_direct_chunk(offset)
    used = [number for place, number in enumerate(filters) if not left_out >> place & 1]
    if _CHECKSUM in used:
        data = data[: max(0, len(data) - _CHECKSUM_BYTES)]
    if _DEFLATE in used:
        try:
            data = zlib.decompressobj().decompress(data, chunk_bytes + 1)
        except zlib.error as error:
            raise WeightsError(f"{path} is damaged: {error}") from None
    if len(data) != chunk_bytes:
        raise WeightsError(
            f"{path} has a chunk of {chunk_bytes:,} bytes that unpacks to "
            f"{'more' if len(data) > chunk_bytes else 'less'}; the file is damaged or made to "
            "deceive"
        )
