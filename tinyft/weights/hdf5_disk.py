"""HDF5 files on a disk that may be full.

HDF5 cannot clean up after a write that failed: it tries again whenever one of its objects is freed,
fails again, and takes the process with it in the end (h5py 3.16, HDF5 2.0: segmentation fault).  So
it never learns of one: the file that it is given keeps the error, for whoever gave it to raise.

Next: tinyft/weights/hdf5_arrays.py
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import h5py


@contextlib.contextmanager
def new_hdf5(path: str | os.PathLike[str], libver: str | None = None) -> Iterator[h5py.File]:
    """A new file, to be filled within the block; `libver` is h5py's, "latest" for a file that
    grows.

    Raises: FileExistsError; OSError at the end of the block if the disk did not take all of it
    """
    import h5py

    with open(path, "xb+", buffering=0) as raw:
        disk = Disk(raw)
        with h5py.File(disk, "w", track_order=True, libver=libver) as file:
            yield file
        if disk.error is not None:
            raise disk.error


class Disk(io.RawIOBase):
    """An open file as h5py wants it, of which writing never fails.

    `error` is the first one, or None. From then on nothing is written: the file stays as a process
    that is killed at that moment leaves it.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self.raw = raw
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        left = memoryview(data)
        with self._kept():
            while left and self.error is None:  # the system may take a part only
                left = left[self.raw.write(left) :]
        return len(data)

    def truncate(self, size: int) -> int:
        with self._kept():
            if self.error is None:
                self.raw.truncate(size)
        return size

    def readinto(self, data: memoryview) -> int:
        return self.raw.readinto(data)

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        return self.raw.seek(position, whence)

    def tell(self) -> int:
        return self.raw.tell()

    def close(self) -> None:
        """Close the file, too; Python does it when nobody holds this object any more."""
        self.raw.close()
        super().close()

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = self.raw.name
            self.error = self.error or error
