"""Each row of the decode policy on files made in memory; resizing and cropping against torchvision;
and the one preprocessing function.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyft.data.picture import (
    MAX_PIXELS,
    centre_crop,
    centre_offset,
    check_header,
    check_size,
    decode,
    prepare,
    printable,
    resize_short_side,
    working_picture,
)
from tinyft.errors import DataError
from tinyft.weights.preprocess import Preprocess

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "golden_decode.npz")

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour_type, raw, extra=b""):
    """A PNG written by hand, so that the header may say anything."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body


def oriented(kind, orientation, encode):
    """A 6x4 file whose left half is red, with an EXIF orientation."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, :3] = RED
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(pixels, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


def test_heic_is_read_by_pillow_heif(tmp_path, rough):
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs tinyft[heic]")
    pixels = np.repeat(np.repeat(rough(6, 8), 8, 0), 8, 1)  # (48, 64, 3)
    path = tmp_path / "phone.heic"
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(path, quality=-1, chroma=444)
    out = decode(path.read_bytes())
    assert out.shape == pixels.shape
    assert np.abs(out.astype(int) - pixels).mean() < 3
    check_header(io.BytesIO(path.read_bytes()))
    with pytest.raises(DataError, match=r"cannot be (decoded|read)"):
        decode(path.read_bytes()[:-50])


def test_heic_without_pillow_heif_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r'pip install "tinyft\[heic\]"; or save it as JPEG'):
        decode(b"\0\0\0\x18ftypheic" + bytes(100))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_turns_the_picture(kind, encode):
    data = oriented(kind, 6, encode)  # 6: turn clockwise by 90 degrees, so that left becomes top
    out = decode(data)
    assert out.shape == (6, 4, 3)
    assert out[0, 0, 0] > 200 and out[5, 0, 0] < 50
    assert decode(data, exif_transpose=False).shape == (4, 6, 3)


def test_unknown_orientation_is_left_alone(encode):
    assert decode(oriented("PNG", 77, encode)).shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("exif", "shape"),
    [
        (b"garbage!", (1, 2, 3)),
        # Orientation 6, and a resolution unit of a type that no program can write again.
        (b"II*\0\x08\0\0\0\2\0" + struct.pack("<HHIIHHII", 0x112, 3, 1, 6, 0x128, 8, 1, 0xFFFF)
         + bytes(4), (2, 1, 3)),
    ],
)  # fmt: skip
def test_damage_beside_the_orientation_is_no_damage(exif, shape):
    raw = b"\0" + bytes(6)
    assert decode(png(2, 1, 8, 2, raw, chunk(b"eXIf", exif))).shape == shape


def test_alpha_is_composited_over_white(encode):
    pixels = np.array([[[0, 0, 255, 128], [255, 0, 0, 0], [10, 20, 30, 255]]], np.uint8)
    out = decode(encode(pixels))
    assert out.tolist() == [[[127, 127, 255], list(WHITE), [10, 20, 30]]]


def test_grey_with_alpha_is_composited_over_white(encode):
    out = decode(encode(np.array([[[0, 0], [0, 128], [90, 255]]], np.uint8)))
    assert out[0, :, 0].tolist() == [255, 127, 90]


def test_palette_transparency_shows_no_hidden_colour(encode):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    assert decode(encode(image)).tolist() == [[list(RED), list(BLUE)]]
    assert decode(encode(image, transparency=0)).tolist() == [[list(WHITE), list(BLUE)]]
    assert decode(encode(image, "GIF", transparency=0)).tolist() == [[list(WHITE), list(BLUE)]]


@pytest.mark.parametrize(
    ("pixels", "key"),
    [(np.array([[7, 9]], np.uint8), 7), (np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8), (1, 2, 3))],
)
def test_transparency_key_of_grey_and_colour(pixels, key, encode):
    assert decode(encode(pixels, transparency=key)).tolist() == [[list(WHITE), [9, 9, 9]]]


def test_grey16_keeps_the_high_byte(encode):
    values = np.array([[0, 255, 256, 1000, 40000, 65535]], np.uint16)
    out = decode(encode(values))
    assert out.dtype == np.uint8 and out.flags.writeable
    assert out[0, :, 0].tolist() == [0, 0, 1, 3, 156, 255]
    assert (out == out[..., :1]).all()


def test_transparency_key_of_grey16_needs_both_bytes():
    raw = b"\0" + np.array([1000, 1001, 50000], ">u2").tobytes()
    out = decode(png(3, 1, 16, 0, raw, chunk(b"tRNS", struct.pack(">H", 1000))))
    assert out[0, :, 0].tolist() == [255, 3, 195]


def test_big_endian_grey16_is_the_same():
    values = np.array([[0, 1000, 65535]], ">u2")
    out = decode(b"P5 3 1 65535\n" + values.tobytes())
    assert out[0, :, 0].tolist() == [0, 3, 255]


def test_rgb16_keeps_the_high_byte():
    raw = b"\0" + np.array([256 * 3 + 200, 1000, 65535], ">u2").tobytes()
    assert decode(png(1, 1, 16, 2, raw)).tolist() == [[[3, 3, 255]]]


def test_32_bit_integers_are_16_bit_grey_or_refused(encode):
    out = decode(encode(Image.fromarray(np.array([[0, 100, 255]], np.int32)), "TIFF"))
    assert out[0, :, 0].tolist() == [0, 100, 255]
    out = decode(encode(Image.fromarray(np.array([[0, 1000, 65535]], np.int32)), "TIFF"))
    assert out[0, :, 0].tolist() == [0, 3, 255]
    for value in (-1, 65536):
        image = Image.fromarray(np.array([[0, value]], np.int32))
        with pytest.raises(DataError, match="do not fit 16 bits"):
            decode(encode(image, "TIFF"))


def test_floating_point_is_refused(encode):
    with pytest.raises(DataError, match="no known range"):
        decode(encode(Image.fromarray(np.array([[0.5]], np.float32)), "TIFF"))


def test_one_bit_and_grey_are_repeated(encode):
    assert decode(encode(Image.new("1", (1, 1), 1))).tolist() == [[list(WHITE)]]
    assert decode(encode(np.array([[77]], np.uint8))).tolist() == [[[77, 77, 77]]]


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("YCbCr", "TIFF"), ("LAB", "TIFF")])
def test_other_colour_spaces_are_converted(mode, kind, encode, rough):
    picture = Image.fromarray(rough(8, 8))
    image = Image.new("LAB", (8, 8)) if mode == "LAB" else picture.convert(mode)
    assert decode(encode(image, kind)).shape == (8, 8, 3)


def test_an_uncompressed_ycbcr_tiff_shows_its_colours(encode):
    """Pillow 11.3 to 12.2 call it truncated."""
    picture = Image.new("RGB", (9, 5), (200, 30, 90))
    picture.paste((20, 180, 60), (0, 0, 2, 2))
    data = encode(picture.convert("YCbCr"), "TIFF")
    near = np.abs(decode(data).astype(int) - np.asarray(picture))
    assert near.max() <= 3  # of the rounding of both conversions
    with pytest.raises(DataError, match="truncated"):
        decode(data[:-30])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(kind, encode):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert decode(data)[0, 0].tolist() == list(RED)


def test_a_colour_profile_is_not_applied(encode, rough):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encode(rough(5, 7), icc_profile=profile)
    np.testing.assert_array_equal(decode(data), rough(5, 7))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF"])
def test_a_file_that_is_cut_off_is_refused(kind, encode, rough):
    data = encode(rough(64, 64), kind)
    with pytest.raises(DataError):
        decode(data[: len(data) * 6 // 10])


@pytest.mark.parametrize(
    "data",
    [b"<html>not found</html>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe EPSF\n"],
)
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(DataError, match="not a picture of a known format"):
        decode(data)


def test_an_empty_file_says_so():
    with pytest.raises(DataError, match="0 bytes"):
        decode(b"")


def test_eps_is_never_tried(encode):
    with pytest.raises(DataError, match="not a picture of a known format"):
        decode(encode(Image.new("RGB", (4, 4)), "EPS"))


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (12_000, 10_000), (8001, 8001)])
def test_a_decompression_bomb_is_refused_from_the_header(width, height, recwarn):
    data = png(width, height, 8, 0, b"")
    with pytest.raises(DataError, match="pixels"):
        decode(data)
    with pytest.raises(DataError, match="pixels"):
        check_header(io.BytesIO(data))


def test_size_limits():
    check_size(8000, 8000)
    check_size(20, 1)
    with pytest.raises(DataError, match="more than 20 times"):
        check_size(1, 21)
    with pytest.raises(DataError, match="64 million"):
        check_size(MAX_PIXELS // 4000 + 1, 4000)
    with pytest.raises(DataError, match="no pixels"):
        check_size(0, 4)


def test_global_settings_of_pillow_stay_as_they_are(encode, rough):
    from PIL import ImageFile

    limit, truncated = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    decode(encode(rough(8, 8)))
    assert limit == Image.MAX_IMAGE_PIXELS and truncated == ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_draft_setting_elsewhere_changes_nothing(encode, rough):
    data = encode(rough(64, 64), "JPEG")
    before = decode(data)
    Image.open(io.BytesIO(data)).draft("RGB", (8, 8))
    np.testing.assert_array_equal(decode(data), before)


@pytest.mark.parametrize("position", range(0, 400, 7))
def test_flipped_bytes_end_in_pixels_or_a_data_error(position, encode, rough):
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"):
        data = bytearray(encode(rough(20, 20), kind))
        data[position % len(data)] ^= 0xFF
        try:
            out = decode(bytes(data))
        except (DataError, UserWarning):  # Pillow warns of corrupt metadata; tests make it an error
            continue
        assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == 3


PICTURES = {
    "gray16.png": (48, 64),
    "rgb16.png": (48, 64),
    "cmyk.jpg": (48, 64),
    "palette_transparency.png": (48, 64),
    "rgba.png": (48, 64),
    "gray_alpha.png": (48, 64),
    "gray.jpg": (48, 64),
    "bilevel.png": (48, 64),
    "exif_orientation6.jpg": (48, 64),
    "animated.gif": (48, 64),
    "one_pixel.png": (1, 1),
    "png_named.jpg": (48, 64),
    "progressive.jpg": (48, 64),
}
REFUSED = {
    "truncated.jpg": "truncated",
    "zero_bytes.png": "0 bytes",
    "text_named.jpg": "not a picture",
    "zero_width.png": "not a picture|no pixels|header",
    "bomb_100000x100000.png": "pixels",
    "very_wide_20000x2.png": "more than 20 times",
}


@pytest.mark.parametrize("name", PICTURES)
def test_odd_pictures_are_read(name, shared):
    out = decode((shared / "data" / "hostile" / name).read_bytes())
    assert out.shape == (*PICTURES[name], 3)


@pytest.mark.parametrize("name", REFUSED)
def test_bad_pictures_are_refused(name, shared):
    with pytest.raises(DataError, match=REFUSED[name]):
        decode((shared / "data" / "hostile" / name).read_bytes())


def test_the_turned_photo_has_its_colours_where_they_belong(shared):
    out = decode((shared / "data" / "hostile" / "exif_orientation6.jpg").read_bytes())
    corners = [out[5, 5], out[5, -5], out[-5, 5], out[-5, -5]]
    assert [corner.argmax() for corner in corners[:3]] == [0, 1, 2] and corners[3].min() > 200


def test_grey16_ramp_uses_the_whole_range(shared):
    out = decode((shared / "data" / "hostile" / "gray16.png").read_bytes())
    assert abs(float(out.mean()) - 127.5) < 1


# -------------------------------------------------------------------- resizing and cropping


@pytest.mark.parametrize("key", [key for key in GOLDEN.files if "x" in key])
def test_equals_torchvision_to_the_last_bit(key, rough):
    size, interpolation = key.split("_")
    picture = rough(*map(int, size.split("x")))
    out = prepare(picture, Preprocess(resize=32, crop=28, interpolation=interpolation))
    np.testing.assert_array_equal(out, GOLDEN[key])


def test_centre_offsets_equal_torchvision():
    assert [centre_offset(margin) for margin in range(41)] == GOLDEN["offsets"].tolist()


def test_the_long_side_is_rounded_down(rough):
    assert resize_short_side(rough(333, 500), 256).shape == (256, 384, 3)
    assert resize_short_side(rough(500, 333), 256).shape == (384, 256, 3)


def test_a_narrow_picture_may_not_become_huge(rough):
    with pytest.raises(DataError, match="million pixels"):
        resize_short_side(rough(1, 19), 4000)


def test_a_crop_that_does_not_fit_says_so(rough):
    with pytest.raises(DataError, match="does not fit into a picture of 20x30"):
        centre_crop(rough(30, 20), 24)


def test_path_bytes_and_array_give_the_same(tmp_path, encode, rough):
    preprocess = Preprocess(resize=16, crop=12)
    path = tmp_path / "a.png"
    path.write_bytes(encode(rough(20, 30)))
    expected = prepare(rough(20, 30), preprocess)
    assert expected.shape == (12, 12, 3) and expected.flags.c_contiguous
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(prepare(source, preprocess), expected)


def test_the_given_array_stays_as_it_was(rough):
    picture = rough(20, 30)
    prepare(picture, Preprocess(resize=16, crop=12))
    np.testing.assert_array_equal(picture, rough(20, 30))


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"bad\.jpg: not a picture"):
        prepare(tmp_path / "bad.jpg", Preprocess(resize=16, crop=12))
    with pytest.raises(FileNotFoundError):
        prepare(tmp_path / "none.jpg", Preprocess(resize=16, crop=12))


@pytest.mark.parametrize(
    "array",
    [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)],
)
def test_a_wrong_array_says_what_is_expected(array):
    with pytest.raises(DataError, match=r"must be uint8 \(height, width, 3\)"):
        prepare(array, Preprocess(resize=16, crop=12))


def test_a_wrong_type_is_a_type_error():
    with pytest.raises(TypeError, match="a picture is a path, bytes, a uint8 array or Pillow"):
        prepare(3, Preprocess(resize=16, crop=12))


def test_shrinking_without_antialiasing_is_refused(rough):
    preprocess = Preprocess(resize=16, crop=12, antialias=False)
    with pytest.raises(DataError, match="without antialiasing"):
        working_picture(rough(20, 30), preprocess)
    assert working_picture(rough(16, 30), preprocess).shape == (16, 30, 3)


def test_undecodable_names_are_spelt_out():
    assert printable(b"caf\xe9.jpg".decode("utf-8", "surrogateescape")) == "caf\\udce9.jpg"
