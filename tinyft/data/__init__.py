"""Pictures in, batches of bytes out: decoding, augmentation, folders, arrays.

Reading order: picture (nothing random), augment, resample, fast_resample (one picture, at random),
prefetch, loader (batches), split, folder, table, arrays (sources). Importing this loads neither
Pillow nor Numba; they come with the first picture.
"""

from tinyft.data.arrays import ImageArrays
from tinyft.data.augment import AugmentDraw
from tinyft.data.folder import ImageFolder
from tinyft.data.loader import Batch, PictureData
from tinyft.data.picture import decode, prepare
from tinyft.data.table import ImageTable

__all__ = [
    "AugmentDraw",
    "Batch",
    "ImageArrays",
    "ImageFolder",
    "ImageTable",
    "PictureData",
    "decode",
    "prepare",
]
