import array
import io

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge.errors import ImageError
from qwenvl_edge.robotics.images import frame_to_rgb, message_to_rgb, raw_to_rgb

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
        ((bytes(18), "yuv999", 3, 2), "encoding is 'yuv999'; send rgb8, bgr8"),
        ((bytes(18), "yuv422", 3, 3), "3 pixels wide; yuv422 has an even width"),
        ((bytes(12), "16UC1", 3, 2), "'16UC1', which is depth or has no known range; send colours"),
        ((bytes(24), "32FC1", 3, 2), "which is depth"),
        ((bytes(6), "nv12", 2, 3), "even width and height"),
        ((bytes(5), "nv12", 2, 2), "5 bytes, which is not 2x2 pixels of nv12"),
        ((bytes(18), None, 3, 2), "encoding is of type NoneType"),
        ((bytes(18), "rgb8", "3", 2), "width is '3'"),
        ((bytes(18), "rgb8", 3, -2), "height is -2"),
        ((bytes(18), "rgb8", 2.0, 2), "width is 2.0"),
        ((bytes(18), "rgb8", 1 << 40, 2), "width is 1099511627776"),
        ((None, "rgb8", 3, 2), "data is of type NoneType"),
        ((np.zeros(18, np.float32), "rgb8", 3, 2), "data is an array of float32"),
        ((np.array([None] * 18), "rgb8", 3, 2), "data is "),
        (([300] * 18, "rgb8", 3, 2), "data is of type list"),
        ((bytes(17), "rgb8", 3, 2), "17 bytes, which is not 3x2 pixels of rgb8"),
        ((b"", "rgb8", 0, 0), "0 bytes"),
        ((b"no picture", "jpeg", 3, 2), "not an image file"),
    ],
)
def test_what_cannot_be_a_frame(arguments, match):
    with pytest.raises(ImageError, match=match):
        frame_to_rgb(*arguments)


def bt601(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Y, U and V in limited range, float64, by BT.601's luma weights."""
    red, green, blue = (rgb[..., i] / 255 for i in range(3))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return 16 + 219 * luma, 128 + 224 * (blue - luma) / 1.772, 128 + 224 * (red - luma) / 1.402


def smooth(height: int, width: int) -> np.ndarray:
    """Colours that are equal in each block of 2 x 2 pixels, so that subsampling loses nothing."""
    blocks = np.random.default_rng(4).integers(0, 256, (height // 2, width // 2, 3), np.uint8)
    return blocks.repeat(2, 0).repeat(2, 1)


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv", "nv12", "nv21", "yuv420", "nv24"])
def test_yuv(encoding, padding):
    rgb = smooth(6, 8)
    y, u, v = (np.rint(plane).astype(np.uint8) for plane in bt601(rgb))
    small_u, small_v = u[::2, ::2], v[::2, ::2]
    if encoding in ("yuv422", "uyvy"):
        rows = [np.stack([u[:, ::2], y[:, ::2], v[:, ::2], y[:, 1::2]], 2).reshape(6, -1)]
    elif encoding in ("yuv422_yuy2", "yuyv"):
        rows = [np.stack([y[:, ::2], u[:, ::2], y[:, 1::2], v[:, ::2]], 2).reshape(6, -1)]
    elif encoding == "yuv420":
        rows = [y, small_u, small_v]
    elif encoding == "nv24":
        rows = [y, np.stack([u, v], 2).reshape(6, 16)]
    else:
        pair = (small_u, small_v) if encoding == "nv12" else (small_v, small_u)
        rows = [y, np.stack(pair, 2).reshape(3, 8)]
    step = rows[0].shape[1] + padding
    widths = [step * plane.shape[1] // rows[0].shape[1] if padding else plane.shape[1] for plane in rows]
    if padding:
        widths = [
            step,
            *(step // 2 if encoding == "yuv420" else 2 * step if encoding == "nv24" else step for _ in rows[1:]),
        ]
    padded = [np.pad(plane, ((0, 0), (0, width - plane.shape[1]))) for plane, width in zip(rows, widths, strict=True)]
    data = b"".join(plane.tobytes() for plane in padded)
    found = raw_to_rgb(data, encoding, 8, 6, row_bytes=step if padding else 0)
    assert np.abs(found.astype(int) - rgb).max() <= 3  # bytes of Y, U and V


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", ["mono16", "rgb16", "bgr16", "rgba16", "bgra16"])
def test_sixteen_bits(encoding, big):
    channels = {"m": 1, "r": 3, "b": 3}[encoding[0]] + ("a" in encoding)
    values = np.random.default_rng(1).integers(0, 1 << 16, (2, 3, channels), np.uint16)
    data = values.astype(">u2" if big else "<u2").tobytes()
    wanted = (values >> 8).astype(np.uint8)[..., : min(channels, 3)]
    wanted = wanted[..., ::-1] if encoding.startswith("b") else np.broadcast_to(wanted, (2, 3, 3))
    assert np.array_equal(raw_to_rgb(data, encoding, 3, 2, is_big_endian=big), wanted)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer(order, bits):
    """Known pixels stay; missing ones are the mean of those beside, so a slope is kept inside."""
    y, x = np.mgrid[0:8, 0:10]
    rgb = np.stack([20 * y, 10 * x + 40, 255 - 15 * y - 5 * x], 2).astype(np.uint8)
    channel = np.array(["rgb".index(each) for each in order]).reshape(2, 2)
    mosaic = np.take_along_axis(rgb, np.tile(channel, (4, 5))[..., None], 2)[..., 0]
    data = mosaic.tobytes() if bits == 8 else (mosaic.astype("<u2") << 8).tobytes()
    found = raw_to_rgb(data, f"bayer_{order}{bits}", 10, 8)
    assert np.abs(found[1:-1, 1:-1].astype(int) - rgb[1:-1, 1:-1]).max() <= 1
    assert np.array_equal(np.take_along_axis(found, np.tile(channel, (4, 5))[..., None], 2)[..., 0], mosaic)
    flat = raw_to_rgb(bytes([77]) * 80, f"bayer_{order}8", 10, 8)
    assert (flat == 77).all()


@pytest.mark.parametrize("alias", ["8UC3", "BGR8", " bgr8 ", "bgr"])
def test_other_names(alias):
    assert np.array_equal(raw_to_rgb(RGB[..., ::-1].tobytes(), alias, 3, 2), RGB)


@pytest.mark.parametrize("data", [list(range(18)), array.array("B", range(18)), memoryview(bytes(range(18))), RGB])
def test_data_in_any_form(data):
    assert np.array_equal(raw_to_rgb(data, "rgb8", 3, 2), RGB)


@pytest.mark.parametrize("words", ["jpeg", "bgr8; jpeg compressed bgr8", "rgb8; png compressed ", "", None, 5])
def test_compressed_messages(words):
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    assert np.array_equal(message_to_rgb(file.getvalue(), words), RGB)


@pytest.mark.parametrize(
    "words", ["16UC1; compressedDepth png", "32FC1; compressedDepth", "h264", "16UC1; png compressed "]
)
def test_compressed_messages_without_colours(words):
    with pytest.raises(ImageError, match=r"depth|video"):
        message_to_rgb(b"anything", words)
