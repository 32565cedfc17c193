"""Batcher: answers many callers at once on one engine, in a thread of its own that drives a scheduler."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qwenvl_edge.constraints.ending import Seek
from qwenvl_edge.decoding.pipeline import Answerer
from qwenvl_edge.decoding.rows import Job
from qwenvl_edge.decoding.scheduler import Scheduler
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.families.tools import CallPiece
from qwenvl_edge.inputs.clips import Videos
from qwenvl_edge.inputs.options import check, function, optional, text
from qwenvl_edge.inputs.prompt import Message
from qwenvl_edge.inputs.request import RequestBuilder
from qwenvl_edge.machine.forks import NotPicklable, Owner, keep
from qwenvl_edge.replies.reply import Reply, TokenLogprob

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from qwenvl_edge.inputs.options import Overrides

_CLOSING = 4  # threads that complete forms, or wait for those who do


class Batcher(NotPicklable):
    """Answers many callers at once on one engine; from QwenVLEngine.batcher. Safe to share between threads.

    Each round computes one chunk of the prompt that is being computed and one token of every answer, so that a long
    prompt holds up nobody for longer than a chunk takes.
    """

    def __init__(self, requests: RequestBuilder, answerer: Answerer, *, rows: int) -> None:
        self._process = Owner("the batcher")
        self._requests = requests
        self._answerer = answerer
        self._closing = ThreadPoolExecutor(_CLOSING, thread_name_prefix="qwenvl-closing")
        self._scheduler = Scheduler(answerer, rows=rows, closing=self._closing)
        self._changed = threading.Condition()
        self._closed = False
        keep(self)
        self._thread = threading.Thread(target=self._run, name="qwenvl-batcher", daemon=True)
        self._thread.start()

    @property
    def rows(self) -> int:
        """The most answers at once."""
        return self._scheduler.rows

    @property
    def waiting(self) -> int:
        """Number of requests whose prompt is not begun."""
        return len(self._scheduler.waiting)

    @property
    def running(self) -> int:
        """Number of answers begun and not ended, `rows` at most."""
        return self._scheduler.running

    @property
    def closed(self) -> bool:
        """True if no more requests are taken, because it was closed or has failed."""
        return self._closed

    def submit(
        self,
        message: Message,
        *,
        images: Iterable[Any] = (),
        video: Videos = None,
        history: Iterable[Any] | None = (),
        system: str | None = None,
        raw: bool = False,
        on_text: Callable[[str], None] | None = None,
        on_logprobs: Callable[[Sequence[TokenLogprob]], None] | None = None,
        on_thinking: Callable[[str], None] | None = None,
        on_call: Callable[[CallPiece], None] | None = None,
        client: str = "",
        **overrides: Unpack[Overrides],
    ) -> Future[Reply]:
        """Answer a message when its turn comes. Arguments are those of QwenVLEngine.chat; `cancel` ends it early.

        Args:
            raw: continue the message without a chat template, as QwenVLEngine.complete does; history and system have no
                place then.
            on_text: is called with each piece of text, in another thread; it must not block.
            on_logprobs: the same for log-probabilities, if the option `logprobs` asks for them: called with those that
                came since its last call, before on_text.
            on_thinking: the same for the reasoning before the answer, in models that reason.
            on_call: the same for pieces of the calls of tools, called after on_text.
            client: who asks, by any name. The next request is one of the client for whom least was computed in the last
                seconds, so that one client's many requests do not keep others waiting.

        Returns:
            The reply to come, or its error: a BackendError, or one that a callback raised. Its own cancel() does
            nothing.

        Raises:
            QwenVLError: the batcher is closed, or an error that chat raises before it computes.
        """
        self._process.check()
        callbacks = {"on_text": on_text, "on_logprobs": on_logprobs, "on_thinking": on_thinking, "on_call": on_call}
        for name, callback in callbacks.items():
            check(name, callback, optional(function()))
        check("client", client, text())
        if raw:
            request = self._requests.complete(message, images, overrides, video)
        else:
            request = self._requests.chat(message, images, history, system, overrides, video)
        job = Job(self._answerer.work(request, request.control()), on_text, on_logprobs, on_thinking, on_call, client)
        with self._changed:
            if self._closed:
                raise QwenVLError("the batcher is closed; make a new one.")
            self._scheduler.put(job)
            self._changed.notify()
        return job.reply

    def charge(self, client: str, seconds: float) -> None:
        """Count work that was done for a client elsewhere, such as decoding its pictures, as if computed here."""
        self._scheduler.charge(client, seconds)

    def seek_by(self, seek: Seek) -> None:
        """Have the ends of forms that were cut found by `seek`, called in other threads, instead of in this process."""
        self._scheduler.seek = seek

    def close(self) -> None:
        """Take no more requests, finish those that are there, and end; a forked child's copy does nothing."""
        if not self._process.is_here:
            return
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._closing.shutdown()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        scheduler = self._scheduler
        try:
            while self._wait():
                with self._answerer.turns.take(self._nothing_left) as granted:
                    while granted and (scheduler.waiting or scheduler.running):
                        scheduler.drop_ended()
                        scheduler.prefill()
                        scheduler.step()
        except BaseException as error:  # nobody may be left waiting
            with self._changed:
                self._closed = True
            scheduler.fail(error)
            raise

    def _wait(self) -> bool:
        """Wait for a request; return False once there will be none."""
        with self._changed:
            while not self._scheduler.waiting and not self._closed:
                self._changed.wait()
            return bool(self._scheduler.waiting)

    def _nothing_left(self) -> bool:
        """Answer the waiting requests that were ended from outside; return whether none is left."""
        self._scheduler.drop_ended()
        return not self._scheduler.waiting
