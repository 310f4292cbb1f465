"""Pictures in, batches of bytes out: decoding, augmentation, folders, arrays.

Reading order: decode, resize, prepare (one picture, deterministic), augment, resample,
fast_resample (one picture, at random), cache, prefetch, loader (batches), folder, scan, split,
check_files, arrays (sources). Importing this loads neither Pillow nor Numba; they come with the
first picture.
"""

from tinyft.data.arrays import ImageArrays
from tinyft.data.augment import AugmentDraw
from tinyft.data.decode import decode
from tinyft.data.folder import ImageFolder
from tinyft.data.loader import Batch, PictureData
from tinyft.data.prepare import prepare

__all__ = ["AugmentDraw", "Batch", "ImageArrays", "ImageFolder", "PictureData", "decode", "prepare"]
