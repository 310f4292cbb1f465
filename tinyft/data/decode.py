"""The decode policy: from the bytes of a picture file to pixels, in training and in prediction.

Everything that a picture file can surprise with is decided here, once:

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
| cut off, damaged, not a picture  | refused                                                      |
| more than 64 Mpixel, or long     | refused from the header, before memory is taken              |

The file's *content* names its format, never its extension, and only the formats of `FORMATS` are
tried: EPS would start Ghostscript. No global setting of Pillow is read or changed.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from tinyft.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
# EXIF 2.32, section 4.6.4: the tag, and how a picture of each orientation is turned upright.
ORIENTATION = 0x0112
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
PHOTOMETRIC, YCBCR = 262, 6  # TIFF 6.0: the tag that says what the numbers of a pixel mean
MAX_PIXELS = 64_000_000  # 192 MB as RGB; the largest phone cameras crop their 200 Mpixel to 50
MAX_ASPECT = 20  # long side / short side; bounds the resized picture at 20 * resize * resize pixels


def decode(data: bytes, *, exif_transpose: bool = True) -> np.ndarray:
    """The pixels of a picture file, as RGB, right side up, over white.

    Shapes:  out (H, W, 3) uint8, owned and writable
    Raises:  DataError for whatever is not a whole picture of an allowed format and size; the
             message gives the reason without a file name, which only the caller knows
    """
    from PIL import Image

    try:
        with _open(io.BytesIO(data)) as picture:
            is_ycbcr = _read_as_ycbcr(picture)
            picture.load()
            upright = _upright(picture) if exif_transpose else picture
            return _to_rgb(Image.merge("YCbCr", upright.split()) if is_ycbcr else upright)
    except DataError:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything, struct.error too
        raise DataError(f"the picture cannot be decoded: {error}") from error


def check_header(stream: BinaryIO) -> None:
    """Checks format and size from the first bytes of a file, about 0.1 ms, without decoding.

    A file that is cut off later still passes: only `decode` reads to the end.

    Raises:  DataError as `decode`
    """
    with _open(stream):
        pass


def check_size(width: int, height: int) -> None:
    """Refuses pictures that would take too much memory, now or when the short side is resized.

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
    """Reads the header only. Pillow decodes later, in `load`."""
    from PIL import Image, UnidentifiedImageError

    if not stream.read(1):
        raise DataError("the file is empty (0 bytes)")
    stream.seek(0)
    Image.init()
    formats = tuple(name for name in FORMATS if name in Image.OPEN)  # a Pillow may lack some
    try:
        picture = Image.open(stream, formats=formats)
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


def _read_as_ycbcr(picture: Picture) -> bool:
    """Whether the picture, as it will be loaded, has Y, Cb and Cr in the place of red, green, blue.

    Pillow before 13 looks for four bytes a pixel in an uncompressed YCbCr TIFF, which has three,
    and calls it truncated.
    """
    if picture.format != "TIFF" or picture.tag_v2.get(PHOTOMETRIC) != YCBCR:
        return False
    if not any(tile.codec_name == "raw" and tile.args[0] == "RGBX" for tile in picture.tile):
        return False
    picture.tile = [tile._replace(args=("RGB", *tile.args[1:])) for tile in picture.tile]
    return True


def _upright(picture: Picture) -> Picture:
    """Turned as the EXIF orientation says. An unknown orientation leaves it as it is.

    ImageOps.exif_transpose would write the other tags anew, and fail on one that it cannot write.
    """
    from PIL import Image

    # differs from fastai, which ignores the orientation
    turn = TURNS.get(orientation(picture))
    return picture.transpose(Image.Transpose[turn]) if turn else picture


def orientation(picture: Picture) -> object:
    """What the EXIF block says, or None: a damaged block is no damage to the pixels."""
    try:
        return picture.getexif().get(ORIENTATION)
    except Exception:  # as in decode: Pillow raises nearly anything
        return None


def _to_rgb(picture: Picture) -> np.ndarray:
    if picture.mode.startswith("I"):  # I;16, I;16B, I;16L, I;16N and 32-bit I
        grey, transparent = np.asarray(picture), picture.info.get("transparency", -1)
        if picture.mode == "I" and 0 <= grey.min() <= grey.max() <= 255:
            grey = grey << 8
        return _grey16_to_rgb(grey, transparent)
    if picture.mode == "F":
        raise DataError("floating-point pixels have no known range; save the picture with 8 bits")
    if picture.has_transparency_data:
        # differs from fastai, which shows the colours that transparent pixels hide
        picture = _over_white(picture)
    return np.array(picture.convert("RGB"))


def _grey16_to_rgb(grey: np.ndarray, transparent: int) -> np.ndarray:
    """The high byte, three times, and white where all of a pixel is `transparent`. Pillow's own
    convert would clip at 255: nearly all white.
    """
    if grey.min() < 0 or grey.max() > 65535:
        raise DataError(
            f"32-bit pixels from {grey.min()} to {grey.max()} do not fit 16 bits; "
            f"save the picture with 8 or 16 bits"
        )
    # differs from fastai, which clips
    shown = np.where(grey == transparent, 255, grey >> 8)
    return np.repeat(shown.astype(np.uint8)[:, :, None], 3, axis=2)


def _over_white(picture: Picture) -> Picture:
    from PIL import Image

    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture.convert("RGBA"))
