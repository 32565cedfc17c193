"""Sessions: requests with the same X-Session-ID, such as those of one camera, go to one replica."""

from __future__ import annotations

from contextvars import ContextVar

from starlette.types import ASGIApp, Receive, Scope, Send

HEADER = b"x-session-id"
_LONGEST = 256  # characters of it that count
_SESSION: ContextVar[str] = ContextVar("session", default="")


def session_key() -> str:
    """Return the key of the session that the request at hand belongs to; "" for none."""
    return _SESSION.get()


class Sessions:
    """An ASGI application over another, for whose requests `session_key` tells the session."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        given = next((value for name, value in scope.get("headers", ()) if name.lower() == HEADER), b"")
        token = _SESSION.set(f"session {given[:_LONGEST].decode('latin-1')}" if given else "")
        try:
            await self._app(scope, receive, send)
        finally:
            _SESSION.reset(token)
