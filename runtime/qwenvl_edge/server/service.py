"""Between HTTP and the batcher: the number of requests taken in, and answers on their way to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from qwenvl_edge.families.tools import CallPiece
from qwenvl_edge.inputs.cancel import CancelToken
from qwenvl_edge.replies.reply import Reply, TokenLogprob
from qwenvl_edge.server.answering import Answering
from qwenvl_edge.server.errors import overloaded
from qwenvl_edge.server.metrics import Metrics
from qwenvl_edge.server.settings import ServerLimits

_AVERAGE_RATE = 0.1
_RESERVED = 4  # one place of so many is left to others
_OF_LATE_S = 60.0
_MOST_CLIENTS = 256


class Thought(str):
    """A piece of the reasoning before an answer."""

    __slots__ = ()


Item = str | CallPiece | Sequence[TokenLogprob] | Future[Reply]
"""A piece of text, a Thought, a piece of a call, log-probabilities, or at last the reply."""


class Piece(NamedTuple):
    """Piece of an answer, after the piece before: text, reasoning before it, calls after it, their probabilities."""

    text: str
    thought: str
    calls: list[CallPiece]
    logprobs: list[TokenLogprob]


class Outbox:
    """Brings items of the batcher's thread to the event loop, with one wake-up for all that came meanwhile."""

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


class StreamedAnswer:
    """An answer under way: iterate for its pieces, then take `reply`."""

    def __init__(self, items: asyncio.Queue[Item]) -> None:
        self._items = items
        self._ended: Future[Reply] | None = None
        self._text = self._thought = ""
        self._calls: list[CallPiece] = []
        self._logprobs: list[TokenLogprob] = []

    async def pieces(self) -> AsyncIterator[Piece]:
        """Iterate over what comes; all that is there at one time is one piece."""
        while self._ended is None:
            self._take(await self._items.get())
            while self._ended is None and not self._items.empty():
                self._take(self._items.get_nowait())
            if self._text or self._thought or self._calls or self._logprobs:
                piece = Piece(self._text, self._thought, self._calls, self._logprobs)
                self._text, self._thought, self._calls, self._logprobs = "", "", [], []
                yield piece

    async def reply(self) -> Reply:
        """Return the whole answer, or raise the error that ended it."""
        async for _ in self.pieces():
            pass
        assert self._ended is not None
        return self._ended.result()

    def _take(self, item: Item) -> None:
        if isinstance(item, Thought):
            self._thought += item
        elif isinstance(item, str):
            self._text += item
        elif isinstance(item, CallPiece):
            self._calls.append(item)
        elif isinstance(item, Future):
            self._ended = item
        else:
            self._logprobs += item


class Service:
    """Admits requests and has them answered.

    ready: whether requests are taken. Tokens of admitted requests are kept, so that all can be cancelled. A client may
    have all places while no other one asks; where others do, it leaves a quarter of them.
    """

    def __init__(self, batcher: Answering, limits: ServerLimits, metrics: Metrics) -> None:
        self._batcher = batcher
        self._limits = limits
        self._metrics = metrics
        self._outbox = Outbox(asyncio.get_running_loop())
        self._admitted: dict[CancelToken, str] = {}
        self._asked: OrderedDict[str, float] = OrderedDict()
        self._average_s = 1.0
        self.ready = True

    def check_room(self, client: str) -> None:
        """Check that there is a place for a client. Raises ApiError: 429, there is none, or others need it."""
        places = self._limits.rows + self._limits.queue
        most = places - places // _RESERVED if self._others(client) else places
        if len(self._admitted) >= places or list(self._admitted.values()).count(client) >= most:
            raise overloaded(max(1, math.ceil(self._average_s * places / self._limits.rows)))

    @contextlib.contextmanager
    def admit(self, client: str) -> Iterator[CancelToken]:
        """Take a client's request in until the `with` block ends; yield the token that cancels its answer.

        Raises:
            ApiError: as check_room.
        """
        self.check_room(client)
        token = CancelToken()
        self._admitted[token] = client
        started = asyncio.get_running_loop().time()
        try:
            yield token
        finally:
            token.cancel()
            self._admitted.pop(token, None)
            took = asyncio.get_running_loop().time() - started
            self._average_s += _AVERAGE_RATE * (
                took / max(1.0, len(self._admitted) / self._limits.rows) - self._average_s
            )

    def charge(self, client: str, seconds: float) -> None:
        """Count work for a client, which is answered the later for it."""
        self._batcher.charge(client, seconds)

    async def submit(self, arguments: dict[str, Any], token: CancelToken, *, stream: bool) -> StreamedAnswer:
        """Queue a request; its errors are those of Batcher.submit."""
        items: asyncio.Queue[Item] = asyncio.Queue()
        put = (lambda item: self._outbox.put(items, item)) if stream else None
        think = (lambda thought: self._outbox.put(items, Thought(thought))) if stream else None
        callbacks = {"on_text": put, "on_logprobs": put, "on_thinking": think, "on_call": put}
        future = await asyncio.to_thread(self._batcher.submit, **arguments, cancel=token, **callbacks)
        future.add_done_callback(self._count)
        future.add_done_callback(lambda ended: self._outbox.put(items, ended))
        return StreamedAnswer(items)

    async def close(self) -> None:
        """Take no more requests, cancel those that still run, and wait for their end."""
        self.ready = False
        for token in self._admitted:
            token.cancel()
        await asyncio.to_thread(self._batcher.close)

    def _others(self, client: str) -> bool:
        """Note that a client asks, and tell whether another one has asked of late."""
        now = asyncio.get_running_loop().time()
        self._asked[client] = now
        self._asked.move_to_end(client)
        while next(iter(self._asked.values())) < now - _OF_LATE_S or len(self._asked) > _MOST_CLIENTS:
            self._asked.popitem(last=False)
        return len(self._asked) > 1

    def _count(self, ended: Future[Reply]) -> None:
        if ended.exception() is None:
            self._metrics.answered(ended.result())
