import io
import os
import struct
import threading
import weakref
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge.errors import ImageError
from qwenvl_edge.families.base import Preprocessing
from qwenvl_edge.families.qwen_vl import MEAN, STD
from qwenvl_edge.inputs import pictures
from qwenvl_edge.inputs.pictures import PictureLoader, load_picture, pixel_values
from support.paths import DATA

PREPROCESSING = Preprocessing(56, MEAN, STD)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize(("index", "name"), list(enumerate(["a.png", "b.png", "c.png", "rgba.png", "gray.png"])))
def test_pixel_values_equal_the_published_preprocessing(index, name):
    golden = np.load(DATA / "tiny" / "golden_vision.npz")["pixel_values"][index]
    values = pixel_values(load_picture(DATA / "images" / name, as_published=True), PREPROCESSING)
    assert values.dtype == np.float32 and values.shape == (3, 56, 56)
    np.testing.assert_array_equal(values, golden)


def test_all_sources_of_one_picture_agree(tmp_path, rgb):
    path = tmp_path / "x.png"
    path.write_bytes(encoded(Image.fromarray(rgb), "PNG"))
    sources = [rgb, Image.fromarray(rgb), path.read_bytes(), bytearray(path.read_bytes()), path, str(path)]
    pictures = [load_picture(source) for source in sources]
    assert {picture.digest for picture in pictures} == {pictures[0].digest}
    for picture in pictures:
        np.testing.assert_array_equal(picture.pixels, rgb)
    assert pictures[0].size == (5, 7)


def test_array_layouts(rgb):
    gray = rgb[:, :, 0]
    np.testing.assert_array_equal(load_picture(gray).pixels, np.stack([gray] * 3, axis=2))
    np.testing.assert_array_equal(load_picture(gray[:, :, None]).pixels, np.stack([gray] * 3, axis=2))
    np.testing.assert_array_equal(load_picture(rgb[:, :, ::-1], channel_order="bgr").pixels, rgb)
    rgba = np.dstack([rgb, gray])
    bgra = np.dstack([rgb[:, :, ::-1], gray])
    for array, order in ((rgba, "rgb"), (bgra, "bgr")):
        np.testing.assert_array_equal(load_picture(array, channel_order=order).pixels, on_white(rgba))
        np.testing.assert_array_equal(load_picture(array, channel_order=order, as_published=True).pixels, rgb)
        unused = array.copy()
        unused[:, :, 3] = 0  # the fourth byte of a camera's BGRX
        np.testing.assert_array_equal(load_picture(unused, channel_order=order).pixels, rgb)


def test_a_picture_is_a_snapshot_of_its_array(rgb):
    original = rgb.copy()
    picture = load_picture(rgb)
    rgb[:] = 0
    np.testing.assert_array_equal(picture.pixels, original)
    with pytest.raises(ValueError, match="read-only"):
        picture.pixels[0] = 1


def test_digest_depends_on_content_and_shape(rgb):
    other = rgb.copy()
    other[0, 0, 0] ^= 1
    reshaped = rgb.reshape(5, 7, 3)
    assert len({load_picture(each).digest for each in (rgb, other, reshaped)}) == 3


def on_white(rgba: np.ndarray) -> np.ndarray:
    """In float64, rounded; 255 divides no half."""
    alpha = rgba[:, :, 3:] / 255
    return np.rint(rgba[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


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


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


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


@pytest.mark.parametrize("size", [(1, 25_000_000), (70_000, 1_000), (1_001, 1), (1, 65_000)])
def test_strips_are_refused_before_decoding(size):
    """A PNG header of that size; what follows would not even decode."""
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
    with pytest.raises(ImageError, match=f"{size[0]}x{size[1]} pixels, (a side of|one side) more than"):
        load_picture(data)


def test_a_file_of_two_formats_is_what_its_first_bytes_say(rgb):
    """The same decoder gives the size and the pixels: appended data is another decoder's, which nobody asks."""
    gif, png = encoded(Image.new("RGB", (3, 2), "red"), "GIF"), encoded(Image.fromarray(rgb), "PNG")
    assert load_picture(gif + png).size == (3, 2) and load_picture(png + gif).size == (5, 7)


@pytest.mark.parametrize("kind", ["JPEG2000", "ICO", "TGA", "SGI", "PCX"])
def test_other_formats_that_pillow_reads_are_refused(kind, rgb):
    try:
        data = encoded(Image.fromarray(rgb), kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {kind}")
    with pytest.raises(ImageError, match="give JPEG, PNG, WebP, GIF, BMP, TIFF or PPM"):
        load_picture(data)


def test_pipes(tmp_path, rgb):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    data = encoded(Image.fromarray(rgb), "PNG")
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    assert load_picture(path).size == (5, 7)
    writer.join()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("https://example.com/photo.jpg", "https://example.com/photo.jpg is a URL; download it and give its bytes"),
        (Path("https://example.com/photo.jpg"), "https://example.com/photo.jpg is a URL"),
        ("file:///photos/photo.jpg", "is a URL; give the path without file://"),
        ("data:image/png;base64," + "A" * 5000, r"data:image/png;base64,A*\.\.\. is a URL; decode its base64"),
        ("S3://bucket/a.png", "is a URL"),
        (Path("C:\\photos"), "cannot open the picture"),
        ("a" * 5000, r"cannot open the picture 'a*\.\.\.': File name too long"),
    ],
)
def test_urls_are_told_from_paths(source, words):
    with pytest.raises(ImageError, match=words) as caught:
        load_picture(source)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 2), np.float32), "dtype float32"),
        (np.zeros((2, 2), bool), "dtype bool"),
        (np.zeros((2, 2), np.uint16), "dtype uint16"),
        (np.zeros((2, 2, 2), np.uint8), r"shape \[2, 2, 2\]"),
        (np.zeros((1, 2, 2, 3), np.uint8), r"shape \[1, 2, 2, 3\]"),
        (np.zeros((0, 2, 3), np.uint8), "empty"),
        (np.zeros((2, 0), np.uint8), "empty"),
        (Image.new("RGB", (0, 3)), "empty"),
        (b"", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n", "drawing program"),
        (b"hello, this is no picture", "not an image"),
        (3, "type int"),
        (None, "type NoneType"),
        ("https://example.com/a.png", "URL"),
        ("no/such/file.png", "No such file"),
        ("with\0null", "null"),
    ],
)
def test_unusable_sources_are_named(source, message):
    with pytest.raises(ImageError, match=message) as caught:
        load_picture(source, name="picture 2")
    assert "picture 2" in str(caught.value) or isinstance(source, str)


def test_unknown_channel_order(rgb):
    with pytest.raises(ImageError, match="channel_order"):
        load_picture(rgb, channel_order="gbr")


def test_damaged_files(tmp_path):
    whole = (DATA / "images" / "a.png").read_bytes()
    path = tmp_path / "cut.png"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"cut\.png is truncated or damaged"):
        load_picture(path)
    jpeg = encoded(Image.open(DATA / "images" / "a.png").convert("RGB"), "JPEG")
    with pytest.raises(ImageError, match="truncated or damaged"):
        load_picture(jpeg[: len(jpeg) // 2])
    with pytest.raises(ImageError, match="Is a directory"):
        load_picture(tmp_path)


@pytest.mark.parametrize("limit", [34, 3])  # below the pixel count, and below half of it, where Pillow itself refuses
def test_gigantic_pictures_are_refused_before_decoding(monkeypatch, rgb, limit):
    data = encoded(Image.fromarray(rgb), "PNG")
    monkeypatch.setattr(pictures, "MAX_PIXELS", limit)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for source in (data, rgb, Image.fromarray(rgb)):
        with pytest.raises(ImageError, match=f"the limit of {limit}"):
            load_picture(source)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_damage_anywhere_is_an_image_error_or_a_picture(kind, rgb):
    whole = np.frombuffer(encoded(Image.fromarray(rgb), kind), np.uint8)
    generator = np.random.default_rng(len(kind))
    for _ in range(60):
        damaged = whole[: generator.integers(1, len(whole) + 1)].copy()
        places = generator.integers(0, len(damaged), 3)
        damaged[places] = generator.integers(0, 256, 3)
        try:
            picture = load_picture(damaged.tobytes())
        except ImageError:
            continue
        assert picture.pixels.dtype == np.uint8 and picture.pixels.ndim == 3


def no_frames(source, channel_order, name):
    """What a backend on the CPU loads."""


def test_identical_pixels_return_the_same_picture():
    loader = PictureLoader("rgb", no_frames)
    frame = np.random.default_rng(3).integers(0, 256, (9, 7, 3), np.uint8)
    first = loader.load(frame, "picture 1")
    assert loader.load(frame.copy(), "picture 2") is first
    assert loader.load(Image.fromarray(frame), "picture 3") is first and loader.load(first, "picture 4") is first
    for row in range(9):  # also where the rows that are looked at first are equal
        other = frame.copy()
        other[row, 0, 0] += 1
        assert loader.load(other, "picture").digest == load_picture(other).digest != first.digest
    turned = loader.load(frame.reshape(7, 9, 3), "picture")
    assert turned.digest != first.digest


def test_pictures_are_not_kept_for_comparing():
    loader = PictureLoader("bgr", no_frames)
    frame = np.zeros((9, 7, 3), np.uint8)
    reference = weakref.ref(loader.load(frame, "picture"))
    assert reference() is None
    assert loader.load(frame, "again").name == "again"


def test_nv12_frames_are_not_for_the_backend():
    """Whose frames have channels; one of two dimensions would be taken for a gray one."""
    seen = []
    loader = PictureLoader("nv12", lambda source, order, name: seen.append(order))
    frame = np.full((3, 2), 128, np.uint8)
    picture = loader.load(frame, "picture")
    assert picture.size == (2, 2) and loader.load(frame.copy(), "again") is picture
    assert loader.load_new(np.zeros((3, 2), np.uint8), "gray", "rgb").size == (2, 3)
    assert seen == ["rgb"]


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (np.zeros((4, 2), np.uint8), r"frame is an array of shape \[4, 2\]; NV12 is \[3H/2, W\]"),
        (np.zeros((3, 3), np.uint8), "even H and W"),
        (np.zeros((3, 2, 3), np.uint8), "NV12 is"),
        (np.zeros((0, 2), np.uint8), "frame is empty"),
        (np.zeros((3, 0), np.uint8), "frame is empty"),
        (np.zeros((3, 2), np.float32), "dtype float32"),
    ],
)
def test_arrays_that_are_not_nv12(frame, error):
    with pytest.raises(ImageError, match=error):
        load_picture(frame, channel_order="nv12", name="frame")


def test_files_know_their_channels_whatever_arrays_have(rgb):
    data = encoded(Image.fromarray(rgb), "PNG")
    np.testing.assert_array_equal(load_picture(data, channel_order="nv12").pixels, rgb)
