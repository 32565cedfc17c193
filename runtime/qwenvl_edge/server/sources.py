"""Where a request's pictures come from: data: URIs, parts of the request, and what the operator listed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import stat
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from PIL import Image

from qwenvl_edge.inputs.pictures import Picture, load_picture
from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.fetch import Fetcher
from qwenvl_edge.server.settings import Settings

_KEPT_BYTES = 64 << 20
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that are decoded; the rest of Pillow's decoders are rarely used, so rarely tried by anyone."""


class PictureSource:
    """Loads pictures within a server's settings."""

    def __init__(self, settings: Settings) -> None:
        self._limits = settings.limits
        self._folders = [folder.resolve() for folder in settings.picture_folders]
        self._decoded = _Decoded()
        self._fetcher = Fetcher(settings.url_hosts, limit=settings.limits.body_bytes)

    def load(self, url: str, attachments: Mapping[str, bytes], name: str) -> Picture:
        """The picture behind a message's image_url.

        Raises:
            ApiError: the URL is not allowed or leads nowhere, or the picture is too large or of another format.
            ImageError: the picture is damaged.
        """
        scheme, _, rest = url.partition(":")
        match scheme.lower():
            case "data":
                data = _data_uri(rest, name)
            case "attachment":
                data = _attachment(rest, attachments, name)
            case "http" | "https":
                data = self._fetcher.fetch(url)
            case "file":
                data = self._read(url, name)
            case _:
                raise _bad(f"{name} has a URL of an unknown kind; give a data: URI")
        return self._decoded.get(data, lambda: self._decode(data, name))

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

    def _decode(self, data: bytes, name: str) -> Picture:
        """Look at the header before anything is decoded."""
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
        return load_picture(data, name=name)


class _Decoded:
    """The last used pictures, up to _KEPT_BYTES of pixels: a conversation sends its picture again with every turn."""

    def __init__(self) -> None:
        self._pictures: OrderedDict[bytes, Picture] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, data: bytes, decode: Callable[[], Picture]) -> Picture:
        """The picture of an image file's bytes; `decode` makes it where it is not kept."""
        key = hashlib.sha256(data).digest()
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return self._pictures[key]
        picture = decode()
        with self._lock:
            if key not in self._pictures and picture.pixels.nbytes <= _KEPT_BYTES:
                self._pictures[key] = picture
                self._bytes += picture.pixels.nbytes
                while self._bytes > _KEPT_BYTES:
                    self._bytes -= self._pictures.popitem(last=False)[1].pixels.nbytes
        return picture


def _data_uri(rest: str, name: str) -> bytes:
    head, comma, body = rest.partition(",")
    if not comma:
        raise _bad(f"{name} has a data: URI without a comma")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(unquote(body) if "%" in body else body, validate=True)
    except (binascii.Error, ValueError):
        raise _bad(f"{name} has a data: URI that is not valid base64") from None


def _attachment(part: str, attachments: Mapping[str, bytes], name: str) -> bytes:
    if part not in attachments:
        raise _bad(f"{name} names a part that the request does not have; send multipart/form-data with that file")
    return attachments[part]


def _bad(reason: str) -> ApiError:
    return ApiError(400, f"{reason}.", param="messages", code="invalid_image")
