"""Forms of answers, tried in processes of limited memory and computing time before the engine compiles them, and
completed there where an answer was cut."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sys
import time
from collections import OrderedDict
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

from qwenvl_edge.constraints import trial
from qwenvl_edge.constraints.constraint import Constraint
from qwenvl_edge.constraints.ending import Ending
from qwenvl_edge.constraints.matcher import mistake, written_grammar
from qwenvl_edge.machine.priority import computed_s, make_nice
from qwenvl_edge.server.errors import SERVER, ApiError
from qwenvl_edge.server.forms import too_complex
from qwenvl_edge.server.meter import current

_PROCESSES = 2
_SHORT_S = 0.1  # of computing; what takes longer leaves its place to the next form
_MOST_LONG = 2  # trials that take longer, at a lower priority
_LONG_NICENESS = 10
_MEGABYTES = 512
_COMPUTING_S = 1.0  # of a form; the engine then needs about as long
_WALL_S = 30.0  # the same on a machine with other work
_START_S = 20.0
_END_S = 2.0
_REMEMBERED = 1024  # verdicts


class Trials:
    """Tries forms, a few at a time; verdicts are remembered, so a form that comes again costs nothing.

    Nearly every form takes milliseconds. One that does not goes on at a lower priority and holds up no other form;
    where there are _MOST_LONG of those already, its client is asked to come again. A trial ends at its limits, or when
    the task that waits for it is cancelled, because its client left.
    """

    def __init__(
        self, *, processes: int = _PROCESSES, megabytes: int = _MEGABYTES, seconds: float = _COMPUTING_S
    ) -> None:
        self._free = asyncio.Semaphore(processes)
        self._long = 0
        self._idle: list[asyncio.subprocess.Process] = []
        self._command = [sys.executable, trial.__file__, str(megabytes), str(seconds)]
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()

    async def check(self, form: Constraint, where: str) -> None:
        """Try a form of the field `where`.

        Raises:
            ApiError: it is malformed, or beyond the limits, or no process can be started for it.
            QwenVLError: llguidance is not installed.
        """
        key = hashlib.sha256(f"{form.kind} {form.source}".encode(errors="surrogatepass")).digest()
        if key not in self._verdicts:
            await self._free.acquire()
            with contextlib.ExitStack() as place:
                place.callback(self._free.release)
                if key not in self._verdicts:
                    self._remember(key, await self._try(form, place))
        self._verdicts.move_to_end(key)
        if (verdict := self._verdicts[key]) is None:
            return
        if not verdict:
            raise too_complex(where)
        raise ApiError(400, f"the form of the answer is malformed: {verdict}.", param=where)

    async def find_end(self, ending: Ending) -> list[int]:
        """Return few ids that complete a form that was cut; none if no end was found within the limits."""
        await self._free.acquire()
        with contextlib.ExitStack() as place:
            place.callback(self._free.release)
            with contextlib.suppress(ApiError):  # the places are taken: the form is left open
                answer = await self._answer({"ending": ending.as_record()}, place)
                return [] if answer is None else list(answer["ids"])
        return []

    def seek(self, ending: Ending, loop: asyncio.AbstractEventLoop) -> list[int]:
        """Do the same from another thread than the loop's."""
        with contextlib.suppress(RuntimeError, FutureTimeout, CancelledError):  # RuntimeError: the loop has ended
            return asyncio.run_coroutine_threadsafe(self.find_end(ending), loop).result(_WALL_S + _START_S)
        return []

    async def close(self) -> None:
        """End the processes."""
        while self._idle:
            await _end(self._idle.pop())

    def _remember(self, key: bytes, verdict: str | None) -> None:
        self._verdicts[key] = verdict
        if len(self._verdicts) > _REMEMBERED:
            self._verdicts.popitem(last=False)

    async def _try(self, form: Constraint, place: contextlib.ExitStack) -> str | None:
        """Return None if a form compiles, "" if it is beyond the limits, else its mistake.

        place: the one that it takes; a long trial leaves it.
        """
        try:
            grammar = await asyncio.to_thread(written_grammar, form)  # some are translated first, which takes a while
        except ValueError as error:
            return mistake(error)
        answer = await self._answer({"grammar": grammar}, place)
        if answer is None:
            return ""
        said = answer["error"]
        return None if said is None else mistake(said)

    async def _answer(self, question: dict[str, Any], place: contextlib.ExitStack) -> dict[str, Any] | None:
        """Return a process's answer; None if it reached a limit. place: as in _try. Raises ApiError."""
        process = self._idle.pop() if self._idle else await self._start()
        asking = asyncio.ensure_future(_ask(process, question))
        try:
            with current().running():
                is_short = await _is_short(process.pid, asking)
                if not is_short:
                    self._go_on_as_long(process, place)
                answer = await asyncio.wait_for(asking, _WALL_S)
        except asyncio.TimeoutError:  # the machine has other work: no verdict
            await _end(process)
            raise not_now() from None
        except BaseException:  # cancelled, or one too many
            asking.cancel()
            await _end(process)
            raise
        if answer is None:  # it reached a limit, and has ended or is about to
            await _end(process, kill=False)
            return None
        if is_short:
            self._idle.append(process)
        else:  # its priority cannot be raised again
            await _end(process)
        return answer

    def _go_on_as_long(self, process: asyncio.subprocess.Process, place: contextlib.ExitStack) -> None:
        """Let a trial go on at a lower priority, in one of the places for that. Raises ApiError: there is none."""
        if self._long >= _MOST_LONG:
            raise not_now()
        make_nice(process.pid, _LONG_NICENESS)
        place.close()
        self._long += 1
        place.callback(self._leave)

    def _leave(self) -> None:
        self._long -= 1

    async def _start(self) -> asyncio.subprocess.Process:
        process = None
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                cwd=Path(trial.__file__).parent,
            )
            ready = await asyncio.wait_for(_ask(process), _START_S)
        except (OSError, asyncio.TimeoutError):
            ready = None
        except BaseException:
            if process is not None:
                await _end(process)
            raise
        if process is None or ready is None:
            if process is not None:
                await _end(process)
            raise not_now()
        return process


async def _is_short(process: int, asking: asyncio.Future[Any]) -> bool:
    """Wait for an answer, or until a process has computed for longer than nearly every form takes; tell which."""
    before = computed_s(process)
    ends = time.monotonic() + _WALL_S
    while not (await asyncio.wait({asking}, timeout=_SHORT_S))[0]:
        now = computed_s(process)
        if before is None or now is None or now - before > _SHORT_S or time.monotonic() > ends:
            return False
    return True


async def _ask(process: asyncio.subprocess.Process, question: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Send a line and return the answer; None if the process ended instead."""
    assert process.stdin is not None and process.stdout is not None
    try:
        if question is not None:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            await process.stdin.drain()
        line = await process.stdout.readline()
    except (ConnectionError, ValueError):  # ValueError: a line longer than asyncio's limit
        return None
    answer: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
    return answer


async def _end(process: asyncio.subprocess.Process, *, kill: bool = True) -> None:
    """End a process; kill: it still runs. (Killing one that has ended would take its end from asyncio's watcher.)"""
    if process.stdin is not None:
        process.stdin.close()
    if kill:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    try:
        await asyncio.wait_for(asyncio.shield(process.wait()), _END_S)
    except asyncio.TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


def not_now() -> ApiError:
    """Return the error where no process is free for a form."""
    return ApiError(
        503,
        "the server cannot check the form of the answer now; try again.",
        kind=SERVER,
        code="busy",
        headers={"Retry-After": "2"},
    )
