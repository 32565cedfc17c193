import io

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge.errors import ImageError
from qwenvl_edge.families import QwenVL
from qwenvl_edge.inputs import pictures as image_module
from qwenvl_edge.inputs.pictures import load_picture, pixel_values
from support.paths import DATA

PREPROCESSING = QwenVL(2000, 256).preprocessing(56)


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
    values = pixel_values(load_picture(DATA / "images" / name), PREPROCESSING)
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
    np.testing.assert_array_equal(load_picture(rgba).pixels, rgb)
    bgra = np.dstack([rgb[:, :, ::-1], gray])
    np.testing.assert_array_equal(load_picture(bgra, channel_order="bgr").pixels, rgb)


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


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I", "F"])
def test_modes_convert_as_pillow_does(mode, rgb):
    image = Image.fromarray(rgb).convert(mode)
    np.testing.assert_array_equal(load_picture(image).pixels, np.asarray(image.convert("RGB")))


def test_sixteen_bit_grayscale_is_clipped_as_in_the_published_code():
    values = np.array([[0, 100, 255, 256, 65535]], np.uint16)
    picture = load_picture(encoded(Image.fromarray(values), "PNG"))
    assert picture.pixels[0, :, 0].tolist() == [0, 100, 255, 255, 255]


def test_palette_with_transparency_and_cmyk_files(rgb):
    palette = Image.fromarray(rgb).quantize(8)
    data = encoded(palette, "PNG", transparency=0)
    np.testing.assert_array_equal(load_picture(data).pixels, np.asarray(palette.convert("RGB")))
    data = encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG")
    np.testing.assert_array_equal(load_picture(data).pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_picture(data).pixels[0, 0].tolist() == [255, 0, 0]


def test_exif_rotation_is_not_applied(rgb):
    image = Image.fromarray(rgb)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_picture(encoded(image, "PNG", exif=exif)).size == image.size


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
    monkeypatch.setattr(image_module, "MAX_PIXELS", limit)
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
