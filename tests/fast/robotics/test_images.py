import io

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge.errors import ImageError
from qwenvl_edge.robotics.images import frame_to_rgb, raw_to_rgb

RGB = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
ALPHA = np.full((2, 3, 1), 9, np.uint8)


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", RGB),
        ("bgr8", RGB[..., ::-1]),
        ("rgba8", np.concatenate([RGB, ALPHA], 2)),
        ("bgra8", np.concatenate([RGB[..., ::-1], ALPHA], 2)),
    ],
)
def test_encodings(encoding, pixels):
    data = np.ascontiguousarray(pixels).tobytes()
    assert np.array_equal(frame_to_rgb(data, encoding, 3, 2), RGB)


def test_gray():
    assert np.array_equal(raw_to_rgb(bytes([1, 2]), "mono8", 2, 1), [[[1, 1, 1], [2, 2, 2]]])


def test_padded_rows():
    padded = np.zeros((2, 12), np.uint8)
    padded[:, :9] = RGB.reshape(2, 9)
    assert np.array_equal(raw_to_rgb(padded.tobytes(), "rgb8", 3, 2, row_bytes=12), RGB)


def test_compressed():
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    assert np.array_equal(frame_to_rgb(np.frombuffer(file.getvalue(), np.uint8), "png", 0, 0), RGB)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((bytes(18), "yuv422", 3, 2), "encoding is 'yuv422'; send rgb8, bgr8"),
        ((bytes(17), "rgb8", 3, 2), "17 bytes, which is not 3x2 pixels of rgb8"),
        ((b"", "rgb8", 0, 0), "0 bytes"),
        ((b"no picture", "jpeg", 3, 2), "not an image file"),
    ],
)
def test_what_cannot_be_a_frame(arguments, match):
    with pytest.raises(ImageError, match=match):
        frame_to_rgb(*arguments)
