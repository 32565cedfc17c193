"""Sessions: requests with the same X-Session-ID, such as those of one camera, go to one replica.

An answer that is not streamed says in X-Replica-ID which replica it is from.
"""

from __future__ import annotations

from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-session-id"
REPLICA = b"x-replica-id"
_LONGEST = 256  # characters of a session that count


class Session:
    """The session that a request belongs to; key: "" for none. replica: the one that has the request, once one has."""

    def __init__(self, key: str = "") -> None:
        self.key = key
        self.replica = ""


_SESSION: ContextVar[Session | None] = ContextVar("session", default=None)


def session() -> Session:
    """Return the session of the request at hand."""
    return _SESSION.get() or Session()


class Sessions:
    """An ASGI application over another, for whose requests `session` tells the session."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        given = next((value for name, value in scope.get("headers", ()) if name.lower() == HEADER), b"")
        current = Session(f"session {given[:_LONGEST].decode('latin-1')}" if given else "")

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and current.replica:
                replica = (REPLICA, current.replica.encode("latin-1"))
                message = {**message, "headers": [*message.get("headers", ()), replica]}
            await send(message)

        token = _SESSION.set(current)
        try:
            await self._app(scope, receive, answer)
        finally:
            _SESSION.reset(token)
