"""Sources of pictures: files, arrays and frames give the same pixels, and identical pixels the same picture."""

import io
import os
import pickle
import threading
import weakref

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge.errors import ImageError
from qwenvl_edge.families.base import Preprocessing
from qwenvl_edge.families.qwen_vl import MEAN, STD
from qwenvl_edge.inputs.pictures import PictureLoader, load_picture, pixel_values
from support.image_bytes import encoded, on_white
from support.paths import DATA

PREPROCESSING = Preprocessing(56, MEAN, STD)


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


def test_pipes(tmp_path, rgb):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    data = encoded(Image.fromarray(rgb), "PNG")
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    assert load_picture(path).size == (5, 7)
    writer.join()


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


def test_a_picture_is_pickled_while_another_thread_asks_for_its_digest(rgb):
    """The digest becomes an attribute while the attributes are written."""
    picture = load_picture(rgb)

    class Pickler(pickle.Pickler):
        def persistent_id(self, each):
            if each is picture.pixels:
                assert picture.digest

    file = io.BytesIO()
    Pickler(file).dump(picture)
    again = pickle.loads(file.getvalue())
    assert again.digest == picture.digest
    np.testing.assert_array_equal(again.pixels, rgb)
