"""Pictures that keep only the pixels that the model sees, for those that wait: a photograph takes 75 MB, its copy 1."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwenvl_edge import _core
from qwenvl_edge.inputs.pictures import Picture, freeze

# Normalised so that a channel's value v comes as v + 0.5 but for float32's last bits, and is cut to v.
_MEAN = (-0.5 / 255,) * 3
_STD = (1 / 255,) * 3


@dataclass(frozen=True, eq=False)
class ShrunkPicture(Picture):
    """A picture whose `pixels` were resized; `size` is still that of the original, to which boxes belong."""

    original: tuple[int, int]

    @functools.cached_property
    def digest(self) -> str:
        """See Picture.digest; two pictures of different sizes are different though their pixels agree now."""
        digest = hashlib.sha256(repr((self.original, self.pixels.shape)).encode())
        digest.update(self.pixels.data)
        return digest.hexdigest()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the original in pixels."""
        return self.original


def shrunk(picture: Picture, size: tuple[int, int]) -> Picture:
    """Return a picture resized to `size` (width, height) as the preprocessing does, or itself where that saves nothing.

    Preprocessing to that size gives the same values from either.
    """
    width, height = size
    if type(picture) is not Picture or picture.pixels.nbytes <= 3 * width * height:
        return picture
    planes = _core.pixel_values(picture.pixels, (height, width), _MEAN, _STD, "rgb")
    pixels: npt.NDArray[np.uint8] = np.empty((height, width, 3), np.uint8)
    for channel, plane in enumerate(planes):
        pixels[..., channel] = plane
    return ShrunkPicture(freeze(pixels, picture.name).pixels, picture.name, picture.size)
