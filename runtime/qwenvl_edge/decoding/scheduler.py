"""Continuous batching: an answer joins the running batch once its prompt is computed and leaves it when it ends.

    put -> waiting -> prefill, a chunk at a time -> row of a batch -> reply

Prompts are computed one after another at batch 1, what they share only once; then each step computes one token of every
row. Every answer is the one that the engine would give alone; look-up decoding is not used. The scheduler has no
thread: whoever has requests drives it, `answer_all` in its caller's thread, a Batcher in one of its own. A form that
was cut may be completed in another thread: the search for its end takes longer than many tokens of other answers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from qwenvl_edge.constraints.completion import restless
from qwenvl_edge.decoding.batch_decoder import BatchDecoder, FloatArray, can_grow
from qwenvl_edge.decoding.decode_loop import Work
from qwenvl_edge.decoding.pipeline import Answerer
from qwenvl_edge.families.tools import CallPiece
from qwenvl_edge.inputs.request import Control, Request
from qwenvl_edge.replies.reply import Reply, TokenLogprob

_DONE = object()
_LEAST_CAPACITY = 512  # tokens per row
_PIECE_S, _BREAK_S = 0.3e-3, 1e-3  # of a search beside other answers, and between two pieces of it


@dataclass(eq=False)
class Job:
    """A request on its way to a reply.

    on_text: takes pieces of the answer's text. on_thinking: of the reasoning before it. on_call: of the calls of tools
    after it. on_logprobs: takes the answer's log-probabilities, where they are asked for.
    """

    work: Work
    on_text: Callable[[str], None] | None = None
    on_logprobs: Callable[[Sequence[TokenLogprob]], None] | None = None
    on_thinking: Callable[[str], None] | None = None
    on_call: Callable[[CallPiece], None] | None = None
    reply: Future[Reply] = field(default_factory=Future)
    _told: int = 0

    def tell(self, piece: str) -> None:
        """Pass on a piece of text, and before it the tokens scored since the last one."""
        scores = None if self.work.run is None else self.work.run.scores
        if self.on_logprobs is not None and scores is not None and len(scores.found) > self._told:
            self.on_logprobs(scores.found[self._told :])
            self._told = len(scores.found)
        thought = self.work.writer.take_thought()
        if thought and self.on_thinking is not None:
            self.on_thinking(thought)
        if piece and self.on_text is not None:
            self.on_text(piece)
        if self.on_call is not None:
            for call in self.work.writer.take_calls():
                self.on_call(call)


class _Rows:
    """The jobs of the running batch: row number -> job."""

    def __init__(self, decoder: BatchDecoder, size: int) -> None:
        self.decoder = decoder
        self._size = size
        self._jobs: dict[int, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """Give the job whose prompt was computed last the first free row."""
        row = self._free()
        self.decoder.put(row)
        self._jobs[row] = job

    def step(self) -> list[tuple[Job, Exception | None]]:
        """Compute one token of every row; return the jobs that ended or failed, with the error; their rows are free."""
        clock = time.perf_counter()
        logits = self.decoder.step()
        ended = []
        for row, job in list(self._jobs.items()):
            error = self._take(row, job, logits[row], clock)
            run, control = job.work.run, job.work.control
            scored = run is None or not run.unscored or control.reason is not None
            if error is not None or (job.work.ended and scored):
                self.decoder.end(row)
                ended.append((self._jobs.pop(row), error))
        return ended

    def close_gaps(self) -> None:
        """Move the last rows into free ones before them, so that no free row is computed."""
        while self._jobs and (last := max(self._jobs)) >= len(self._jobs):
            target = self._free()
            if not self.decoder.move(last, target):
                return
            self._jobs[target] = self._jobs.pop(last)

    def grow(self, decoder: BatchDecoder) -> None:
        """Go on in a larger batch."""
        decoder.take_over(self.decoder)
        self.decoder = decoder

    def fail(self) -> list[Job]:
        """Give up; return the jobs that were there."""
        jobs, self._jobs = list(self._jobs.values()), {}
        return jobs

    def _free(self) -> int:
        """Return the first free row."""
        return next(row for row in range(self._size) if row not in self._jobs)

    def _take(self, row: int, job: Job, logits: FloatArray, clock: float) -> Exception | None:
        """Take the next token of a row; return an error instead of raising it, so that the other rows go on."""
        run = job.work.run
        assert run is not None  # a job without a generation ends before it gets a row
        try:
            if run.unscored:
                run.score(logits)
            elif self.decoder.caught_up(row):
                run.take(logits, clock)
                job.tell(run.piece)
        except Exception as error:
            return error
        return None


class Scheduler:
    """Computes the answers of jobs that are put into it. All but `put` is for the thread that holds the turn.

    Args:
        rows: the most answers at once; memory for their KV caches is reserved.
        capacity: tokens per row; None lets rows grow with the needs of the jobs.
        closing: where forms that were cut are completed; None: in the thread that drives the scheduler.

    waiting: jobs whose prompt is not begun.
    """

    def __init__(
        self, answerer: Answerer, *, rows: int, capacity: int | None = None, closing: Executor | None = None
    ) -> None:
        self.rows = rows
        self._closing = closing
        self.waiting: deque[Job] = deque()
        self._answerer = answerer
        self._decoder = answerer.decoder
        self._capacity = capacity
        self._batch: _Rows | None = None
        self._starting: tuple[Job, Iterator[None]] | None = None

    @property
    def running(self) -> int:
        """Number of answers begun and not ended."""
        batch = self._batch
        return (0 if batch is None else len(batch)) + (self._starting is not None)

    def put(self, job: Job) -> None:
        """Queue a job, from any thread."""
        job.reply.set_running_or_notify_cancel()  # from here on only its control ends it
        self.waiting.append(job)

    def drop_ended(self) -> None:
        """Answer the waiting jobs that were ended from outside."""
        for job in list(self.waiting):
            if job.work.control.reason is not None:
                self.waiting.remove(job)
                self._end(job)

    def prefill(self) -> bool:
        """Compute the next chunk of a prompt, if there is one and a row for its answer; return whether there was."""
        if self._starting is None and self.waiting and self.running < self.rows:
            job = self.waiting.popleft()
            self._starting = job, self._answerer.starting(job.work, None)
        if self._starting is None:
            return False
        self._go_on(*self._starting)
        return True

    def step(self) -> None:
        """Compute one token of every answer."""
        rows = self._batch
        if not rows:
            return
        if not self.waiting:
            rows.close_gaps()
        try:
            ended = rows.step()
        except Exception as error:
            self._batch = None
            for job in rows.fail():
                job.reply.set_exception(error)
            return
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
            self._batch = _Rows(self._reserve(needed), self.rows)
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
        try:
            job.tell(job.work.finish(restless if self._closing is None else _Breaks(lambda: self.running > 0)))
            reply = self._answerer.reply(job.work)
        except Exception as error:
            job.reply.set_exception(error)
        else:
            job.reply.set_result(reply)


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
