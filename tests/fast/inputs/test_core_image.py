"""pixel_values of the native core against Pillow and NumPy, to the last bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qwenvl_edge import _core
from qwenvl_edge.errors import ImageError
from qwenvl_edge.inputs.pictures import Preprocessing, load_picture, pixel_values

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIDES = st.integers(1, 300) | st.sampled_from([1, 2, 3, 15, 16, 17])


@pytest.fixture(autouse=True)
def best_kernels():
    yield
    _core.use_kernels(_core.kernel_variants()[0])


def expected(pixels: np.ndarray, height: int, width: int, mean=MEAN, std=STD) -> np.ndarray:
    """Two calls, because Pillow 13 begins with y for some sizes; one pass leaves bytes, as inside one call."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    for size in ((width, pixels.shape[0]), (width, height)):
        image = image.resize(size, Image.Resampling.BICUBIC)
    values = np.asarray(image, dtype=np.float32) / np.float32(255)
    values -= np.asarray(mean, dtype=np.float32)
    values /= np.asarray(std, dtype=np.float32)
    return values.transpose(2, 0, 1)


def random_pixels(seed: int, *shape: int, harsh: bool = False) -> np.ndarray:
    """Noise, or black and white only, where the kernel overshoots."""
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return np.where(pixels < 128, 0, 255).astype(np.uint8) if harsh else pixels


@settings(max_examples=150, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.booleans(), st.integers(0, 2**32))
def test_every_variant_equals_pillow_and_numpy(height, width, to_height, to_width, harsh, seed):
    pixels = random_pixels(seed, height, width, 3, harsh=harsh)
    wanted = expected(pixels, to_height, to_width)
    for name in _core.kernel_variants():
        _core.use_kernels(name)
        np.testing.assert_array_equal(_core.pixel_values(pixels, (to_height, to_width), MEAN, STD, "rgb"), wanted)


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (3, 4000), (2500, 2), (1, 1)])
@pytest.mark.parametrize("size", [(1, 1), (448, 448), (1, 700), (700, 1)])
def test_extreme_ratios(shape, size):
    pixels = random_pixels(0, *shape, 3)
    np.testing.assert_array_equal(_core.pixel_values(pixels, size, MEAN, STD, "rgb"), expected(pixels, *size))


def test_one_call_of_pillow_where_all_its_versions_begin_with_x():
    pixels = random_pixels(1, 90, 160, 3)
    image = Image.fromarray(pixels).resize((56, 56), Image.Resampling.BICUBIC)
    values = _core.pixel_values(pixels, (56, 56), (0, 0, 0), (1, 1, 1), "rgb")
    np.testing.assert_array_equal(values, np.asarray(image, np.float32).transpose(2, 0, 1) / np.float32(255))


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::-1],
        lambda a: a[:, ::-1],
        lambda a: a[::2, ::3],
        lambda a: a[5:30, 7:9],
        lambda a: a.transpose(1, 0, 2),
        np.asfortranarray,
        lambda a: np.broadcast_to(a[:, :1], a.shape),
    ],
)
def test_any_strides_in_both_orders(channels, view):
    pixels = view(random_pixels(2, 61, 83, channels))
    before = pixels.copy()
    for layout, order in (("rgb", slice(0, 3)), ("bgr", slice(2, None, -1))):
        wanted = expected(before[:, :, :3] if layout == "rgb" else before[:, :, order], 40, 50)
        np.testing.assert_array_equal(_core.pixel_values(pixels, (40, 50), MEAN, STD, layout), wanted)
    np.testing.assert_array_equal(pixels, before)


def test_gray_equals_three_equal_channels():
    gray = random_pixels(3, 40, 41)
    wanted = expected(np.stack([gray] * 3, axis=2), 30, 60)
    for pixels in (gray, gray[:, :, None], gray[:, ::-1][:, ::-1]):
        np.testing.assert_array_equal(_core.pixel_values(pixels, (30, 60), MEAN, STD, "rgb"), wanted)


def nv12_to_rgb(frame: np.ndarray) -> np.ndarray:
    """BT.601, limited range, in float64: its definition, with the luma weights 0.299, 0.587 and 0.114."""
    height = len(frame) * 2 // 3
    luma = (frame[:height].astype(float) - 16) / 219
    chroma = (frame[height:].reshape(height // 2, -1, 2).astype(float) - 128) / 224
    u, v = (chroma[:, :, i].repeat(2, axis=0).repeat(2, axis=1) for i in range(2))
    red, blue = luma + 1.402 * v, luma + 1.772 * u
    green = (luma - 0.299 * red - 0.114 * blue) / 0.587
    return np.clip(np.stack([red, green, blue], axis=2) * 255, 0, 255)


@pytest.mark.parametrize("view", [lambda a: a, np.asfortranarray, lambda a: a.repeat(2, axis=1)[:, ::2]])
def test_nv12_is_bt601_in_limited_range(view):
    frame = view(random_pixels(4, 384, 300))
    exact = nv12_to_rgb(frame)
    values = _core.pixel_values(frame, (256, 300), (0, 0, 0), (1, 1, 1), "nv12") * 255
    assert np.abs(values.transpose(1, 2, 0) - exact).max() < 0.51  # rounded to bytes, in 16 bits behind the point
    rgb = np.round(values).astype(np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(_core.pixel_values(frame, (50, 60), MEAN, STD, "nv12"), expected(rgb, 50, 60))


def test_pixel_values_takes_pictures_and_arrays():
    preprocessing = Preprocessing(56, MEAN, STD)
    pixels = random_pixels(5, 30, 70, 3)
    wanted = expected(pixels, 56, 56)
    np.testing.assert_array_equal(pixel_values(load_picture(pixels), preprocessing), wanted)
    np.testing.assert_array_equal(pixel_values(pixels[:, :, ::-1], preprocessing, layout="bgr"), wanted)


@pytest.mark.parametrize(
    ("pixels", "layout", "message"),
    [
        (np.zeros((2, 2, 2), np.uint8), "rgb", r"not \[2, 2, 2\]"),
        (np.zeros((1, 2, 2, 3), np.uint8), "rgb", r"not \[1, 2, 2, 3\]"),
        (np.zeros((2, 2, 3), np.float32), "rgb", "uint8, not float32"),
        (np.zeros((2, 2, 3), np.int8), "rgb", "uint8, not int8"),
        (np.zeros((0, 2, 3), np.uint8), "rgb", "empty"),
        (np.zeros((0, 2), np.uint8), "nv12", "empty"),
        (np.zeros((2, 2, 3), np.uint8), "hsv", '"hsv" is unknown'),
        (np.zeros((4, 2), np.uint8), "nv12", r"\[3H/2, W\].*not \[4, 2\]"),
        (np.zeros((3, 3), np.uint8), "nv12", "even H and W"),
        (np.zeros((3, 2, 3), np.uint8), "nv12", "NV12"),
    ],
)
def test_unusable_arrays(pixels, layout, message):
    with pytest.raises(ImageError, match=message):
        pixel_values(pixels, Preprocessing(56, MEAN, STD), layout=layout)


def test_a_size_without_pixels():
    with pytest.raises(ImageError, match="0x0 pixels"):
        pixel_values(np.zeros((2, 2, 3), np.uint8), Preprocessing(0, MEAN, STD))
