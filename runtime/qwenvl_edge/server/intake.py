"""A request's body -> a ChatRequest and its attached files, within the limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.schema import ChatRequest
from qwenvl_edge.server.settings import ServerLimits

REQUEST_PART = "request"
"""The part of a multipart request that holds the JSON."""


async def read_request(request: Request, limits: ServerLimits) -> tuple[ChatRequest, dict[str, bytes]]:
    """The chat request and the files sent with it, by the name of their part.

    Raises:
        ApiError: the body is too large, too slow, of another content type, or not what the schema says.
        ClientDisconnect: the client went away.
    """
    try:
        body = await asyncio.wait_for(_read(request, limits.body_bytes), limits.read_seconds)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the request did not arrive within {limits.read_seconds:g} s.") from None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _parse(body), {}
    if kind == "multipart/form-data":
        return await _parse_form(request, body, limits)
    raise ApiError(415, "send application/json, or multipart/form-data with a part named 'request'.")


async def _read(request: Request, limit: int) -> bytes:
    too_large = ApiError(413, f"the request has more than {limit:,} bytes; send smaller pictures.")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


def _parse(body: bytes | str) -> ChatRequest:
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(each) for each in first["loc"])
        message = f"{where}: {first['msg']}." if where else f"the request is not valid: {first['msg']}."
        raise ApiError(400, _printable(message), param=_printable(where) or None) from None


async def _parse_form(request: Request, body: bytes, limits: ServerLimits) -> tuple[ChatRequest, dict[str, bytes]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers,
        stream(),
        max_files=limits.pictures,
        max_fields=1,
        max_part_size=limits.body_bytes,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, HTTPException, KeyError, ValueError) as error:
        reason = getattr(error, "message", None) or getattr(error, "detail", None) or "its parts cannot be read"
        raise ApiError(400, _printable(f"the multipart request is malformed: {reason}.")) from None
    try:
        files = {name: await part.read() for name, part in form.items() if isinstance(part, UploadFile)}
        text = form.get(REQUEST_PART)
        if not isinstance(text, str):
            raise ApiError(
                400, f"the multipart request has no field {REQUEST_PART!r} with the JSON of the chat request."
            )
        return _parse(text.encode(errors="surrogatepass")), files
    finally:
        await form.close()


def _printable(text: str) -> str:
    """Text of a client's, fit for a JSON answer."""
    return text.encode(errors="replace").decode()[:500]


__all__ = ["REQUEST_PART", "ClientDisconnect", "read_request"]
