"""Continuous batching: an answer joins the running batch once its prompt is computed and leaves it when it ends.

    put -> waiting -> prefill, a chunk at a time -> row of a batch -> reply

Prompts are computed one after another at batch 1, what they share only once; then each step computes one token of every
row. Every answer is the one that the engine would give alone; look-up decoding is not used. The scheduler has no
thread: whoever has requests drives it, `answer_all` in its caller's thread, a Batcher in one of its own. A form that
was cut may be completed in another thread: the search for its end takes longer than many tokens of other answers.

Jobs of one client are begun in order of arrival. Among clients the one goes first for whom least was computed of late
(`ledger.py`), also before a prompt that is half computed: what is computed of that stays in the caches. While it has
an answer under way, prompts of those who had more get half of the time at most.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor

from qwenvl_edge.constraints.completion import restless
from qwenvl_edge.constraints.ending import Ending, Seek, find_end
from qwenvl_edge.decoding.batch_decoder import BatchDecoder, can_grow
from qwenvl_edge.decoding.ledger import Ledger
from qwenvl_edge.decoding.pipeline import Answerer
from qwenvl_edge.decoding.rows import Job, Rows
from qwenvl_edge.inputs.request import Control, Request
from qwenvl_edge.replies.reply import Reply

_DONE = object()
_AHEAD_S = 0.05  # so much less computing must a client have had to interrupt another's prompt
_RESERVED = 4  # where others ask, a client leaves one row of so many to them
_LEAST_CAPACITY = 512  # tokens per row
_PIECE_S, _BREAK_S = 0.3e-3, 1e-3  # of a search beside other answers, and between two pieces of it


class Scheduler:
    """Computes the answers of jobs that are put into it. All but `put` is for the thread that holds the turn.

    Args:
        rows: the most answers at once; memory for their KV caches is reserved.
        capacity: tokens per row; None lets rows grow with the needs of the jobs.
        closing: where forms that were cut are completed; None: in the thread that drives the scheduler.

    waiting: jobs whose prompt is not begun. seek: finds their ends; None: the thread that completes them does.
    """

    def __init__(
        self, answerer: Answerer, *, rows: int, capacity: int | None = None, closing: Executor | None = None
    ) -> None:
        self.rows = rows
        self._closing = closing
        self.seek: Seek | None = None
        self._searching = threading.Lock()
        self.waiting: deque[Job] = deque()
        self._answerer = answerer
        self._decoder = answerer.decoder
        self._capacity = capacity
        self._batch: Rows | None = None
        self._starting: tuple[Job, Generator[None, None, None]] | None = None
        self._ledger = Ledger()
        self._owed_s = 0.0

    @property
    def running(self) -> int:
        """Number of answers begun and not ended."""
        batch = self._batch
        return (0 if batch is None else len(batch)) + (self._starting is not None)

    def put(self, job: Job) -> None:
        """Queue a job, from any thread."""
        job.reply.set_running_or_notify_cancel()  # from here on only its control ends it
        self.waiting.append(job)

    def charge(self, client: str, seconds: float) -> None:
        """Count computing for a client, from any thread."""
        self._ledger.charge(client, seconds)

    def drop_ended(self) -> None:
        """Answer the waiting jobs that were ended from outside."""
        for job in list(self.waiting):
            if job.work.control.reason is not None:
                self.waiting.remove(job)
                self._end(job)

    def prefill(self) -> bool:
        """Compute the next chunk of a prompt, if there is one and a row for its answer; return whether there was."""
        if self.waiting:
            self._choose()
        if self._starting is None or self._holds_up_others(self._starting[0].client):
            return False
        began, client = time.perf_counter(), self._starting[0].client
        self._go_on(*self._starting)
        took = time.perf_counter() - began
        self._ledger.charge(client, took)
        self._owed_s = max(self._owed_s, took)
        return True

    def _holds_up_others(self, client: str) -> bool:
        """Tell whether the next chunk for a client has to wait, for answers of others who have had less of late.

        The time of a chunk is owed to the tokens after it, so that those get half of the time at least, and a short
        answer is over before the next picture is encoded.
        """
        if self._owed_s <= 0 or not self._batch:
            return False
        most = self._ledger.spent(client) - _AHEAD_S
        return any(self._ledger.spent(each) < most for each in set(self._batch.clients()) - {client})

    def _choose(self) -> None:
        """Begin the job that goes first, if there is a row for it or it may interrupt the prompt that is computed."""
        starting = self._starting
        if starting is None and self.running >= self.rows:
            return
        jobs = list(self.waiting)
        spent = {client: self._ledger.spent(client) for client in dict.fromkeys(job.client for job in jobs)}
        clients = [client for client in spent if self._may_begin(client)]
        if not clients:
            return
        client = min(clients, key=lambda each: spent[each])
        job = next(job for job in jobs if job.client == client)
        if starting is not None:
            begun, prompt = starting
            if begun.client == client or self._ledger.spent(begun.client) <= spent[client] + _AHEAD_S:
                return
            prompt.close()
            self.waiting.appendleft(begun)
        self.waiting.remove(job)
        self._starting = job, self._answerer.starting(job.work, None)

    def _may_begin(self, client: str) -> bool:
        """Tell whether a client may have a row more: where there are others it leaves some to them."""
        own = 0 if self._batch is None else self._batch.clients().count(client)
        return own < self.rows - self.rows // _RESERVED or not self._ledger.others(client)

    def step(self) -> None:
        """Compute one token of every answer."""
        rows = self._batch
        if not rows:
            return
        if not self.waiting:
            rows.close_gaps()
        began, clients = time.perf_counter(), rows.clients()
        try:
            ended = rows.step()
        except Exception as error:
            self._batch = None
            for job in rows.fail():
                job.reply.set_exception(error)
            return
        took = time.perf_counter() - began
        self._owed_s -= took
        self._ledger.share(clients, took)
        for job, failure in ended:
            if failure is None:
                self._end(job)
            else:
                job.reply.set_exception(failure)

    def fail(self, error: BaseException) -> None:
        """Give up on all jobs."""
        jobs = self._batch.fail() if self._batch else []
        jobs += [self._starting[0]] if self._starting else []
        self._starting = None
        while self.waiting:
            jobs.append(self.waiting.popleft())
        for job in jobs:
            if not job.reply.done():
                job.reply.set_exception(error)

    def _go_on(self, job: Job, starting: Iterator[None]) -> None:
        """Compute the next chunk of a prompt; after the last one the answer gets a row, unless it has ended."""
        try:
            if next(starting, _DONE) is not _DONE:
                return
            run = job.work.run
            if run is not None:
                job.tell(run.piece)
            if job.work.ended:
                if run is not None:
                    run.score_rest(self._decoder)
                self._end(job)
            else:
                self._join(job)
        except Exception as error:
            job.reply.set_exception(error)
        self._starting = None

    def _join(self, job: Job) -> None:
        needed = _capacity_for(job.work.request, self._decoder.capacity)
        if self._batch is None:
            self._batch = Rows(self._reserve(needed), self.rows)
        elif self._batch.decoder.capacity < needed:
            self._batch.grow(self._reserve(needed))
        self._batch.put(job)

    def _reserve(self, needed: int) -> BatchDecoder:
        """Reserve a batch whose rows hold `needed` tokens.

        Capacities that may still grow are steps of a factor of two: a page is memory once it is touched.
        """
        most = self._decoder.capacity
        capacity = self._capacity or (_LEAST_CAPACITY if can_grow(self._decoder) else most)
        while capacity < needed:
            capacity *= 2
        return BatchDecoder(self._decoder, rows=self.rows, capacity=min(capacity, most))

    def _end(self, job: Job) -> None:
        run = job.work.run
        if self._closing is not None and run is not None and run.cut:
            self._closing.submit(self._answer, job)
        else:
            self._answer(job)

    def _answer(self, job: Job) -> None:
        """Finish an answer whose tokens are there."""
        clock = time.thread_time if self.seek is None else time.perf_counter  # another process computes
        began = clock()
        try:
            job.tell(job.work.finish(self._seek))
            reply = self._answerer.reply(job.work)
        except Exception as error:
            job.reply.set_exception(error)
        else:
            job.reply.set_result(reply)
        self._ledger.charge(job.client, clock() - began)

    def _seek(self, ending: Ending) -> list[int]:
        if self.seek is not None:
            return self.seek(ending)
        with self._searching:  # one at a time, since each takes the interpreter from the tokens of others
            return find_end(ending, restless if self._closing is None else _Breaks(lambda: self.running > 0))


class _Breaks:
    """Breaks of a search in a thread of its own while others are answered, whose tokens need the interpreter, too."""

    def __init__(self, others: Callable[[], bool]) -> None:
        self._others = others
        self._began = time.thread_time()

    def __call__(self) -> None:
        """Sleep for a moment if a piece of the search is done; see completion.Rest."""
        if time.thread_time() - self._began > _PIECE_S and self._others():
            time.sleep(_BREAK_S)
            self._began = time.thread_time()


def answer_all(answerer: Answerer, requests: Sequence[tuple[Request, Control]], *, rows: int) -> list[Reply]:
    """Answer requests in this thread, up to `rows` of them together; replies come in the order of the requests.

    All replies are returned together, so every row is filled before the first step.

    Raises:
        QwenVLError: the error of one of them; the others are dropped.
    """
    if not requests:
        return []
    jobs = [Job(answerer.work(request, control)) for request, control in requests]
    with answerer.turns.take(lambda: all(job.work.control.reason is not None for job in jobs)):
        _answer_jobs(answerer, jobs, rows)
    return [job.reply.result() for job in jobs]


def _answer_jobs(answerer: Answerer, jobs: Sequence[Job], rows: int) -> None:
    capacity = max(_capacity_for(job.work.request, answerer.decoder.capacity) for job in jobs)
    scheduler = Scheduler(answerer, rows=min(rows, len(jobs)), capacity=capacity)
    for job in jobs:
        scheduler.put(job)
    while scheduler.waiting or scheduler.running:
        scheduler.drop_ended()
        while scheduler.prefill():
            pass
        scheduler.step()
        for job in jobs:
            if job.reply.done():
                job.reply.result()  # raises its error


def _capacity_for(request: Request, most: int) -> int:
    """Return how many tokens a request needs in its row."""
    return min(len(request.prompt.ids) + request.options.max_new_tokens, most)
