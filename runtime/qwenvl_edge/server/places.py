"""Places that a request names -> bytes: data: URIs, parts of the request, and hosts and folders that were allowed."""

from __future__ import annotations

import binascii
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.fetch import Fetcher
from qwenvl_edge.server.settings import ServerSettings
from qwenvl_edge.server.workers import Workers

_T = TypeVar("_T")
_WHITE_SPACE = b" \t\n\r\f"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*")
_ESCAPED = {f"%{ord(sign):{form}}": sign for form in ("02X", "02x") for sign in "+/=-_ \t\r\n\f"}
_MOST_ESCAPED = 200_000
_PIECE = 1 << 16  # characters


class Places:
    """Reads places within a server's settings."""

    def __init__(self, settings: ServerSettings, workers: Workers) -> None:
        self._limits = settings.limits
        self._folders = [folder.resolve() for folder in settings.picture_folders]
        self._workers = workers
        self._fetcher = Fetcher(settings.url_hosts, limit=settings.limits.body_bytes)

    async def read(self, url: str, attachments: Mapping[str, bytes], name: str) -> bytes:
        """Return the bytes at a place. Raises ApiError: it is not allowed, or leads nowhere."""
        return (await self._find(url, attachments, name, lambda data: (data,)))[0]

    async def read_with_digest(self, url: str, attachments: Mapping[str, bytes], name: str) -> tuple[bytes, bytes]:
        """Return the bytes at a place and their SHA-256. Raises as read."""
        return await self._find(url, attachments, name, lambda data: (data, hashlib.sha256(data).digest()))

    async def _find(self, url: str, attachments: Mapping[str, bytes], name: str, then: Callable[[bytes], _T]) -> _T:
        """Do something with the bytes at a place, in the thread that reads them: each change of threads takes time."""
        url = url.strip()
        scheme, _, rest = url.partition(":")
        match scheme.lower():
            case "data":
                return await self._workers.parse(lambda: then(_data_uri(rest, name)))
            case "attachment":
                return await self._workers.parse(then, _attachment(rest, attachments, name))
            case "http" | "https":
                return await self._workers.parse(then, await self._workers.fetch(self._fetcher.fetch, url))
            case "file":
                return await self._workers.parse(then, await self._workers.fetch(self._read, url, name))
        raise unusable(f"{name} has a URL of an unknown kind; give a data: URI")

    def _read(self, url: str, name: str) -> bytes:
        """A file inside an allowed folder, symbolic links followed before that is decided."""
        refused = unusable(
            f"{name} names a file that may not be read; the server's --allow-path lists folders that may"
        )
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
            raise unusable(f"{name} has more than {self._limits.body_bytes:,} bytes")
        return data


def _data_uri(rest: str, name: str) -> bytes:
    """Return the bytes of a data: URI, read as leniently as browsers do, URL-safe base64 included."""
    head, comma, body = rest.partition(",")
    if not comma:
        raise unusable(f"{name} has a data: URI without a comma")
    try:
        if "base64" not in (parameter.strip().lower() for parameter in head.split(";")[1:]):
            if body.count("%") > _MOST_ESCAPED:
                raise unusable(f"{name} has more than {_MOST_ESCAPED:,} percent-encoded bytes; send it as base64")
            return b"".join(map(unquote_to_bytes, _pieces(body)))
        return b"".join(_from_base64(body))
    except ValueError:
        raise unusable(f"{name} has a data: URI that is not valid base64") from None


def _from_base64(body: str) -> Iterator[bytes]:
    """Yield the bytes of base64, percent-encoded or not. Raises ValueError."""
    rest, padding, escaped = b"", 0, 0
    for piece in _pieces(body):
        for code, sign in _ESCAPED.items() if "%" in piece else ():
            piece = piece.replace(code, sign)  # noqa: PLW2901
        if "%" in piece:  # others, for which there is no quick way
            escaped += piece.count("%")
            if escaped > _MOST_ESCAPED:
                raise ValueError("letters that need no escapes")
            piece = unquote(piece)  # noqa: PLW2901
        text = piece.encode("ascii").translate(_URL_SAFE, _WHITE_SPACE)
        content = text.rstrip(b"=")
        if (padding and content) or not _BASE64.fullmatch(content):
            raise ValueError("another character")
        padding += len(text) - len(content)
        content = rest + content
        whole = len(content) - len(content) % 4
        yield binascii.a2b_base64(content[:whole])
        rest = content[whole:]
    if padding > 2:
        raise ValueError("too many =")
    yield binascii.a2b_base64(rest + b"=" * (-len(rest) % 4))


def _pieces(body: str) -> Iterator[str]:
    """Yield a text in pieces, none of which ends in a percent-encoded byte: other threads go on between two of them."""
    start = 0
    while start < len(body):
        end = start + _PIECE
        cut = body.find("%", end - 2, end)
        end = end if cut < 0 else cut + 3
        yield body[start:end]
        start = end


def _attachment(part: str, attachments: Mapping[str, bytes], name: str) -> bytes:
    if part not in attachments:
        raise unusable(f"{name} names a part that the request does not have; send multipart/form-data with that file")
    return attachments[part]


def unusable(reason: str) -> ApiError:
    """Return the error for a picture or clip that cannot be had."""
    return ApiError(400, f"{reason}.", param="messages", code="invalid_image")
