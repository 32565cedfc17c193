"""Pictures: any supported source -> RGB pixels -> pixel_values.

Decoding follows the published model code, `Image.open(...).convert("RGB")`: the first frame of an animation, an alpha
channel dropped (not composited), no EXIF rotation, 16-bit grayscale clipped at 255.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from qwenvl_edge import _core
from qwenvl_edge.errors import ImageError

ChannelOrder = Literal["rgb", "bgr"]
PixelLayout = Literal["rgb", "bgr", "nv12"]
MAX_PIXELS = 89_478_485  # Pillow's own decompression-bomb threshold: a quarter of a GiB of RGB

_PROGRAMS = ("EPS", "WMF")  # Pillow hands these to an interpreter outside the process


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture: `pixels` uint8 [H, W, 3] RGB, read-only; `name` says whence."""

    pixels: npt.NDArray[np.uint8] = field(repr=False)
    name: str

    @functools.cached_property
    def digest(self) -> str:
        """Identifies the picture: SHA-256 of shape, dtype and pixels, computed when first asked for."""
        digest = hashlib.sha256(repr((self.pixels.shape, str(self.pixels.dtype))).encode())
        digest.update(self.pixels.data)
        return digest.hexdigest()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def to_pil(self) -> Image.Image:
        """Return a copy as an RGB Pillow image."""
        return Image.fromarray(self.pixels)

    def same_pixels(self, other: Picture) -> bool:
        """Whether both hold the same pixels in the same kind of memory; pictures of two kinds are not compared."""
        if type(other) is not type(self) or self.size != other.size:
            return False
        middle = len(self.pixels) // 2  # one row tells most pictures apart
        return np.array_equal(self.pixels[middle], other.pixels[middle]) and np.array_equal(self.pixels, other.pixels)


@dataclass(frozen=True)
class Preprocessing:
    """What turns a picture into pixel_values: side length in pixels, per-channel mean and standard deviation."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def load_picture(source: Any, *, channel_order: ChannelOrder = "rgb", name: str = "picture") -> Picture:
    """Decode `source` into a Picture.

    Args:
        source: uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; a Pillow image (its current frame); the bytes of
            an image file; a path (`str` or `Path`); or such an array of another library, in CUDA's memory too
            (`__cuda_array_interface__` or DLPack).
        channel_order: the channel order of arrays, "rgb" or "bgr" (as OpenCV delivers); other sources know their own.
        name: what to call the picture in error messages when the source has no name of its own.

    Raises:
        ImageError: the source is missing, unreadable, truncated, empty, larger than MAX_PIXELS, or of another type.
    """
    check_channel_order(channel_order)
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return freeze(_pil_to_rgb(source, name), name)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return freeze(_decode(io.BytesIO(source), name), name)
    if isinstance(source, (str, os.PathLike)):
        return _load_path(source)
    if is_array(source):
        return freeze(array_to_rgb(source, channel_order, name), name)
    raise ImageError(
        f"{name} is of type {type(source).__name__}; give a uint8 array, a Pillow image, the bytes of an "
        "image file or a path."
    )


def pixel_values(
    picture: Picture | npt.NDArray[np.uint8], preprocessing: Preprocessing, *, layout: PixelLayout = "rgb"
) -> npt.NDArray[np.float32]:
    """Return the vision graph's input [3, S, S] float32: resized (bicubic, aspect ratio not kept), normalised.

    The bytes are those of Pillow's `resize` when it resamples along x first, as all of its versions before 13 do and
    the model was trained on; for pictures that lose much height, Pillow 13 begins with y and differs in a few of them.

    Args:
        picture: a Picture, or a uint8 array with any strides, which is read in place: [H, W], [H, W, 1], [H, W, 3] or
            [H, W, 4] (alpha is dropped), or with layout "nv12" [3H/2, W] (BT.601, limited range, even H and W).
        preprocessing: side S, mean and standard deviation.
        layout: the channel order of an array, or "nv12".

    Raises:
        ImageError: the array is empty or of another shape or dtype, or the layout is unknown.
    """
    pixels = picture.pixels if isinstance(picture, Picture) else picture
    size = (preprocessing.image_size, preprocessing.image_size)
    try:
        return _core.pixel_values(pixels, size, preprocessing.mean, preprocessing.std, layout)
    except ValueError as error:
        raise ImageError(f"Cannot make pixel values: {error}.") from None


def freeze(pixels: npt.NDArray[np.uint8], name: str) -> Picture:
    """Return RGB pixels [H, W, 3], which are the caller's to give away, as a Picture."""
    pixels.flags.writeable = False
    return Picture(pixels, name)


def check_channel_order(channel_order: str) -> None:
    """Check the name of a channel order. Raises ImageError."""
    if channel_order not in ("rgb", "bgr"):
        raise ImageError(f"channel_order is {channel_order!r}; give 'rgb' or 'bgr'.")


def check_channels(shape: tuple[int, ...], name: str) -> None:
    """Check the shape of an array that is to be a picture. Raises ImageError."""
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(f"{name} is an array of shape {list(shape)}; give [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].")


def check_size(width: int, height: int, name: str) -> None:
    """Check a picture's size in pixels. Raises ImageError where it is empty or has more than MAX_PIXELS."""
    if width < 1 or height < 1:
        raise ImageError(f"{name} is empty ({width}x{height} pixels); give one with content.")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} has {width}x{height} pixels, more than the limit of {MAX_PIXELS:,}; scale it down.")


def is_array(source: Any) -> bool:
    """Whether array_to_rgb can be asked about `source`: an array of NumPy's or of a library that shares its memory."""
    shared = ("__cuda_array_interface__", "__dlpack_device__")
    return isinstance(source, np.ndarray) or any(hasattr(source, name) for name in shared)


def array_to_rgb(array: Any, channel_order: ChannelOrder, name: str) -> npt.NDArray[np.uint8]:
    """Return a copy of what is_array as RGB [H, W, 3]; raises ImageError as load_picture does."""
    check_channel_order(channel_order)
    if not is_array(array):
        raise ImageError(f"{name} is a {type(array).__name__}; give a uint8 array, such as numpy.asarray(it).")
    if not isinstance(array, np.ndarray):
        from qwenvl_edge.backends.cuda.frames import frame_array

        array = frame_array(array, name)
    check_channels(array.shape, name)
    if array.dtype != np.uint8:
        raise ImageError(f"{name} is an array of dtype {array.dtype}; scale it to 0..255 and give uint8.")
    check_size(array.shape[1], array.shape[0], name)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    rgb = array[:, :, 2::-1] if channel_order == "bgr" else array[:, :, :3]
    return np.array(rgb, dtype=np.uint8, order="C")  # a copy: the caller may reuse the buffer


def _load_path(source: str | os.PathLike[str]) -> Picture:
    name = os.fspath(source)
    if name.startswith(("http://", "https://")):
        raise ImageError(f"{name} is a URL; download it and give its bytes.")
    try:
        with Path(name).open("rb") as file:
            return freeze(_decode(file, name), name)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"cannot open the picture {name!r}: {reason}.") from error


def _decode(file: Any, name: str) -> npt.NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what the checks here decide, and of harmless damage
        return _pil_to_rgb(_open(file, name), name)


def _open(file: Any, name: str) -> Image.Image:
    try:
        image = Image.open(file)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image file of a known format.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has more pixels than the limit of {MAX_PIXELS:,}; scale it down.") from error
    except Exception as error:  # a decoder may raise anything at a damaged header
        raise ImageError(f"{name} cannot be read as an image: {error}.") from error
    if image.format in _PROGRAMS:
        raise ImageError(f"{name} is a {image.format} file, a drawing program; convert it to PNG or JPEG.")
    return image


def _pil_to_rgb(image: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    check_size(image.width, image.height, name)
    try:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        # One copy; through Pillow's array interface it would be two.
        return np.frombuffer(rgb.tobytes(), np.uint8).reshape(image.height, image.width, 3)
    except Exception as error:  # a decoder may raise anything at damaged data
        raise ImageError(f"{name} is truncated or damaged: {error}.") from error
