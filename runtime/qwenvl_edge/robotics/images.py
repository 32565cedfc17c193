"""Camera messages -> arrays. dora and ROS name the layouts of pixels alike (sensor_msgs/image_encodings.hpp).

A camera's fourth channel is no transparency and is dropped, whatever it holds.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qwenvl_edge.errors import ImageError
from qwenvl_edge.inputs.pictures import array_to_rgb, check_size, load_picture
from qwenvl_edge.machine.urls import show

Pixels = npt.NDArray[np.uint8]

_COMPRESSED = ("jpeg", "jpg", "jpe", "png", "bmp", "webp", "tiff", "tif", "gif", "ppm")
_DEPTH = ("16sc1", "32fc1", "32sc1", "64fc1", "16uc1")
# Other names of the same layout: OpenCV's types, libcamera's, V4L2's and GStreamer's names.
_ALIASES = {
    **{
        "8uc3": "bgr8",
        "8uc4": "bgra8",
        "8uc1": "mono8",
        "rgb": "rgb8",
        "bgr": "bgr8",
        "rgba": "rgba8",
        "bgra": "bgra8",
    },
    **{"bgrx": "bgra8", "rgbx": "rgba8", "xrgb8888": "bgra8", "xbgr8888": "rgba8", "rgb888": "bgr8", "bgr888": "rgb8"},
    **{"gray": "mono8", "grey": "mono8", "gray8": "mono8", "y8": "mono8", "r8": "mono8", "l8": "mono8"},
    **{"gray16_le": "mono16", "y16": "mono16", "8uc2": "yuv422"},
    **{"uyvy": "yuv422", "yuv422_uyvy": "yuv422", "yuyv": "yuv422_yuy2", "yuy2": "yuv422_yuy2"},
    **{"i420": "yuv420", "yuv420p": "yuv420", "nv24": "nv24"},
}
# Bytes of a pixel, of layouts whose rows are all alike.
_PACKED = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
_PACKED |= {"rgb16": 6, "bgr16": 6, "rgba16": 8, "bgra16": 8, "mono16": 2, "yuv422": 2, "yuv422_yuy2": 2}
_BAYER = ("rggb", "bggr", "gbrg", "grbg")
_PACKED |= {f"bayer_{order}{bits}": bits // 8 for order in _BAYER for bits in (8, 16)}
_PLANAR = ("nv12", "nv21", "yuv420", "nv24")
_OFFERED = "rgb8, bgr8, rgba8, bgra8, mono8, their 16-bit forms, yuv422, yuv422_yuy2, nv12, nv21, bayer_*, jpeg or png"


@dataclass(frozen=True)
class _Message:
    """A raw frame whose numbers were checked; pixels of 16 bits are big-endian if the message says so."""

    data: Pixels
    encoding: str
    width: int
    height: int
    row_bytes: int
    is_big_endian: bool

    def rows(self, height: int, used: int, start: int = 0, step: int = 0) -> Pixels:
        """`height` rows of `used` bytes from byte `start` on, without their padding."""
        step = step or self.row_bytes
        if step < used or start + height * step > self.data.size:
            raise self.misfit()
        return self.data[start : start + height * step].reshape(height, step)[:, :used]

    def misfit(self) -> ImageError:
        """The error for data of another length than the rest of the message says."""
        return ImageError(
            f"the frame has {self.data.size:,} bytes, which is not {self.width}x{self.height} pixels of "
            f"{self.encoding} in rows of {self.row_bytes:,} bytes; look after the camera's node."
        )

    def samples(self, channels: int, bits: int = 8) -> Pixels:
        """[H, W, channels], of 16 bits the upper 8: cameras put a smaller range into the upper bits of a message."""
        size = bits // 8
        rows = self.rows(self.height, self.width * channels * size)
        pixels = rows.reshape(self.height, self.width, channels, size)
        return pixels[..., 0 if self.is_big_endian or size == 1 else 1]


def raw_to_rgb(
    data: Any, encoding: Any, width: Any, height: Any, *, row_bytes: Any = 0, is_big_endian: Any = False
) -> Pixels:
    """Return uncompressed pixels as RGB [H, W, 3].

    Args:
        data: a buffer of bytes, rows from top to bottom.
        encoding: a layout of sensor_msgs, such as rgb8, mono16, yuv422_yuy2, nv12 or bayer_rggb8, in any case.
        width: pixels of a row, at least 1.
        height: rows, at least 1.
        row_bytes: bytes from one row to the next where rows are padded; 0 means that they are not.
        is_big_endian: the byte order of 16-bit pixels.

    Raises:
        ImageError: the encoding is unknown or depth, or the buffer is not as long as the rest says.
    """
    name = _encoding(encoding)
    if name in _DEPTH:
        raise ImageError(
            f"the frame's encoding is {show(encoding)}, which is depth or has no known range; send colours."
        )
    if name not in _PACKED and name not in _PLANAR:
        raise ImageError(f"the frame's encoding is {show(encoding)}; send {_OFFERED}.")
    sizes = {"width": width, "height": height, "step": row_bytes}
    for what, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 0 <= int(value) < 1 << 31:
            raise ImageError(f"the frame's {what} is {show(value)}; it must be a whole number of pixels or bytes.")
    step = int(row_bytes) or int(width) * _PACKED.get(name, 1)
    message = _Message(_bytes(data), name, int(width), int(height), step, bool(is_big_endian))
    if not width or not height or (name in _PACKED and message.data.size != height * step):
        raise message.misfit()
    check_size(int(width), int(height), "the frame")
    return _read(message)


def compressed_to_rgb(data: Any) -> Pixels:
    """Return the bytes of an image file as RGB [H, W, 3]; raises ImageError where they are none."""
    return load_picture(bytes(_bytes(data)), name="frame").pixels


def frame_to_rgb(data: Any, encoding: Any, width: Any, height: Any) -> Pixels:
    """Return a frame of either kind as RGB [H, W, 3]; raises what raw_to_rgb and compressed_to_rgb raise."""
    if _encoding(encoding) in _COMPRESSED:
        return compressed_to_rgb(data)
    return raw_to_rgb(data, encoding, width, height)


def message_to_rgb(data: Any, image_format: Any) -> Pixels:
    """Return the data of a CompressedImage: an image file, or one after the header of compressed_depth_image_transport.

    Raises:
        ImageError: it is depth, video, or no image file.
    """
    words = image_format.lower() if isinstance(image_format, str) else ""
    if "compresseddepth" in words or words.startswith(_DEPTH):
        raise ImageError(f"the frame's format is {show(image_format)}, which is depth; send colours.")
    if any(codec in words for codec in ("h264", "h265", "hevc", "av1", "vp9", "theora")):
        raise ImageError(f"the frame's format is {show(image_format)}, a video; send single pictures, such as jpeg.")
    # "bgr8; jpeg compressed bgr8" and the like: the file says itself what it is. Raw frames also come so.
    return compressed_to_rgb(data)


def _encoding(encoding: Any) -> str:
    if not isinstance(encoding, str):
        raise ImageError(f"the frame's encoding is of type {type(encoding).__name__}; send a string.")
    name = encoding.strip().lower()
    return _ALIASES.get(name, name)


def _bytes(data: Any) -> Pixels:
    """Return a message's data, a buffer or an array of any integers 0 .. 255, as flat bytes."""
    try:
        if isinstance(data, (list, tuple)):
            return np.frombuffer(bytes(data), np.uint8)
        array = np.asarray(memoryview(data))
    except (TypeError, ValueError, BufferError):
        raise ImageError(
            f"the frame's data is of type {type(data).__name__}; send bytes or an array of uint8."
        ) from None
    if array.dtype not in (np.dtype(np.uint8), np.dtype(np.int8)):
        raise ImageError(f"the frame's data is an array of {array.dtype}; send uint8.")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _read(message: _Message) -> Pixels:
    name = message.encoding
    if name.startswith("bayer_"):
        return _debayer(message.samples(1, int(name[10:]))[..., 0], name[6:10])
    if name in ("yuv422", "yuv422_yuy2"):
        return _packed_yuv(message)
    if name in _PLANAR:
        return _planar_yuv(message)
    channels = 1 if name.startswith("mono") else 4 if "a" in name else 3
    pixels = message.samples(channels, 16 if name.endswith("16") else 8)
    return array_to_rgb(pixels[:, :, :3], "bgr" if name.startswith("bgr") else "rgb", "frame")


def _packed_yuv(message: _Message) -> Pixels:
    """Two pixels in four bytes: U Y V Y, or with YUY2 Y U Y V."""
    if message.width % 2:
        raise ImageError(f"the frame is {message.width} pixels wide; {message.encoding} has an even width.")
    pairs = message.rows(message.height, 2 * message.width).reshape(message.height, -1, 4)
    luma, u, v = (slice(1, 4, 2), 0, 2) if message.encoding == "yuv422" else (slice(0, 3, 2), 1, 3)
    planes = (pairs[..., luma].reshape(message.height, -1), pairs[..., u].repeat(2, 1), pairs[..., v].repeat(2, 1))
    return _bt601(*planes)


def _planar_yuv(message: _Message) -> Pixels:
    """A plane of Y, then U and V: interleaved (NV12; NV21: V first; NV24: at full size) or in planes (I420)."""
    width, height, name, step = message.width, message.height, message.encoding, message.row_bytes
    if name != "nv24" and (width % 2 or height % 2):
        raise ImageError(f"the frame is {width}x{height} pixels; {name} has an even width and height.")
    luma, start = message.rows(height, width), height * step
    if name == "yuv420":
        half = message.rows(height // 2, width // 2, start, step // 2)
        other = message.rows(height // 2, width // 2, start + height // 2 * (step // 2), step // 2)
        chroma = np.stack([half, other], axis=2)
    elif name == "nv24":
        return _bt601(
            luma, *np.moveaxis(message.rows(height, 2 * width, start, 2 * step).reshape(height, width, 2), 2, 0)
        )
    else:
        chroma = message.rows(height // 2, width, start).reshape(height // 2, width // 2, 2)
    if name == "nv21":
        chroma = chroma[..., ::-1]
    nv12 = np.concatenate([luma, chroma.reshape(height // 2, width)])
    return array_to_rgb(nv12, "nv12", "frame")


def _bt601(luma: Pixels, u: Pixels, v: Pixels) -> Pixels:
    """Y, U and V [H, W] -> RGB [H, W, 3]; BT.601, limited range, as with NV12."""
    bright = (luma.astype(np.float32) - 16) * np.float32(255 / 219)
    blue, red = ((plane.astype(np.float32) - 128) * np.float32(255 / 224) for plane in (u, v))
    planes = (bright + 1.402 * red, bright - 0.344136 * blue - 0.714136 * red, bright + 1.772 * blue)
    rgb: Pixels = np.stack(planes, axis=2).round().clip(0, 255).astype(np.uint8)
    return rgb


def _debayer(mosaic: Pixels, order: str) -> Pixels:
    """A sensor's mosaic [H, W] -> RGB [H, W, 3]: missing colours are the mean of those beside (bilinear).

    order: the colours of the first two pixels of the first and of the second row.
    """
    height, width = mosaic.shape
    if height < 2 or width < 2:
        raise ImageError(f"the frame is {width}x{height} pixels; a Bayer pattern has two rows and two columns.")
    rgb = np.empty((height, width, 3), np.uint8)
    values = np.pad(mosaic, 1, mode="reflect").astype(np.uint16)
    for channel, colour in enumerate("rgb"):
        known = np.zeros((2, 2), np.uint16)
        known.reshape(-1)[[index for index, each in enumerate(order) if each == colour]] = 1
        mask = np.pad(np.tile(known, (height // 2 + 1, width // 2 + 1))[:height, :width], 1, mode="reflect")
        rgb[..., channel] = _fill(values * mask, mask, height, width)
    return rgb


def _fill(values: npt.NDArray[np.uint16], mask: npt.NDArray[np.uint16], height: int, width: int) -> Pixels:
    """Each known value, and elsewhere the mean of the known ones around, weighted 4, 2, 1 by nearness."""

    def blurred(plane: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
        rows = plane[:-2] + 2 * plane[1:-1] + plane[2:]
        total: npt.NDArray[np.uint16] = rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]
        return total

    total, weight = blurred(values), blurred(mask)
    inside, known = values[1:-1, 1:-1], mask[1:-1, 1:-1] > 0
    mean = (total + weight // 2) // np.maximum(weight, 1)
    filled: Pixels = np.where(known, inside, mean).astype(np.uint8).reshape(height, width)
    return filled
