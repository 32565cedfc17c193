"""Threads of a server, by what they do: what is slow at one thing holds up nothing else."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, ParamSpec, TypeAlias, TypeVar

from qwenvl_edge.server.meter import Meter, current

Decoding: TypeAlias = Literal["decode", "processes", "clips"]
_P = ParamSpec("_P")
_T = TypeVar("_T")

LARGE_PIXELS = 4_000_000
_POOLS = {"parse": 4, "decode": 2, "processes": 2, "clips": 2, "fetch": 16}  # threads


class Workers:
    """Pools of threads.

    parse: requests read and handed on. decode: pictures, which take memory. processes, clips: waits for the processes
    that decode large pictures, and clips. fetch: pictures from other hosts.
    """

    def __init__(self) -> None:
        self._pools = {name: ThreadPoolExecutor(count, f"qwenvl-{name}") for name, count in _POOLS.items()}
        self._queues = {name: _Queue(2) for name in ("decode", "processes", "clips")}

    async def parse(self, work: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs) -> _T:
        """Do something with a request."""
        return await self._run("parse", lambda: work(*arguments, **options))

    async def decode(self, pool: Decoding, size: int, work: Callable[[], _T]) -> _T:
        """Decode a picture or clip of `size` pixels; small ones go before large ones that wait."""
        await self._queues[pool].enter(size)
        try:
            return await self._run(pool, work)
        finally:
            self._queues[pool].leave()

    async def fetch(self, work: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs) -> _T:
        """Fetch a picture."""
        return await self._run("fetch", lambda: work(*arguments, **options))

    def close(self) -> None:
        """Take no more work; what has begun ends on its own."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, pool: str, work: Callable[[], _T]) -> _T:
        meter = current() if pool != "fetch" else Meter()  # another host's time is not the client's

        def timed() -> _T:
            with meter.running():
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._pools[pool], timed)


class _Queue:
    """Lets `places` tasks in at a time, of those that wait the one of the smallest size first."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._tie = itertools.count()

    async def enter(self, size: int) -> None:
        """Wait for a place; one that comes to a task that was cancelled is passed on."""
        if self._free:
            self._free -= 1
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (size, next(self._tie), mine))
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        """Give a place back."""
        while self._waiting:
            _, _, waiting = heapq.heappop(self._waiting)
            if not waiting.done():
                waiting.set_result(None)
                return
        self._free += 1
