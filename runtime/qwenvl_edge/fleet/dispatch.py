"""Dispatcher: takes the place of a Batcher and has requests answered by replicas, by another one if one is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ray import exceptions
from ray.serve.exceptions import ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from qwenvl_edge.constraints.ending import Seek
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.families.tools import CallPiece
from qwenvl_edge.fleet.routing import picture_key
from qwenvl_edge.fleet.session import Session, session
from qwenvl_edge.inputs.cancel import CancelToken
from qwenvl_edge.replies.reply import Reply, TokenLogprob
from qwenvl_edge.server.errors import SERVER, ApiError
from qwenvl_edge.server.logs import log
from qwenvl_edge.server.service import Thought


@dataclass(frozen=True)
class Taken:
    """First item of a replica, sent once it has a request: its name."""

    replica: str


Item = Taken | str | CallPiece | list[TokenLogprob] | Reply | QwenVLError
"""Items that a replica sends: Taken once it has the request, pieces of the answer, at last the reply or an error."""

_LOST = (
    exceptions.RayActorError,
    exceptions.NodeDiedError,
    exceptions.ObjectLostError,
    exceptions.WorkerCrashedError,
    ReplicaUnavailableError,
)
_TRIES = 3  # replicas that a request may be lost with: it could be what ends them
_PAUSE_S = 0.05


@dataclass(eq=False)
class _Request:
    """A request until its reply; `ends` is its deadline on time.monotonic."""

    key: str
    session: Session
    arguments: dict[str, Any]
    cancel: CancelToken
    on_text: Callable[[str], None] | None
    on_logprobs: Callable[[Sequence[TokenLogprob]], None] | None
    on_thinking: Callable[[str], None] | None
    on_call: Callable[[CallPiece], None] | None
    ends: float
    taken: bool = False
    said: bool = False
    losses: int = 0

    @property
    def left_s(self) -> float:
        """Seconds until its deadline."""
        return self.ends - time.monotonic()


class Dispatcher:
    """Has requests answered through a handle of Engine replicas; made and used on one event loop.

    waiting: requests that no replica has. running: those that one has.
    """

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._replicas = replicas.options(stream=True)
        self._loop = asyncio.get_running_loop()
        self._open: set[_Request] = set()

    @property
    def waiting(self) -> int:
        """Requests that no replica has taken."""
        return sum(not request.taken for request in self._open)

    @property
    def running(self) -> int:
        """Requests that a replica has."""
        return sum(request.taken for request in self._open)

    def submit(
        self,
        *,
        cancel: CancelToken,
        deadline_ms: float,
        on_text: Callable[[str], None] | None = None,
        on_logprobs: Callable[[Sequence[TokenLogprob]], None] | None = None,
        on_thinking: Callable[[str], None] | None = None,
        on_call: Callable[[CallPiece], None] | None = None,
        **arguments: Any,
    ) -> Future[Reply]:
        """Have a request answered; called outside the event loop, in its context. Arguments are Batcher.submit's.

        Returns:
            The reply to come, without pictures and history, or its error: as in a Batcher's future, or an ApiError
            (503) where no replica was free in time or the one that answered was lost.
        """
        ends = time.monotonic() + deadline_ms / 1e3
        listeners = (on_text, on_logprobs, on_thinking, on_call)
        current = session()
        request = _Request(current.key or picture_key(arguments), current, arguments, cancel, *listeners, ends)
        return asyncio.run_coroutine_threadsafe(self._answer(request), self._loop)

    def charge(self, client: str, seconds: float) -> None:
        """Count nothing: each replica has an order of its own, by what it computes itself."""

    def seek_by(self, seek: Seek) -> None:
        """Change nothing: replicas have processes of their own for it."""

    def close(self) -> None:
        """Wait for the requests that are there to end; called outside the event loop."""
        while self._open:
            time.sleep(_PAUSE_S)

    async def _answer(self, request: _Request) -> Reply:
        self._open.add(request)
        attempt = asyncio.ensure_future(self._attempts(request))
        try:
            while not attempt.done() and not request.cancel.cancelled:
                await asyncio.wait([attempt], timeout=_PAUSE_S)
            if not attempt.done():
                attempt.cancel()
                raise _unavailable("the request was cancelled.", "cancelled")
            return attempt.result()
        finally:
            attempt.cancel()
            self._open.discard(request)

    async def _attempts(self, request: _Request) -> Reply:
        while True:
            try:
                return await self._attempt(request)
            except _LOST as error:
                request.losses += request.taken
                log(
                    "replica lost",
                    replica=request.session.replica,
                    error=type(error).__name__,
                    taken=request.taken,
                    losses=request.losses,
                )
                if request.said:
                    raise _unavailable("the replica that was answering ended; ask again.", "replica_lost") from None
                if request.losses >= _TRIES or request.left_s <= 0:
                    raise _unavailable(
                        f"{request.losses} replicas ended while they had this request; it is not tried again.",
                        "replica_lost",
                    ) from None
            await asyncio.sleep(_PAUSE_S)  # for the router to hear of it

    async def _attempt(self, request: _Request) -> Reply:
        request.taken, request.session.replica = False, ""
        left_s = request.left_s
        items = self._replicas.answer.remote(
            request.key, {**request.arguments, "deadline_ms": left_s * 1e3}, request.on_text is not None
        )
        try:
            return await self._receive(request, items, left_s)
        finally:
            items.cancel()  # changes nothing about an answer that has ended

    async def _receive(self, request: _Request, items: AsyncIterator[Item], left_s: float) -> Reply:
        try:
            first = await asyncio.wait_for(anext(items), left_s)
        except asyncio.TimeoutError:
            raise _unavailable("no replica was free in time; try again later.", "no_replica") from None
        request.taken = True
        if isinstance(first, Taken):
            request.session.replica = first.replica
        async for item in items:
            if isinstance(item, str):
                request.said = True
                listener = request.on_thinking if isinstance(item, Thought) else request.on_text
                if listener is not None:
                    listener(item)
            elif isinstance(item, CallPiece):
                request.said = True
                if request.on_call is not None:
                    request.on_call(item)
            elif isinstance(item, list):
                request.said = True
                if request.on_logprobs is not None:
                    request.on_logprobs(item)
            elif isinstance(item, Reply):
                return item
            elif isinstance(item, QwenVLError):
                raise item
        raise _unavailable("the replica ended its answer too early; ask again.", "replica_lost")


def _unavailable(message: str, code: str) -> ApiError:
    return ApiError(503, message, kind=SERVER, code=code, headers={"Retry-After": "1"})
