"""Camera messages -> arrays. dora and ROS name the layouts of pixels alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qwenvl_edge.errors import ImageError
from qwenvl_edge.inputs.pictures import array_to_rgb, load_picture

Pixels = npt.NDArray[np.uint8]

_CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
_COMPRESSED = ("jpeg", "jpg", "jpe", "png", "bmp", "webp")


def raw_to_rgb(data: Any, encoding: str, width: int, height: int, *, row_bytes: int = 0) -> Pixels:
    """Return uncompressed pixels as RGB [H, W, 3].

    Args:
        data: a buffer of bytes, rows from top to bottom.
        encoding: rgb8, bgr8, rgba8, bgra8 or mono8.
        width: pixels of a row, at least 1.
        height: rows, at least 1.
        row_bytes: bytes from one row to the next where rows are padded; 0 means that they are not.

    Raises:
        ImageError: the encoding is unknown, or the buffer is not as long as the rest says.
    """
    if encoding not in _CHANNELS:
        raise ImageError(f"the frame's encoding is {encoding!r}; send {', '.join((*_CHANNELS, *_COMPRESSED))}.")
    channels = _CHANNELS[encoding]
    used = width * channels
    row_bytes = row_bytes or used
    flat = np.frombuffer(data, np.uint8)
    if width < 1 or height < 1 or row_bytes < used or flat.size != height * row_bytes:
        raise ImageError(
            f"the frame has {flat.size:,} bytes, which is not {width}x{height} pixels of {encoding} in rows of "
            f"{row_bytes:,} bytes; look after the camera's node."
        )
    pixels = flat.reshape(height, row_bytes)[:, :used].reshape(height, width, channels)
    return array_to_rgb(pixels[:, :, :3], "bgr" if encoding.startswith("bgr") else "rgb", "frame")


def compressed_to_rgb(data: Any) -> Pixels:
    """Return the bytes of an image file as RGB [H, W, 3]; raises ImageError where they are none."""
    return load_picture(bytes(data), name="frame").pixels


def frame_to_rgb(data: Any, encoding: str, width: int, height: int) -> Pixels:
    """Return a frame of either kind as RGB [H, W, 3]; raises what raw_to_rgb and compressed_to_rgb raise."""
    return compressed_to_rgb(data) if encoding in _COMPRESSED else raw_to_rgb(data, encoding, width, height)
