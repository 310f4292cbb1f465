"""One picture, nothing random: from a path, bytes or pixels to the square that a network sees.

`working_picture` decodes and resizes to working size, the part that is worth remembering; `shown`
makes it the square. Prediction calls `prepare`, which does both; validation does the same with
remembered working pictures (tinyft/data/loader.py), and training augments them
(tinyft/data/augment.py). Subtracting the mean and dividing by the deviation is the backend's
`images` kernel, on the whole batch.

**Decoding** decides here, once, everything that a picture file can surprise with:

| in the file                      | what comes out                                               |
| -------------------------------- | ------------------------------------------------------------ |
| EXIF orientation                 | the picture right side up (switch: `exif_transpose`)         |
| transparency (alpha or a key)    | composited over white, so that hidden colours do not show    |
| a key of 2, 4 or 3x16 bits (PNG) | as Pillow compares it, with 8-bit pixels: it seldom matches  |
| 16-bit grey                      | the high byte, as Pillow reduces 16-bit colour               |
| 32-bit integers                  | as 8-bit or 16-bit grey if they fit, else refused            |
| floating point                   | refused: nobody knows its range                              |
| grey, palette, 1-bit, CMYK, ...  | converted to RGB by Pillow                                   |
| several frames                   | the first                                                    |
| ICC profile                      | not applied (as torchvision, fastai and timm)                |
| HEIC                             | read by pillow-heif, turned upright by it; else refused      |
| cut off, damaged, not a picture  | refused                                                      |
| more than 64 Mpixel, or long     | refused from the header, before memory is taken              |

The file's *content* names its format, never its extension, and only the formats of `FORMATS` are
tried: EPS would start Ghostscript. No global setting of Pillow is read or changed.

**Resizing and cropping** equal torchvision's presets to the last bit. The filter is part of a
pretrained model: Pillow's bilinear filter averages when it shrinks, OpenCV's and a tensor's do not,
and the difference costs up to one point of ImageNet accuracy. So do sizes and offsets that are
rounded another way. Hence Pillow alone resizes, in its fixed-point arithmetic on bytes.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np

from tinyft.data.resample import resample
from tinyft.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from tinyft.weights.preprocess import Preprocess

Source: TypeAlias = "bytes | str | os.PathLike[str] | np.ndarray | Picture"

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
# ISO/IEC 23008-12: the brands of HEIC files, as phones write them; Pillow does not read these.
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# EXIF 2.32, section 4.6.4: the tag, and how a picture of each orientation is turned upright.
ORIENTATION = 0x0112
TURNS: dict[object, str] = {  # a file may have anything in that tag
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
PHOTOMETRIC, YCBCR = 262, 6  # TIFF 6.0: the tag that says what a pixel's values mean
MAX_PIXELS = 64_000_000  # 192 MB as RGB; the largest phone cameras crop their 200 Mpixel to 50
MAX_ASPECT = 20  # long side / short side; bounds the resized picture at 20 * resize * resize pixels


def prepare(source: Source, preprocess: Preprocess) -> np.ndarray:
    """Return the network's input for one picture, before normalisation.

    `source` is a path, the bytes of a picture file, a picture of Pillow, or an array of RGB pixels.

    Shapes:  array source (H, W, 3) uint8; out (S, S, 3) uint8, S = preprocess.crop
    Raises:  DataError, naming the file where there is one; OSError if the file cannot be read
    """
    return np.ascontiguousarray(shown(working_picture(source, preprocess), preprocess))


def working_picture(source: Source, preprocess: Preprocess) -> np.ndarray:
    """Return the whole picture, decoded, its short side at `preprocess.resize` pixels.

    Shapes:  out (H, W, 3) uint8, min(H, W) == preprocess.resize
    Raises:  as `prepare`
    """
    if isinstance(source, np.ndarray):
        pixels = source
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise DataError(
                f"a picture as an array must be uint8 (height, width, 3); "
                f"got {pixels.dtype} {pixels.shape}"
            )
        check_size(pixels.shape[1], pixels.shape[0])
    elif isinstance(source, bytes):
        pixels = decode(source, exif_transpose=preprocess.exif_transpose)
    elif isinstance(source, str | os.PathLike):
        try:
            data = Path(source).read_bytes()
            pixels = decode(data, exif_transpose=preprocess.exif_transpose)
        except DataError as error:
            raise DataError(f"{printable(source)}: {error}") from error
    elif hasattr(source, "getexif"):
        pixels = pixels_of(source, exif_transpose=preprocess.exif_transpose)
    else:
        kind = type(source).__name__
        raise TypeError(f"a picture is a path, bytes, a uint8 array or Pillow's; got {kind}")
    if not preprocess.antialias and min(pixels.shape[:2]) > preprocess.resize:
        raise DataError(
            "the weights ask for shrinking without antialiasing, which Pillow does not do; bring "
            f"pictures whose short side is {preprocess.resize} pixels"
        )
    return resize_short_side(pixels, preprocess.resize, preprocess.interpolation)


def shown(picture: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Cut the middle out of a working picture; with `whole_square`, if the middle square is larger,
    it resamples all of that instead, as augmentation does with a draw that changes nothing.

    Shapes:  picture (H, W, 3) uint8; out (S, S, 3) uint8, S = preprocess.crop
    """
    if preprocess.whole_square and preprocess.resize > preprocess.crop:
        square = cut_square(picture, 0.5)
        return resample(square, np.eye(3), preprocess.crop, brightness=0.5, contrast=1.0)
    # differs from fastai: its validation has no such crop, that of published weights
    return centre_crop(picture, preprocess.crop)


def printable(path: str | os.PathLike[str]) -> str:
    """Spell out a path's undecodable bytes, so that any terminal and file can hold it; an address,
    of which pathlib takes a slash, is as it was.
    """
    text = os.fspath(path).encode("utf-8", "backslashreplace").decode()
    return re.sub(r"^([a-z]{2,9}):/(?!/)", r"\1://", text)


# ---------------------------------------------------------------------------------------- decoding


def decode(data: bytes, *, exif_transpose: bool = True) -> np.ndarray:
    """Return the pixels of a picture file, as RGB, right side up, over white.

    Shapes:  out (H, W, 3) uint8, owned and writable
    Raises:  DataError for whatever is not a whole picture of an allowed format and size; the
             message gives the reason without a file name, which only the caller knows
    """
    with _open(io.BytesIO(data)) as picture:
        return pixels_of(picture, exif_transpose=exif_transpose)


def pixels_of(picture: Picture, *, exif_transpose: bool = True) -> np.ndarray:
    """Return the same of a picture of Pillow's, which may not be loaded yet.

    Shapes:  out (H, W, 3) uint8, owned and writable
    Raises:  DataError as `decode`
    """
    from PIL import Image

    check_size(*picture.size)
    try:
        is_ycbcr = _read_as_ycbcr(picture)
        picture.load()
        # differs from fastai, which ignores the orientation. (ImageOps.exif_transpose would
        # write the other tags anew, and fail on one that it cannot write.)
        turn = TURNS.get(orientation(picture)) if exif_transpose else None
        upright = picture.transpose(Image.Transpose[turn]) if turn else picture
        return _to_rgb(Image.merge("YCbCr", upright.split()) if is_ycbcr else upright)
    except DataError:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything, struct.error too
        raise DataError(f"the picture cannot be decoded: {error}") from error


def check_header(stream: BinaryIO) -> None:
    """Check format and size from the first bytes of a file, about 0.1 ms, without decoding.

    A file that is cut off later still passes: only `decode` reads to the end.

    Raises:  DataError as `decode`
    """
    with _open(stream):
        pass


def check_size(width: int, height: int) -> None:
    """Refuse pictures that would take too much memory, now or when the short side is resized.

    Raises:  DataError if a side is 0, or above `MAX_PIXELS` or `MAX_ASPECT`
    """
    if min(width, height) < 1:
        raise DataError(f"the picture is {width}x{height}: it has no pixels")
    if width * height > MAX_PIXELS:
        raise DataError(
            f"the picture is {width}x{height}, more than {MAX_PIXELS // 10**6} million pixels; "
            f"shrink it first"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(
            f"the picture is {width}x{height}: its long side is more than {MAX_ASPECT} times its "
            f"short side; crop it first"
        )


def _open(stream: BinaryIO) -> Picture:
    """Read the header only. Pillow decodes later, in `load`."""
    from PIL import Image, UnidentifiedImageError

    start = stream.read(12)
    if not start:
        raise DataError("the file is empty (0 bytes)")
    stream.seek(0)
    is_heif = start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS
    Image.init()
    formats = tuple(name for name in FORMATS if name in Image.OPEN)  # a Pillow may lack some
    try:
        picture = _open_heif(stream) if is_heif else Image.open(stream, formats=formats)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"not a picture of a known format ({', '.join(formats)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"the picture declares too many pixels: {error}") from error
    except Exception as error:
        raise DataError(f"the picture's header cannot be read: {error}") from error
    try:
        check_size(*picture.size)
    except DataError:
        picture.close()
        raise
    return picture


def _open_heif(stream: BinaryIO) -> Picture:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise DataError(
            'a HEIC photo needs pillow-heif: pip install "tinyft[heic]"; or save it as JPEG'
        ) from None
    return HeifImageFile(stream)


def _read_as_ycbcr(picture: Picture) -> bool:
    """Tell whether the loaded picture will have Y, Cb and Cr in the place of red, green, blue.

    Pillow before 13 looks for four bytes a pixel in an uncompressed YCbCr TIFF, which has three,
    and calls it truncated; so it is told to read three as they are.
    """
    from PIL.TiffImagePlugin import TiffImageFile

    if not isinstance(picture, TiffImageFile) or picture.tag_v2.get(PHOTOMETRIC) != YCBCR:
        return False
    tiles = [(tile, tile.args) for tile in picture.tile if isinstance(tile.args, tuple)]
    if not any(tile.codec_name == "raw" and args[0] == "RGBX" for tile, args in tiles):
        return False
    picture.tile = [tile._replace(args=("RGB", *args[1:])) for tile, args in tiles]
    return True


def orientation(picture: Picture) -> object:
    """Return the EXIF orientation, or None: a damaged block is no damage to the pixels."""
    try:
        return picture.getexif().get(ORIENTATION)
    except Exception:  # as in decode: Pillow raises nearly anything
        return None


def _to_rgb(picture: Picture) -> np.ndarray:
    from PIL import Image

    if picture.mode == "F":
        raise DataError("floating-point pixels have no known range; save the picture with 8 bits")
    if picture.mode.startswith("I"):  # I;16, I;16B, I;16L, I;16N and 32-bit I
        grey = np.asarray(picture)
        if grey.min() < 0 or grey.max() > 65535:
            raise DataError(
                f"32-bit pixels from {grey.min()} to {grey.max()} do not fit 16 bits; "
                f"save the picture with 8 or 16 bits"
            )
        if picture.mode == "I" and grey.max() <= 255:
            grey = grey << 8
        # differs from fastai, which lets Pillow clip at 255: nearly all white
        rgb = np.where(grey == picture.info.get("transparency", -1), 255, grey >> 8)
        return np.repeat(rgb.astype(np.uint8)[:, :, None], 3, axis=2)
    if picture.has_transparency_data:
        # differs from fastai, which shows the colours that transparent pixels hide
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return np.array(picture.convert("RGB"))


# --------------------------------------------------------------------------- resizing and cropping


def resize_short_side(
    picture: np.ndarray, size: int, interpolation: str = "bilinear"
) -> np.ndarray:
    """Resize the whole picture so that its short side is `size` pixels; its shape is kept.

    Shapes:  picture (H, W, 3) uint8; out (P, Q, 3) uint8 with min(P, Q) == size
    Raises:  DataError if the result would be larger than `MAX_PIXELS`
    Source:  torchvision 0.29.1, transforms.Resize on a PIL image
    """
    height, width = picture.shape[:2]
    short, long = sorted((height, width))
    if short == size:
        return picture
    long = int(size * long / short)  # rounded down, as torchvision: 500x333 to 256 gives 384
    target = (long, size) if width > height else (size, long)
    check_size(*target)  # a narrow picture becomes large: 1x19 to 4096 has 319 Mpixel
    return resize_to(picture, target, interpolation)


def resize_to(
    picture: np.ndarray, target: tuple[int, int], interpolation: str = "bilinear"
) -> np.ndarray:
    """Resize the picture to `target`, which is (width, height) in pixels, as in Pillow.

    Shapes:  picture (H, W, 3) uint8; out (target[1], target[0], 3) uint8
    """
    from PIL import Image

    whole = Image.fromarray(np.ascontiguousarray(picture))
    return np.array(whole.resize(target, Image.Resampling[interpolation.upper()]))


def cut_square(picture: np.ndarray, position: float) -> np.ndarray:
    """Cut out the largest square, at `position` 0..1 along the longer side, as a view."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = int(position * (height - side)), int(position * (width - side))
    return picture[top : top + side, left : left + side]


def centre_crop(picture: np.ndarray, size: int) -> np.ndarray:
    """Cut out the square of `size` pixels in the middle of the picture, as a view.

    Shapes:  picture (H, W, C); out (size, size, C)
    Raises:  DataError if a side is shorter than `size`
    Source:  torchvision 0.29.1, transforms.CenterCrop
    """
    height, width = picture.shape[:2]
    if min(height, width) < size:
        raise DataError(
            f"a crop of {size} pixels does not fit into a picture of {width}x{height}; "
            f"resize must be at least the crop"
        )
    top, left = centre_offset(height - size), centre_offset(width - size)
    return picture[top : top + size, left : left + size]


def centre_offset(margin: int) -> int:
    """Halve the margin, rounding to even: margins 31, 33, 35 give 16, 16, 18."""
    return round(margin / 2)
