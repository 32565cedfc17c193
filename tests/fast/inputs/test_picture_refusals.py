"""What is no usable picture is refused in a sentence that names it."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge.errors import ImageError
from qwenvl_edge.inputs import pictures
from qwenvl_edge.inputs.pictures import load_picture
from support.image_bytes import chunk, encoded
from support.paths import DATA


@pytest.mark.parametrize("size", [(1, 25_000_000), (70_000, 1_000), (1_001, 1), (1, 65_000)])
def test_strips_are_refused_before_decoding(size):
    """A PNG header of that size; what follows would not even decode."""
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
    with pytest.raises(ImageError, match=f"{size[0]}x{size[1]} pixels, (a side of|one side) more than"):
        load_picture(data)


@pytest.mark.parametrize("kind", ["JPEG2000", "ICO", "TGA", "SGI", "PCX"])
def test_other_formats_that_pillow_reads_are_refused(kind, rgb):
    try:
        data = encoded(Image.fromarray(rgb), kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {kind}")
    with pytest.raises(ImageError, match="give JPEG, PNG, WebP, GIF, BMP, TIFF or PPM"):
        load_picture(data)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("https://example.com/photo.jpg", "https://example.com/photo.jpg is a URL; download it and give its bytes"),
        (Path("https://example.com/photo.jpg"), "https://example.com/photo.jpg is a URL"),
        ("file:///photos/photo.jpg", "is a URL; give the path without file://"),
        ("data:image/png;base64," + "A" * 5000, r"data:image/png;base64,A*\.\.\.A* is a URL; decode its base64"),
        ("S3://bucket/a.png", "is a URL"),
        (Path("C:\\photos"), "cannot open the picture"),
        ("a" * 5000, r"cannot open the picture 'a*\.\.\.a*': File name too long"),
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
