"""Pictures of a request: from data: URIs, parts of the request, and the hosts and folders that were allowed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import stat
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from PIL import Image

from qwenvl_edge.inputs.image_files import FORMATS
from qwenvl_edge.inputs.pictures import Picture, check_size, load_picture
from qwenvl_edge.inputs.shrink import shrunk
from qwenvl_edge.machine.memory import give_back
from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.fetch import Fetcher
from qwenvl_edge.server.settings import ServerSettings
from qwenvl_edge.server.workers import Workers

_KEPT_BYTES = 64 << 20
_LARGE_BYTES = 8 << 20

_WHITE_SPACE = b" \t\n\r\f"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*={0,2}")


class PictureSource:
    """Loads pictures within a server's settings.

    Args:
        seen: the size in which the model sees a picture of some size (width, height).
    """

    def __init__(
        self, settings: ServerSettings, workers: Workers, seen: Callable[[tuple[int, int]], tuple[int, int]]
    ) -> None:
        self._limits = settings.limits
        self._folders = [folder.resolve() for folder in settings.picture_folders]
        self._workers = workers
        self._seen = seen
        self._decoded = _Decoded()
        self._fetcher = Fetcher(settings.url_hosts, limit=settings.limits.body_bytes)

    async def load(self, url: str, attachments: Mapping[str, bytes], name: str, salt: str = "") -> Picture:
        """Return the picture of a message's image_url, in the size in which the model sees it.

        salt: pictures that were decoded before are found again under the same one only.

        Raises:
            ApiError: the URL is not allowed or leads nowhere, or the picture is too large or of another format.
            ImageError: the picture is damaged.
        """
        url = url.strip()
        scheme, _, rest = url.partition(":")
        match scheme.lower():
            case "data":
                data = await self._workers.parse(_data_uri, rest, name)
            case "attachment":
                data = _attachment(rest, attachments, name)
            case "http" | "https":
                data = await self._workers.fetch(self._fetcher.fetch, url)
            case "file":
                data = await self._workers.fetch(self._read, url, name)
            case _:
                raise _bad(f"{name} has a URL of an unknown kind; give a data: URI")
        key = salt, (await self._workers.parse(hashlib.sha256, data)).digest()
        if (known := self._decoded.get(key)) is not None:
            return known
        pixels = await self._workers.parse(self._pixels, data, name)
        picture = await self._workers.decode(pixels, lambda: self._decode(data, name))
        self._decoded.keep(key, picture)
        return picture

    def _read(self, url: str, name: str) -> bytes:
        """A file inside an allowed folder, symbolic links followed before that is decided."""
        refused = _bad(f"{name} names a file that may not be read; the server's --allow-path lists folders that may")
        parts = urlsplit(url)
        try:
            path = Path(unquote(parts.path)).resolve(strict=True)
            inside = any(path.is_relative_to(folder) for folder in self._folders)
            if parts.netloc not in ("", "localhost") or not inside:
                raise refused
            # NOFOLLOW: the path is resolved, a link there now was put there since. NONBLOCK: pipes are not waited for.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise refused
                data = file.read(self._limits.body_bytes + 1)
        except (OSError, ValueError, RuntimeError):  # RuntimeError: a loop of links
            raise refused from None  # the same words, whether it is there or not
        if len(data) > self._limits.body_bytes:
            raise _bad(f"{name} has more than {self._limits.body_bytes:,} bytes")
        return data

    def _pixels(self, data: bytes, name: str) -> int:
        """Return how many pixels a picture has, by its header: nothing is decoded before that is checked."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                    width, height = image.size
        except Image.DecompressionBombError:
            width = height = 1 << 20
        except Exception:  # a decoder may raise anything at a damaged header
            raise _bad(f"{name} is no picture in one of the formats {', '.join(FORMATS)}") from None
        if width * height > self._limits.picture_pixels:
            raise _bad(f"{name} has more than {self._limits.picture_pixels:,} pixels; scale it down")
        check_size(width, height, name)
        return int(width * height)

    def _decode(self, data: bytes, name: str) -> Picture:
        picture = load_picture(data, name=name)
        kept = shrunk(picture, self._seen(picture.size))
        if kept is not picture and picture.pixels.nbytes > _LARGE_BYTES:
            del picture
            give_back()
        return kept


class _Decoded:
    """The last used pictures, up to _KEPT_BYTES of pixels: a conversation sends its picture again with every turn."""

    def __init__(self) -> None:
        self._pictures: OrderedDict[tuple[str, bytes], Picture] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[str, bytes]) -> Picture | None:
        """Return the picture of an image file, by salt and digest; None: it is not kept."""
        if key in self._pictures:
            self._pictures.move_to_end(key)
        return self._pictures.get(key)

    def keep(self, key: tuple[str, bytes], picture: Picture) -> None:
        """Keep a picture."""
        if key not in self._pictures and picture.pixels.nbytes <= _KEPT_BYTES:
            self._pictures[key] = picture
            self._bytes += picture.pixels.nbytes
            while self._bytes > _KEPT_BYTES:
                self._bytes -= self._pictures.popitem(last=False)[1].pixels.nbytes


def _data_uri(rest: str, name: str) -> bytes:
    """Return the bytes of a data: URI, read as leniently as browsers do, URL-safe base64 included."""
    head, comma, body = rest.partition(",")
    if not comma:
        raise _bad(f"{name} has a data: URI without a comma")
    if "base64" not in (parameter.strip().lower() for parameter in head.split(";")[1:]):
        return unquote_to_bytes(body)
    try:
        text = (unquote(body) if "%" in body else body).encode("ascii")
        text = text.translate(_URL_SAFE, _WHITE_SPACE)
        if not _BASE64.fullmatch(text):
            raise ValueError("another character")
        text = text.rstrip(b"=")
        return base64.b64decode(text + b"=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raise _bad(f"{name} has a data: URI that is not valid base64") from None


def _attachment(part: str, attachments: Mapping[str, bytes], name: str) -> bytes:
    if part not in attachments:
        raise _bad(f"{name} names a part that the request does not have; send multipart/form-data with that file")
    return attachments[part]


def _bad(reason: str) -> ApiError:
    return ApiError(400, f"{reason}.", param="messages", code="invalid_image")
