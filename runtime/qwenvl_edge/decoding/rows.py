"""The running batch: which job has which row, and one step of all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from qwenvl_edge.decoding.batch_decoder import BatchDecoder, FloatArray
from qwenvl_edge.decoding.decode_loop import Work
from qwenvl_edge.families.tools import CallPiece
from qwenvl_edge.replies.reply import Reply, TokenLogprob


@dataclass(eq=False)
class Job:
    """A request on its way to a reply.

    on_text: takes pieces of the answer's text. on_thinking: of the reasoning before it. on_call: of the calls of tools
    after it. on_logprobs: takes the answer's log-probabilities, where they are asked for. client: who
    asks, by any name.
    """

    work: Work
    on_text: Callable[[str], None] | None = None
    on_logprobs: Callable[[Sequence[TokenLogprob]], None] | None = None
    on_thinking: Callable[[str], None] | None = None
    on_call: Callable[[CallPiece], None] | None = None
    client: str = ""
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


class Rows:
    """The jobs of the running batch: row number -> job."""

    def __init__(self, decoder: BatchDecoder, size: int) -> None:
        self.decoder = decoder
        self._size = size
        self._jobs: dict[int, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def clients(self) -> list[str]:
        """Return who asked for each row."""
        return [job.client for job in self._jobs.values()]

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
