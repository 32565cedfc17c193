"""Guard in front of every route: checks who asks, logs and counts the answers.

Without a key only this machine can connect, but a web page in its browser could too: by sending requests to
127.0.0.1 itself, or by a name of its own that it points there (DNS rebinding). So the Host header must name a loopback
address then, the client's must be one (another program, such as Ray's proxy, may have bound more), and a request of
another page's (its Origin is not this host) is refused unless that origin was allowed; the browser is told so (CORS).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import secrets
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwenvl_edge.server.errors import SERVER, ApiError
from qwenvl_edge.server.logs import LOGGER, log
from qwenvl_edge.server.metrics import Metrics
from qwenvl_edge.server.page import PAGE_FILES
from qwenvl_edge.server.settings import ServerSettings, is_loopback

_OPEN = frozenset({"/health", "/healthz", "/readyz", "/favicon.ico", *PAGE_FILES})
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "*, Authorization, Content-Type",
    "Access-Control-Max-Age": "600",
}


class Guard:
    """ASGI middleware: checks, request id, security headers, log line, count of responses."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics, routes: frozenset[str]) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, begun = time.perf_counter(), 500, False
        state = scope.setdefault("state", {})
        request_id = state["request_id"] = f"req-{secrets.token_hex(8)}"
        state["salt"], state["client"] = "", _network(scope.get("client"))
        given = Headers(scope=scope)
        allowed = _allowed_origin(given, self._settings.origins)

        async def answer(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in (*_HEADERS.items(), *allowed.items()):
                    headers.setdefault(name, value)
            await send(message)

        try:
            if allowed and scope["method"] == "OPTIONS":
                await Response(status_code=204, headers=_PREFLIGHT)(scope, receive, answer)
                return
            refusal = self._refusal(scope["path"], given, scope.get("client"), state)
            await (self._app if refusal is None else refusal.response())(scope, receive, answer)
        except Exception:
            LOGGER.exception("failed", extra={"fields": {"id": request_id}})
            if begun:
                raise
            error = ApiError(500, "the server failed; its log says why.", kind=SERVER)
            await error.response()(scope, receive, answer)
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.responses.labels(route, str(status)).inc()
            milliseconds = round((time.perf_counter() - started) * 1e3, 1)
            log("request", id=request_id, method=scope["method"], route=route, status=status, ms=milliseconds)

    def _refusal(
        self, path: str, headers: Headers, client: tuple[str, int] | None, state: dict[str, Any]
    ) -> ApiError | None:
        host = headers.get("host", "").lower()
        keys = self._settings.api_keys
        near = _name(host) in _LOOPBACK_NAMES and (client is None or is_loopback(client[0]))
        if not keys and not near:
            return ApiError(403, "this server answers to localhost only.", code="host_not_allowed")
        origin = headers.get("origin")
        own = origin is None or origin.lower().partition("://")[2] == host
        if not own and not _allowed_origin(headers, self._settings.origins):
            return ApiError(
                403,
                "requests of other web pages are refused; the server's --allow-origin lists those allowed.",
                code="origin_not_allowed",
            )
        # All are compared, so that the time tells nothing about which one is nearly right.
        sent = headers.get("authorization", "")
        right = [key for key in keys if _same(sent, f"Bearer {key}")]
        if right:
            state["salt"] = state["client"] = hashlib.sha256(right[0].encode()).hexdigest()
        if keys and path not in _OPEN and not right:
            return ApiError(
                401,
                "the API key is missing or wrong; send it as `Authorization: Bearer KEY`.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return None


def _allowed_origin(headers: Headers, origins: tuple[str, ...]) -> dict[str, str]:
    """Return the headers that let the page of a request read its answer; none if it is not allowed."""
    origin = headers.get("origin", "").lower()
    if origin not in origins:
        return {}
    return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": "x-request-id", "Vary": "Origin"}


def _network(client: tuple[str, int] | None) -> str:
    """Return who asks, as far as the address tells: of IPv6 the half that an owner of a network cannot choose."""
    if client is None:
        return ""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(client[0])
        if address.version == 6 and address.ipv4_mapped is None:
            return str(ipaddress.ip_network(f"{address}/64", strict=False))
    return client[0]


def _name(host: str) -> str | None:
    """Return a Host header without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _same(given: str, expected: str) -> bool:
    """Compare two texts in a time that tells nothing about the place of a difference."""
    return hmac.compare_digest(given.encode(), expected.encode())
