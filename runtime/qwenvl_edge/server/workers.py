"""Threads of a server, by what they do: what is slow at one thing holds up nothing else."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

_DECODERS = 2


class Workers:
    """parse: requests read and handed on. decode: pictures, which take memory. fetch: pictures from other hosts."""

    def __init__(self) -> None:
        self._pools = {
            name: ThreadPoolExecutor(count, thread_name_prefix=f"qwenvl-{name}")
            for name, count in (("parse", 4), ("decode", _DECODERS), ("fetch", 16))
        }
        self._decoding = 0
        self._pictures: list[tuple[int, int, asyncio.Future[None]]] = []
        self._tie = itertools.count()

    async def parse(self, work: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs) -> _T:
        """Do something with a request."""
        return await self._run("parse", lambda: work(*arguments, **options))

    async def decode(self, size: int, work: Callable[[], _T]) -> _T:
        """Decode a picture of `size` pixels; small ones go before large ones that wait."""
        if self._decoding < _DECODERS:
            self._decoding += 1
        else:
            mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._pictures, (size, next(self._tie), mine))
            await _turn(mine, self._next_picture)
        try:
            return await self._run("decode", work)
        finally:
            self._next_picture()

    async def fetch(self, work: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs) -> _T:
        """Fetch a picture."""
        return await self._run("fetch", lambda: work(*arguments, **options))

    def _next_picture(self) -> None:
        while self._pictures:
            _, _, waiting = heapq.heappop(self._pictures)
            if not waiting.done():
                waiting.set_result(None)
                return
        self._decoding -= 1

    def close(self) -> None:
        """Take no more work; what has begun ends on its own."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, pool: str, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pools[pool], work)


async def _turn(mine: asyncio.Future[None], pass_on: Callable[[], None]) -> None:
    """Wait for a turn; one that comes to a task that was cancelled is passed on."""
    try:
        await mine
    except asyncio.CancelledError:
        if mine.done() and not mine.cancelled():
            pass_on()
        raise
