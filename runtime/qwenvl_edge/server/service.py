"""Between HTTP and the batcher: how many may come in, and answers that cross from its thread to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from typing import Any, Protocol

from qwenvl_edge.inputs.cancel import CancelToken
from qwenvl_edge.replies.reply import Reply
from qwenvl_edge.server.errors import overloaded
from qwenvl_edge.server.metrics import Metrics
from qwenvl_edge.server.settings import Limits

_AVERAGE_RATE = 0.1


class Answering(Protocol):
    """Who computes the answers: a Batcher, or what stands for several of them (fleet.dispatch)."""

    @property
    def waiting(self) -> int:
        """Requests that are not begun."""

    @property
    def running(self) -> int:
        """Answers begun and not ended."""

    @property
    def submit(self) -> Callable[..., Future[Reply]]:
        """See Batcher.submit."""

    def close(self) -> None:
        """Take no more requests, finish those that are there, and end."""


class Outbox:
    """Brings what the batcher's thread says to the event loop, with one wake-up for all that came meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[tuple[asyncio.Queue[Any], Any]] = deque()
        self._woken = False

    def put(self, queue: asyncio.Queue[Any], item: Any) -> None:
        """Put an item into a queue of the loop's; called in another thread."""
        self._items.append((queue, item))
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # before the queue is emptied: what comes from now on wakes the loop again
        while self._items:
            queue, item = self._items.popleft()
            queue.put_nowait(item)


class Answer:
    """An answer under way: iterate for its text, then take `reply`."""

    def __init__(self, items: asyncio.Queue[str | Future[Reply]]) -> None:
        self._items = items
        self._ended: Future[Reply] | None = None

    async def pieces(self) -> AsyncIterator[str]:
        """The text as it comes; what came at once is one piece."""
        while self._ended is None:
            text = self._take(await self._items.get())
            while self._ended is None and not self._items.empty():
                text += self._take(self._items.get_nowait())
            if text:
                yield text

    async def reply(self) -> Reply:
        """The whole answer; raises what its computation raised."""
        async for _ in self.pieces():
            pass
        assert self._ended is not None
        return self._ended.result()

    def _take(self, item: str | Future[Reply]) -> str:
        if isinstance(item, str):
            return item
        self._ended = item
        return ""


class Service:
    """Admits requests and has them answered.

    ready: whether requests are taken. Tokens of admitted requests are kept, so that all can be cancelled.
    """

    def __init__(self, batcher: Answering, limits: Limits, metrics: Metrics) -> None:
        self._batcher = batcher
        self._limits = limits
        self._metrics = metrics
        self._outbox = Outbox(asyncio.get_running_loop())
        self._admitted: set[CancelToken] = set()
        self._average_s = 1.0
        self.ready = True

    @contextlib.contextmanager
    def admit(self) -> Iterator[CancelToken]:
        """Take a request in until the `with` block ends; yield what cancels its answer.

        Raises:
            ApiError: 429, the queue is full.
        """
        places = self._limits.rows + self._limits.queue
        if len(self._admitted) >= places:
            raise overloaded(max(1, math.ceil(self._average_s * places / self._limits.rows)))
        token = CancelToken()
        self._admitted.add(token)
        started = asyncio.get_running_loop().time()
        try:
            yield token
        finally:
            token.cancel()
            self._admitted.discard(token)
            took = asyncio.get_running_loop().time() - started
            self._average_s += _AVERAGE_RATE * (
                took / max(1.0, len(self._admitted) / self._limits.rows) - self._average_s
            )

    async def submit(self, arguments: dict[str, Any], token: CancelToken, *, stream: bool) -> Answer:
        """Queue a request; raises what Batcher.submit raises."""
        items: asyncio.Queue[str | Future[Reply]] = asyncio.Queue()
        on_text = (lambda piece: self._outbox.put(items, piece)) if stream else None
        future = await asyncio.to_thread(self._batcher.submit, **arguments, cancel=token, on_text=on_text)
        future.add_done_callback(self._count)
        future.add_done_callback(lambda ended: self._outbox.put(items, ended))
        return Answer(items)

    async def close(self) -> None:
        """Take nothing more, cancel what is still running, and wait for its end."""
        self.ready = False
        for token in self._admitted:
            token.cancel()
        await asyncio.to_thread(self._batcher.close)

    def _count(self, ended: Future[Reply]) -> None:
        if ended.exception() is None:
            self._metrics.answered(ended.result())
