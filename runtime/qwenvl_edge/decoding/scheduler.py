"""Continuous batching: an answer joins the running batch once its prompt is computed and leaves it when it ends.

    submit -> queue -> prefill, a chunk at a time -> row of a batch -> reply
                          |                            |
                          +---- in turns: one chunk ---+--- one token of every row

Prompts are computed one after another at batch 1 (what they share only once), between the tokens of the answers that
run, so that a long prompt holds up nobody for longer than a chunk takes. Every answer is the one that the engine would
give alone; look-up decoding is not used.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qwenvl_edge.decoding.batch_decoder import BatchDecoder, FloatArray
from qwenvl_edge.decoding.pipeline import Answerer, Work, finish
from qwenvl_edge.decoding.sequence_decoder import SequenceDecoder
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.inputs.messages import Message
from qwenvl_edge.inputs.request import RequestBuilder
from qwenvl_edge.replies.reply import Reply

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from qwenvl_edge.inputs.options import Overrides

_DONE = object()
_LEAST_CAPACITY = 512  # tokens of a row


@dataclass(eq=False)
class _Job:
    """A request on its way to a reply."""

    work: Work
    reply: Future[Reply]
    on_text: Callable[[str], None] | None

    def say(self, piece: str) -> None:
        """Pass on a piece of text."""
        if piece and self.on_text is not None:
            self.on_text(piece)


class _Rows:
    """The jobs of one running batch, all of one dynamic-NTK factor: row number -> job."""

    def __init__(self, decoder: BatchDecoder, size: int) -> None:
        self.decoder = decoder
        self._size = size
        self._jobs: dict[int, _Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def free(self) -> int:
        """The first free row."""
        return next(row for row in range(self._size) if row not in self._jobs)

    def put(self, row: int, job: _Job) -> None:
        """Note whose the row is."""
        self._jobs[row] = job

    def step(self) -> list[tuple[_Job, Exception | None]]:
        """Compute a token of every row; return the jobs that ended, whose rows are free again, or failed, and why."""
        clock = time.perf_counter()
        logits = self.decoder.step()
        ended = []
        for row, job in list(self._jobs.items()):
            error = self._take(row, job, logits[row], clock)
            if error is not None or job.work.ended:
                self.decoder.end(row)
                ended.append((self._jobs.pop(row), error))
        return ended

    def _take(self, row: int, job: _Job, logits: FloatArray, clock: float) -> Exception | None:
        """Take the next token of a row; return what went wrong, which is no other row's business."""
        run = job.work.run
        assert run is not None  # a job without a generation ends before it gets a row
        try:
            if self.decoder.caught_up(row):
                run.take(logits, clock)
                job.say(run.piece)
        except Exception as error:
            return error
        return None

    def close_gaps(self) -> None:
        """Move the last rows into free ones before them, so that none is computed for nothing."""
        while self._jobs and (last := max(self._jobs)) >= len(self._jobs):
            target = self.free()
            if not self.decoder.move(last, target):
                return
            self._jobs[target] = self._jobs.pop(last)

    def grow(self, decoder: BatchDecoder) -> None:
        """Go on in a larger batch."""
        decoder.take_over(self.decoder)
        self.decoder = decoder

    def fail(self) -> list[_Job]:
        """Give up; return the jobs that were there."""
        jobs, self._jobs = list(self._jobs.values()), {}
        return jobs


class Batcher:
    """Answers many callers at once on one engine; from QwenVLEngine.batcher. Safe to share between threads.

    waiting: requests whose prompt is not begun. running: those begun and not ended, `rows` at most.
    closed: whether it takes no more, because it was closed or has failed.
    """

    def __init__(self, requests: RequestBuilder, answerer: Answerer, decoder: SequenceDecoder, *, rows: int) -> None:
        self.rows = rows
        self._requests = requests
        self._answerer = answerer
        self._decoder = decoder
        self._batches: dict[float, _Rows] = {}
        self._waiting: deque[_Job] = deque()
        self._starting: tuple[_Job, Iterator[None]] | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="qwenvl-batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many requests are not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many are begun and not ended."""
        return sum(map(len, list(self._batches.values()))) + (self._starting is not None)

    @property
    def closed(self) -> bool:
        """Whether no more requests are taken."""
        return self._closed

    def submit(
        self,
        message: Message,
        *,
        images: Iterable[Any] = (),
        history: Iterable[Any] = (),
        system: str | None = None,
        on_text: Callable[[str], None] | None = None,
        **overrides: Unpack[Overrides],
    ) -> Future[Reply]:
        """Answer a message when its turn comes. Arguments are those of QwenVLEngine.chat; `cancel` ends it early.

        Args:
            on_text: is called with each piece of text, in another thread; it must not block.

        Returns:
            The reply to come, or what went wrong: a BackendError, or what on_text raised. Its own cancel() does
            nothing.

        Raises:
            QwenVLError: the batcher is closed, and what chat raises before it computes.
        """
        request = self._requests.chat(message, images, history, system, overrides)
        job = _Job(self._answerer.work(request, request.control()), Future(), on_text)
        job.reply.set_running_or_notify_cancel()  # from here on only `cancel` ends it
        with self._changed:
            if self._closed:
                raise QwenVLError("the batcher is closed; make a new one.")
            self._waiting.append(job)
            self._changed.notify()
        return job.reply

    def close(self) -> None:
        """Take no more requests, finish those that are there, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while self._wait():
                with self._answerer.turns.take(self._nothing_left) as granted:
                    while granted and (self._waiting or self.running):
                        self._round()
        except BaseException as error:  # nobody may be left waiting
            self._fail_all(error)
            raise

    def _wait(self) -> bool:
        """Wait for a request; return False once there will be none."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            return bool(self._waiting)

    def _nothing_left(self) -> bool:
        """Answer the waiting requests that were ended from outside; return whether none is left."""
        with self._changed:
            ended = [job for job in self._waiting if job.work.control.reason is not None]
            for job in ended:
                self._waiting.remove(job)
        for job in ended:
            self._end(job)
        return not self._waiting

    def _round(self) -> None:
        """One chunk of the prompt that is being computed, and one token of every answer."""
        self._nothing_left()
        if self._starting is None and self._waiting and self.running < self.rows:
            job = self._waiting.popleft()
            self._starting = job, self._answerer.starting(job.work, None)
        if self._starting is not None:
            self._go_on(*self._starting)
        for alpha, rows in list(self._batches.items()):
            if not self._waiting:
                rows.close_gaps()
            self._step(alpha, rows)

    def _go_on(self, job: _Job, starting: Iterator[None]) -> None:
        """Compute the next chunk of a prompt; behind the last one the answer gets a row, unless it has ended."""
        try:
            if next(starting, _DONE) is not _DONE:
                return
            if job.work.run is not None:
                job.say(job.work.run.piece)
            if job.work.ended:
                self._end(job)
            else:
                self._join(job)
        except Exception as error:
            job.reply.set_exception(error)
        self._starting = None

    def _join(self, job: _Job) -> None:
        length = len(job.work.request.prompt.ids)
        alpha = self._decoder.alpha_for(length)
        needed = min(length + job.work.request.options.max_new_tokens, self._decoder.capacity)
        rows = self._batches.get(alpha)
        if rows is None:
            rows = self._batches[alpha] = _Rows(self._reserve(length, needed), self.rows)
        elif rows.decoder.capacity < needed:
            rows.grow(self._reserve(length, needed))
        row = rows.free()
        self._decoder.move_to(rows.decoder, row)
        rows.put(row, job)

    def _reserve(self, prompt_length: int, needed: int) -> BatchDecoder:
        """A batch whose rows hold `needed` tokens, in steps of a factor of two: a page is memory once it is touched."""
        capacity = _LEAST_CAPACITY if self._decoder.can_grow else self._decoder.capacity
        while capacity < needed:
            capacity *= 2
        return self._decoder.batch([(prompt_length, capacity - prompt_length)] * self.rows)

    def _step(self, alpha: float, rows: _Rows) -> None:
        if not rows:
            if len(self._batches) > 1:  # keep the memory of one
                del self._batches[alpha]
            return
        try:
            ended = rows.step()
        except Exception as error:
            del self._batches[alpha]
            for job in rows.fail():
                job.reply.set_exception(error)
            return
        for job, failure in ended:
            if failure is None:
                self._end(job)
            else:
                job.reply.set_exception(failure)

    def _fail_all(self, error: BaseException) -> None:
        jobs = [job for rows in self._batches.values() for job in rows.fail()]
        jobs += [self._starting[0]] if self._starting else []
        with self._changed:
            self._closed = True
            jobs += self._waiting
        for job in jobs:
            if not job.reply.done():
                job.reply.set_exception(error)

    def _end(self, job: _Job) -> None:
        try:
            job.say(finish(job.work))
            reply = self._answerer.reply(job.work)
        except Exception as error:
            job.reply.set_exception(error)
        else:
            job.reply.set_result(reply)
