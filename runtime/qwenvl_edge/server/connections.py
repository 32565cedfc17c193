"""Connections: how many there may be, and how long each phase of one may take.

uvicorn waits without end for a first request, for the rest of a header and for a client that does not read its answer.
Answers leave at once (TCP_NODELAY): else every small piece of one would wait 40 ms for what the client acknowledges.
Here every connection is in one phase at a time and is closed when that has lasted too long. Where there are as many
connections as there may be, the one that has idled longest makes room, so that nobody keeps others out by connecting.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from dataclasses import dataclass
from enum import Enum
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_LOOK_S = 0.5
_SPARE_DESCRIPTORS = 128  # for files, pipes and pictures' hosts
_PATIENCE_S = 2.0  # a body so young is not taken for one that never comes
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 34\r\nRetry-After: 2\r\n"
    b"Connection: close\r\n\r\nthe server has no free connection\n"
)


class Phase(Enum):
    """States of a connection, by what it waits for, in the order in which they make room for others."""

    IDLE = 0
    HEADER = 1
    BODY = 2
    ANSWER = 3


@dataclass(frozen=True)
class PhaseLimits:
    """Seconds that each phase may take: until a request begins, its header, its body, its answer until it is read."""

    idle: float
    header: float
    body: float
    answer: float

    def of(self, phase: Phase) -> float:
        """Return the limit of a phase."""
        return (self.idle, self.header, self.body, self.answer)[phase.value]


class Connections:
    """The open connections of a server, at most `most`."""

    def __init__(self, most: int, limits: PhaseLimits) -> None:
        self.most = most
        self._limits = limits
        self._open: dict[WatchedProtocol, tuple[Phase, int, float]] = {}
        self._look: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def protocol(self) -> type[WatchedProtocol]:
        """Return the protocol class that uvicorn makes connections of."""
        return type("BoundProtocol", (WatchedProtocol,), {"table": self})

    def enter(self, connection: WatchedProtocol, phase: Phase, request: int) -> None:
        """Note the phase of a connection, of its request number `request`; a phase that goes on keeps its beginning."""
        known = self._open.get(connection)
        if known is None or known[:2] != (phase, request):
            self._open[connection] = phase, request, time.monotonic()
        if self._look is None:
            self._look = connection.loop.call_later(_LOOK_S, self._close_late, connection.loop)

    def leave(self, connection: WatchedProtocol) -> None:
        """Forget a connection."""
        self._open.pop(connection, None)

    def make_room(self) -> bool:
        """Close the connection that waits longest for its client if there are too many; tell whether there is room."""
        if len(self._open) < self.most:
            return True
        before = time.monotonic() - _PATIENCE_S
        waiting = [
            (phase.value, since, connection)
            for connection, (phase, _, since) in self._open.items()
            if phase in (Phase.IDLE, Phase.HEADER) or (phase is Phase.BODY and since < before)
        ]
        if not waiting:
            return False
        self._close(min(waiting, key=lambda each: each[:2])[2])
        return True

    def _close_late(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        for connection, (phase, _, since) in list(self._open.items()):
            if now - since > self._limits.of(phase):
                self._close(connection)
        self._look = loop.call_later(_LOOK_S, self._close_late, loop) if self._open else None

    def _close(self, connection: WatchedProtocol) -> None:
        self.leave(connection)
        connection.transport.abort()


class WatchedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 connection, which tells its phase to the table of its server."""

    table: Connections
    _request = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        with contextlib.suppress(OSError, AttributeError):  # asyncio does so only where the listening socket named TCP
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.table.make_room():
            self.table.enter(self, Phase.IDLE, 0)
        else:
            transport.write(_REFUSAL)
            transport.close()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.table.leave(self)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """See uvicorn."""
        self._request += 1
        super().on_response_complete()
        self._tell()

    def _tell(self) -> None:
        if not self.transport.is_closing():
            self.table.enter(self, self._phase(), self._request)

    def _phase(self) -> Phase:
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            return Phase.BODY if cycle.more_body else Phase.ANSWER
        if self.conn.their_state is h11.SEND_BODY:  # answered before all of it came
            return Phase.BODY
        return Phase.HEADER if self.conn.trailing_data[0] else Phase.IDLE


def descriptors(wanted: int) -> int:
    """Return how many connections the process may have, `wanted` at most; its soft limit is raised as far as it may."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = wanted + _SPARE_DESCRIPTORS
        if soft != resource.RLIM_INFINITY and soft < needed:
            soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft != resource.RLIM_INFINITY:
            return max(8, min(wanted, soft - _SPARE_DESCRIPTORS))
    return wanted
