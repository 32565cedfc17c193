"""Pictures of a request, decoded and kept in the size in which the model sees them."""

from __future__ import annotations

import io
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TypeAlias

from PIL import Image

from qwenvl_edge.families.pieces import NO_LIMITS, PixelLimits
from qwenvl_edge.inputs.image_files import FORMATS
from qwenvl_edge.inputs.pictures import Picture, check_size, load_picture
from qwenvl_edge.inputs.shrink import shrunk
from qwenvl_edge.server.picture_pool import PicturePool
from qwenvl_edge.server.places import Places, unusable
from qwenvl_edge.server.settings import ServerLimits
from qwenvl_edge.server.workers import LARGE_PIXELS, Workers

_KEPT_BYTES = 64 << 20

Size = tuple[int, int]
Seen: TypeAlias = Callable[[Size, PixelLimits], Size]
"""Tells the size in which the model sees a picture of some size (width, height)."""


class PictureSource:
    """Loads pictures within a server's limits. processes: decode large ones, and clips."""

    def __init__(self, limits: ServerLimits, places: Places, workers: Workers, seen: Seen) -> None:
        self._limits = limits
        self._places = places
        self._workers = workers
        self._seen = seen
        self._decoded = _Decoded()
        self.processes = PicturePool()

    async def load(
        self,
        url: str,
        attachments: Mapping[str, bytes],
        name: str,
        salt: str = "",
        limits: PixelLimits = NO_LIMITS,
    ) -> Picture:
        """Return the picture of a message's image_url, in the size in which the model sees it.

        salt: pictures that were decoded before are found again under the same one only. limits: its pixels'.

        Raises:
            ApiError: the URL is not allowed or leads nowhere, or the picture is too large or of another format.
            ImageError: the picture is damaged.
        """
        data, digest = await self._places.read_with_digest(url, attachments, name)
        key = salt, digest, limits
        if (known := self._decoded.get(key)) is not None:
            return known
        picture = await self.decode(data, name, lambda size: self._seen(size, limits))
        self._decoded.keep(key, picture)
        return picture

    async def decode(self, data: bytes, name: str, seen: Callable[[Size], Size]) -> Picture:
        """Return the picture in a file's bytes, resized to `seen` of its size. Raises as load."""
        width, height = await self._workers.parse(self._size, data, name)
        if width * height < LARGE_PIXELS:
            return await self._workers.decode("decode", width * height, lambda: _decode(data, name, seen))
        sizes = {size: seen(size) for size in ((width, height), (height, width))}  # as its orientation tag has it
        return await self._workers.decode("processes", width * height, lambda: self.processes.decode(data, name, sizes))

    def close(self) -> None:
        """End what was started."""
        self.processes.close()

    def _size(self, data: bytes, name: str) -> Size:
        """Return width and height of a picture, by its header: nothing is decoded before that is checked."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                    width, height = image.size
        except Image.DecompressionBombError:
            width = height = 1 << 20
        except Exception:  # a decoder may raise anything at a damaged header
            raise unusable(f"{name} is no picture in one of the formats {', '.join(FORMATS)}") from None
        if width * height > self._limits.picture_pixels:
            raise unusable(f"{name} has more than {self._limits.picture_pixels:,} pixels; scale it down")
        check_size(width, height, name)
        return width, height


def _decode(data: bytes, name: str, seen: Callable[[Size], Size]) -> Picture:
    picture = load_picture(data, name=name)
    return shrunk(picture, seen(picture.size))


_Key: TypeAlias = tuple[str, bytes, PixelLimits]


class _Decoded:
    """The last used pictures, up to _KEPT_BYTES of pixels: a conversation sends its picture again with every turn."""

    def __init__(self) -> None:
        self._pictures: OrderedDict[_Key, Picture] = OrderedDict()
        self._bytes = 0

    def get(self, key: _Key) -> Picture | None:
        """Return the picture of an image file, by salt, digest and limits; None: it is not kept."""
        if key in self._pictures:
            self._pictures.move_to_end(key)
        return self._pictures.get(key)

    def keep(self, key: _Key, picture: Picture) -> None:
        """Keep a picture."""
        if key not in self._pictures and picture.pixels.nbytes <= _KEPT_BYTES:
            self._pictures[key] = picture
            self._bytes += picture.pixels.nbytes
            while self._bytes > _KEPT_BYTES:
                self._bytes -= self._pictures.popitem(last=False)[1].pixels.nbytes
