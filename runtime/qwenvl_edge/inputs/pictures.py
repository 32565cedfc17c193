"""Pictures: any supported source -> RGB pixels -> pixel_values, and the loader of one engine.

A picture is what a person sees: upright, transparency on white. `image_files` decodes files; arrays are read here.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import os
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from qwenvl_edge import _core
from qwenvl_edge.errors import ImageError
from qwenvl_edge.families.base import Family, Preprocessing
from qwenvl_edge.families.pieces import NO_LIMITS, PictureLayout, PixelLimits
from qwenvl_edge.inputs.device_frames import frame_array
from qwenvl_edge.machine.urls import show

ChannelOrder = Literal["rgb", "bgr", "nv12"]
"""Order of an array's channels; "nv12" is the layout [3H/2, W] that Jetson cameras deliver: H rows of Y, H/2 of UV."""
NV12 = "nv12"

MAX_PIXELS = 89_478_485  # Pillow's own decompression-bomb threshold: a quarter of a GiB of RGB
MAX_SIDE = 65_535  # that of JPEG, and of a grid of GPU threads, in which a row is a block
MAX_RATIO = 1_000  # of the longer to the shorter side; nothing is left of a thinner strip when it is resized

_COMPARED = 4  # pictures
_STRIP = 1 << 20  # pixels blended at a time, which bounds the memory beside the picture
_WHITE = 255


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture: `pixels` uint8 [H, W, 3] RGB, read-only; `name` for messages.

    limits: those of its pixels after resizing. origin: the picture that it was taken from with `within`.
    """

    pixels: npt.NDArray[np.uint8] = field(repr=False)
    name: str
    limits: PixelLimits = field(default=NO_LIMITS, kw_only=True, repr=False)
    origin: Picture | None = field(default=None, repr=False, kw_only=True)

    def within(self, limits: PixelLimits) -> Picture:
        """Return this picture with other limits; the pixels are shared."""
        if limits == self.limits:
            return self
        other = copy.copy(self)
        vars(other).update(limits=limits, origin=self.origin or self)
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Return a copy: a thread may ask for the digest, which changes the attributes, while another one pickles."""
        return vars(self).copy()

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of shape, dtype and pixels, which identifies the picture; computed when first asked for."""
        if self.origin is not None:
            return self.origin.digest
        digest = hashlib.sha256(repr((self.pixels.shape, str(self.pixels.dtype))).encode())
        digest.update(self.pixels.data)
        return digest.hexdigest()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def layout(self, family: Family) -> PictureLayout:
        """Return the room that the picture takes in a prompt. Raises ImageError and PromptError as the family."""
        return family.layout(self.size, self.limits)

    def vision_inputs(self, family: Family) -> dict[str, npt.NDArray[Any]]:
        """Return the vision graph's inputs."""
        return family.vision_inputs([self.pixels], self.layout(family))

    def to_pil(self) -> Image.Image:
        """Return a copy as an RGB Pillow image."""
        return Image.fromarray(self.pixels)

    def same_pixels(self, other: Picture) -> bool:
        """Compare pixels; pictures in two kinds of memory count as different."""
        if type(other) is not type(self) or self.size != other.size:
            return False
        middle = len(self.pixels) // 2  # one row tells most pictures apart
        return np.array_equal(self.pixels[middle], other.pixels[middle]) and np.array_equal(self.pixels, other.pixels)


class PictureLoader:
    """Loads the pictures of one engine: identical pixels return the same Picture.

    Comparing takes a fifth of a digest's time, which a robot that asks about one frame again and again would pay each
    time. The last pictures are compared with, not kept: they live while a reply or the caller has them.

    Args:
        channel_order: that of arrays.
        load_frame: Backend.load_frame, which returns None for a source that it leaves to load_picture.
    """

    def __init__(
        self, channel_order: ChannelOrder, load_frame: Callable[[Any, ChannelOrder, str], Picture | None]
    ) -> None:
        self._channel_order = channel_order
        self._load_frame = load_frame
        self._latest: deque[weakref.ref[Picture]] = deque(maxlen=_COMPARED)

    def load(self, source: Any, name: str) -> Picture:
        """Return load_picture's picture, or the earlier one with its pixels. Raises ImageError as load_picture."""
        picture = self.load_new(source, name)
        for known in (reference() for reference in list(self._latest)):
            if known is not None and (known is picture or known.same_pixels(picture)):
                return known
        self._latest.append(weakref.ref(picture))
        return picture

    def load_new(
        self, source: Any, name: str, channel_order: ChannelOrder | None = None, *, as_published: bool = False
    ) -> Picture:
        """Load a picture and compare it with none. channel_order: None takes the loader's."""
        order = self._channel_order if channel_order is None else channel_order
        check_channel_order(order)
        _check_flag(as_published)
        framed = None if order == NV12 or as_published else self._load_frame(source, order, name)
        return framed or load_picture(source, channel_order=order, name=name, as_published=as_published)


def load_picture(
    source: Any, *, channel_order: ChannelOrder = "rgb", name: str = "picture", as_published: bool = False
) -> Picture:
    """Decode `source` into a Picture.

    Args:
        source: uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; a Pillow image (its current frame); the bytes of
            an image file; a path (`str` or `Path`); or such an array of another library, in CUDA's memory too
            (`__cuda_array_interface__` or DLPack).
        channel_order: that of arrays: "rgb", "bgr" (as OpenCV delivers), or "nv12" for arrays [3H/2, W] of a camera
            (BT.601, limited range, even H and W), which become RGB. Other sources know their own.
        name: what to call the picture in error messages when the source has no name of its own.
        as_published: convert as the published model code does, to compare with it: orientation tags are not followed,
            alpha is dropped instead of put on white, and gray levels beyond 255 are clipped.

    Raises:
        ImageError: the source is missing, unreadable, truncated, empty, larger than check_size allows, or of another
            type.
    """
    check_channel_order(channel_order)
    _check_flag(as_published)
    if isinstance(source, Picture):
        return source
    if is_array(source):
        return freeze(array_to_rgb(source, channel_order, name, as_published=as_published), name)
    from qwenvl_edge.inputs.image_files import decode, image_to_rgb, read_file  # which has its limits from here

    if isinstance(source, Image.Image):
        return freeze(image_to_rgb(source, name, as_published=as_published), name)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return freeze(decode(io.BytesIO(bytes(source)), name, as_published=as_published), name)
    if isinstance(source, (str, os.PathLike)):
        return freeze(read_file(source, as_published=as_published), os.fspath(source))
    raise ImageError(
        f"{name} is of type {type(source).__name__}; give a uint8 array, a Pillow image, the bytes of an "
        "image file or a path."
    )


def pixel_values(
    picture: Picture | npt.NDArray[np.uint8], preprocessing: Preprocessing, *, layout: ChannelOrder = "rgb"
) -> npt.NDArray[np.float32]:
    """Return the vision graph's input [3, S, S] float32: resized (bicubic, aspect ratio not kept), normalised.

    The bytes are those of Pillow's `resize` when it resamples along x first, as all of its versions before 13 do and
    the model was trained on; for pictures that lose much height, Pillow 13 begins with y and differs in a few of them.

    Args:
        picture: a Picture, or a uint8 array with any strides, which is read in place: [H, W], [H, W, 1], [H, W, 3] or
            [H, W, 4] (alpha is dropped; load_picture puts it on white), or with layout "nv12" [3H/2, W] (BT.601,
            limited range, even H and W).
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
    if not isinstance(channel_order, str) or channel_order not in get_args(ChannelOrder):
        raise ImageError(f"channel_order is {show(channel_order)}; give 'rgb', 'bgr' or 'nv12'.")


def _check_flag(as_published: bool) -> None:
    if not isinstance(as_published, bool):
        raise ImageError(f"as_published is {show(as_published)}; it must be True or False.")


def check_channels(shape: tuple[int, ...], name: str) -> None:
    """Check the shape of an array that is to be a picture. Raises ImageError."""
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(f"{name} is an array of shape {list(shape)}; give [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].")


def check_size(width: int, height: int, name: str) -> None:
    """Check a picture's size in pixels.

    Raises:
        ImageError: it is empty, beyond MAX_PIXELS or MAX_SIDE, or a strip beyond MAX_RATIO.
    """
    if width < 1 or height < 1:
        raise ImageError(f"{name} is empty ({width}x{height} pixels); give one with content.")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} has {width}x{height} pixels, more than the limit of {MAX_PIXELS:,}; scale it down.")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{name} has {width}x{height} pixels, a side of more than {MAX_SIDE:,}; scale it down.")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(
            f"{name} has {width}x{height} pixels, one side more than {MAX_RATIO:,} times the other; cut out a part."
        )


def over_white(rgba: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Blend [H, W, 4] with white by its alpha: each channel c becomes (c * a + 255 * (255 - a)) / 255, rounded."""
    height, width, _ = rgba.shape
    rgb = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP // width)
    for y in range(0, height, rows):
        alpha = rgba[y : y + rows, :, 3:].astype(np.uint16)
        blended = rgba[y : y + rows, :, :3] * alpha + (_WHITE * (255 - alpha) + 127)
        rgb[y : y + rows] = blended // 255
    return rgb


def is_array(source: Any) -> bool:
    """Tell whether array_to_rgb takes `source`: an array of NumPy's or of a library that shares its memory."""
    shared = ("__cuda_array_interface__", "__dlpack_device__")
    return isinstance(source, np.ndarray) or any(hasattr(source, name) for name in shared)


def array_to_rgb(
    array: Any, channel_order: ChannelOrder, name: str, *, as_published: bool = False
) -> npt.NDArray[np.uint8]:
    """Copy an array accepted by is_array to RGB [H, W, 3].

    A fourth channel is alpha, which is put on white; one that is 0 everywhere is the unused byte of a camera's BGRX.
    Raises ImageError as load_picture.
    """
    check_channel_order(channel_order)
    if not is_array(array):
        raise ImageError(f"{name} is a {type(array).__name__}; give a uint8 array, such as numpy.asarray(it).")
    if not isinstance(array, np.ndarray):
        array = frame_array(array, name)
    if channel_order != NV12:
        check_channels(array.shape, name)
    if array.dtype != np.uint8:
        raise ImageError(f"{name} is an array of dtype {array.dtype}; scale it to 0..255 and give uint8.")
    if channel_order == NV12:
        return _nv12_to_rgb(array, name)
    check_size(array.shape[1], array.shape[0], name)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    order = (2, 1, 0) if channel_order == "bgr" else (0, 1, 2)
    if array.shape[2] == 4 and not as_published and array[:, :, 3].any() and array[:, :, 3].min() < 255:
        return over_white(array[:, :, (*order, 3)])
    rgb = array[:, :, 2::-1] if channel_order == "bgr" else array[:, :, :3]
    return np.array(rgb, dtype=np.uint8, order="C")  # a copy: the caller may reuse the buffer


def _nv12_to_rgb(array: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.uint8]:
    """Convert [3H/2, W] to RGB [H, W, 3] by the core: at its own size, a picture is resized to itself."""
    if array.ndim != 2 or array.shape[0] % 3 or array.shape[1] % 2:
        raise ImageError(f"{name} is an array of shape {list(array.shape)}; NV12 is [3H/2, W] with even H and W.")
    height, width = array.shape[0] // 3 * 2, array.shape[1]
    check_size(width, height, name)
    # Normalised so that a channel's value v comes as v + 0.5 but for float32's last bits, and is cut to v.
    planes = _core.pixel_values(array, (height, width), (-0.5 / 255,) * 3, (1 / 255,) * 3, NV12)
    rgb = np.empty((height, width, 3), np.uint8)
    for channel, plane in enumerate(planes):
        rgb[..., channel] = plane
    return rgb
