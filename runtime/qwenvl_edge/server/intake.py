"""A request's body -> its JSON and its attached files, within the limits, before anything is built of it."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.memory import Holding, full
from qwenvl_edge.server.messages import kind_of, printable
from qwenvl_edge.server.settings import ServerLimits

REQUEST_PART = "request"
"""The part of a multipart request that holds the JSON."""
_MOST_VALUES = 50_000
_MOST_ESCAPES = 1_000_000  # 20 ms in which nothing else is done in Python
_PIECE = 1 << 16  # bytes that are looked through at once, between which other threads go on
_JSON = "application/json"
_FORM = "multipart/form-data"


@dataclass(frozen=True)
class Arrived:
    """A whole body: its bytes, its content type, and the headers for a form's boundary."""

    body: bytes
    kind: str
    request: Request


async def read_body(request: Request, limits: ServerLimits, holding: Holding) -> Arrived:
    """Read a request to its end.

    Raises:
        ApiError: the body is too large, too slow, of another content type, or beyond what the server may hold.
        ClientDisconnect: the client went away.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (_JSON, _FORM):
        raise ApiError(415, f"send {_JSON}, or {_FORM} with a part named {REQUEST_PART!r}.")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise ApiError(415, "the body is compressed; send it as it is, without Content-Encoding.")
    reading = asyncio.ensure_future(_read(request, limits.body_bytes, holding))
    holding.give_up = reading.cancel
    try:
        done, _ = await asyncio.wait({reading}, timeout=limits.read_seconds)
        if not done:
            raise ApiError(408, f"the request did not arrive within {limits.read_seconds:g} s.")
        if reading.cancelled():
            raise full()
        return Arrived(reading.result(), kind, request)
    finally:
        holding.give_up = None
        reading.cancel()


async def _read(request: Request, limit: int, holding: Holding) -> bytes:
    too_large = ApiError(413, f"the request has more than {limit:,} bytes; send smaller pictures.")
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or int(length[:20]) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
        holding.set(len(body))
    return bytes(body)


def parse(arrived: Arrived, limits: ServerLimits) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the JSON object of a request and the files sent with it, by the name of their part.

    Raises:
        ApiError: the body is no JSON object, or has more values than a request can need.
    """
    if arrived.kind == _JSON:
        return _object(arrived.body), {}
    return asyncio.run(_parse_form(arrived, limits))  # in a thread of its own, so there is no loop yet


def _object(body: bytes) -> dict[str, Any]:
    # Each value but the first follows one of these; counted before they become objects of fifty times their size.
    values = sum(_count(body, sign) for sign in (b",", b"[", b"{"))
    if values > _MOST_VALUES:
        raise ApiError(400, f"the request has about {values:,} values, more than {_MOST_VALUES:,}; send fewer.")
    if (escapes := _count(body, b"\\")) > _MOST_ESCAPES:
        raise ApiError(400, f"the request has {escapes:,} escaped characters, more than {_MOST_ESCAPES:,}; send UTF-8.")
    try:
        raw = from_json(body.removeprefix(codecs.BOM_UTF8), allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, printable(f"the request is no JSON: {error}.")) from None
    if not isinstance(raw, dict):
        raise ApiError(400, f"the request is {kind_of(raw)}; send a JSON object.")
    return raw


def _count(body: bytes, sign: bytes) -> int:
    return sum(body.count(sign, start, start + _PIECE) for start in range(0, len(body), _PIECE))


async def _parse_form(arrived: Arrived, limits: ServerLimits) -> tuple[dict[str, Any], dict[str, bytes]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield arrived.body

    parser = MultiPartParser(
        arrived.request.headers,
        stream(),
        max_files=limits.pictures,
        max_fields=1,
        max_part_size=limits.body_bytes,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, HTTPException, KeyError, ValueError) as error:
        reason = getattr(error, "message", None) or getattr(error, "detail", None) or "its parts cannot be read"
        raise ApiError(400, printable(f"the multipart request is malformed: {reason}.")) from None
    try:
        files = {name: await part.read() for name, part in form.items() if isinstance(part, UploadFile)}
        text = form.get(REQUEST_PART)
        if not isinstance(text, str):
            raise ApiError(
                400, f"the multipart request has no field {REQUEST_PART!r} with the JSON of the chat request."
            )
        return _object(text.encode(errors="surrogatepass")), files
    finally:
        await form.close()


__all__ = ["REQUEST_PART", "Arrived", "ClientDisconnect", "parse", "read_body"]
