"""Image files of any colour mode, depth and orientation become the pixels that a person sees."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge.errors import ImageError
from qwenvl_edge.inputs.pictures import load_picture
from support.image_bytes import chunk, encoded, on_white


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_modes_without_alpha_convert_as_pillow_does(mode, rgb):
    image = Image.fromarray(rgb).convert(mode)
    np.testing.assert_array_equal(load_picture(image).pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_the_published_conversion(mode, rgb):
    image = Image.fromarray(rgb).convert(mode) if mode != "I;16" else Image.fromarray(rgb[:, :, 0].astype(np.uint16))
    wanted = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(load_picture(image, as_published=True).pixels, wanted)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_put_on_white(kind):
    rgba = np.random.default_rng(1).integers(0, 256, (17, 23, 4), dtype=np.uint8)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    picture = load_picture(encoded(Image.fromarray(rgba), kind, **options))
    np.testing.assert_array_equal(picture.pixels, on_white(rgba))


def test_every_alpha_of_every_level():
    levels, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    rgba = np.dstack([levels, 255 - levels, levels, alpha])
    np.testing.assert_array_equal(load_picture(Image.fromarray(rgba)).pixels, on_white(rgba))
    blended = Image.new("RGB", (256, 256), "white")
    blended.paste(Image.fromarray(rgba), mask=Image.fromarray(alpha))
    np.testing.assert_array_equal(load_picture(Image.fromarray(rgba)).pixels, np.asarray(blended))


def test_gray_with_alpha_and_premultiplied_alpha():
    gray = Image.fromarray(np.array([[[0, 0], [0, 255], [100, 0]]], np.uint8), "LA")
    assert load_picture(encoded(gray, "PNG")).pixels[0].tolist() == [[255] * 3, [0] * 3, [255] * 3]
    palette = gray.convert("L").convert("P")
    palette.putalpha(gray.getchannel("A"))
    for image in (gray.convert("La"), gray.convert("RGBA").convert("RGBa"), palette):
        assert image.mode in ("La", "RGBa", "PA")
        assert load_picture(image).pixels[0].tolist() == [[255] * 3, [0] * 3, [255] * 3]


@pytest.mark.parametrize(
    ("bits", "row"), [(1, b"\x40"), (2, b"\x30"), (4, b"\x0f"), (8, b"\0\xff"), (16, b"\0\0\xff\xff")]
)
def test_gray_of_any_depth_with_a_level_for_transparent(bits, row):
    """Black is what shows, the lightest level is transparent, and the other way round."""
    for key in (0, (1 << bits) - 1):
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0))
        data += chunk(b"tRNS", struct.pack(">H", key)) + chunk(b"IDAT", zlib.compress(b"\0" + row))
        data += chunk(b"IEND", b"")
        assert load_picture(data).pixels[0, :, 0].tolist() == [0 if key else 255, 255]


def test_colours_that_stand_for_transparent(rgb):
    palette = Image.fromarray(rgb).quantize(8)
    clear = np.asarray(palette) == 0
    for data in (encoded(palette, "PNG", transparency=0), encoded(palette, "GIF", transparency=0)):
        found = load_picture(data).pixels
        assert (found[clear] == 255).all()
        np.testing.assert_array_equal(found[~clear], np.asarray(palette.convert("RGB"))[~clear])
    several = load_picture(encoded(palette, "PNG", transparency=bytes([0, 255, 0]))).pixels
    assert (several[(np.asarray(palette) == 0) | (np.asarray(palette) == 2)] == 255).all()
    plain = Image.fromarray(np.array([[[1, 2, 3], [0, 0, 0]]], np.uint8))
    assert load_picture(encoded(plain, "PNG", transparency=(0, 0, 0))).pixels[0].tolist() == [[1, 2, 3], [255] * 3]
    gray = Image.fromarray(np.array([[7, 0]], np.uint8))
    assert load_picture(encoded(gray, "PNG", transparency=0)).pixels[0].tolist() == [[7] * 3, [255] * 3]
    deep = Image.fromarray(np.array([[0, 257, 65535]], np.uint16))
    assert load_picture(encoded(deep, "PNG", transparency=0)).pixels[0, :, 0].tolist() == [255, 1, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_gray_is_scaled_by_its_range(kind):
    values = np.array([[0, 128, 129, 257, 32768, 65279, 65535]], np.uint16)
    data = encoded(Image.fromarray(values), kind)
    wanted = np.rint(values[0] / 257).astype(int).tolist()
    assert load_picture(data).pixels[0, :, 0].tolist() == wanted
    opened = Image.open(io.BytesIO(data))
    assert load_picture(opened).pixels[0, :, 1].tolist() == wanted
    assert load_picture(data, as_published=True).pixels[0, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("dtype", "words"), [(np.float32, "floating-point"), (np.int32, "32-bit")])
def test_gray_without_a_known_range_is_refused(dtype, words):
    image = Image.fromarray(np.array([[0, 1, 300]], dtype))
    for source in (image, encoded(image, "TIFF")):
        with pytest.raises(ImageError, match=f"holds {words} gray, whose range is not known; scale it to 0..255"):
            load_picture(source)


def test_cmyk_files(rgb):
    data = encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG")
    np.testing.assert_array_equal(load_picture(data).pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_picture(data).pixels[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_tags_are_followed(kind, orientation, tmp_path):
    """The picture is stored as a camera held that way stores it: row 0 and column 0 lie where EXIF 2.3 says."""
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24], upright[:16, 24:], upright[16:, :24] = (250, 10, 10), (10, 250, 10), (10, 10, 250)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    path = tmp_path / "photo"
    path.write_bytes(data)
    for source in (data, path, Image.open(path)):
        picture = load_picture(source)
        assert picture.size == (48, 32)
        assert np.abs(picture.pixels.astype(int) - upright).max() <= (12 if kind == "JPEG" else 0)
    if kind != "TIFF":  # which Pillow itself turns
        assert load_picture(data, as_published=True).size == Image.open(path).size


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"no tags", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_damaged_tags_count_as_none(exif, rgb):
    assert load_picture(encoded(Image.fromarray(rgb), "JPEG", exif=exif)).size == (5, 7)


def test_a_file_of_two_formats_is_what_its_first_bytes_say(rgb):
    """The same decoder gives the size and the pixels: appended data is another decoder's, which nobody asks."""
    gif, png = encoded(Image.new("RGB", (3, 2), "red"), "GIF"), encoded(Image.fromarray(rgb), "PNG")
    assert load_picture(gif + png).size == (3, 2) and load_picture(png + gif).size == (5, 7)
