"""A request becomes a reply: pictures encoded, prompt prefilled, tokens generated."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.base import Features
from qwenvl_edge.decoding.decode_loop import Generation
from qwenvl_edge.decoding.fair_lock import Turns
from qwenvl_edge.decoding.feature_cache import FeatureCache
from qwenvl_edge.decoding.prompt_lookup import Lookup
from qwenvl_edge.decoding.sequence_decoder import SequenceDecoder
from qwenvl_edge.families import QwenVL
from qwenvl_edge.inputs.cancel import Control
from qwenvl_edge.inputs.request import Request
from qwenvl_edge.inputs.tokenizer import Tokenizer
from qwenvl_edge.replies.placement import make_reply
from qwenvl_edge.replies.reply import Reply
from qwenvl_edge.replies.stats import Stats
from qwenvl_edge.replies.text_writer import AnswerWriter

FloatArray = npt.NDArray[np.float32]


@dataclass
class Work:
    """A request under way and what it cost so far; `run` is there once the prompt is computed."""

    request: Request
    control: Control
    writer: AnswerWriter
    run: Generation | None = None
    image_s: float = 0.0
    prefill_s: float = 0.0
    ttft_s: float = 0.0
    images_encoded: int = 0
    reused_tokens: int = 0
    prefill_tokens: int = 0

    @property
    def ended(self) -> bool:
        """Whether the answer has ended, by itself or from outside."""
        return self.run is None or self.run.finish_reason is not None or self.control.reason is not None


class Answerer:
    """Answers requests, one call after another in the order in which they came.

    Args:
        stop: id sequences that end an answer.

    turns: whoever computes holds the turn.
    """

    def __init__(
        self,
        family: QwenVL,
        tokenizer: Tokenizer,
        features: FeatureCache,
        decoder: SequenceDecoder,
        *,
        stop: Sequence[tuple[int, ...]],
    ) -> None:
        self._family = family
        self._tokenizer = tokenizer
        self._features = features
        self._decoder = decoder
        self._stop = stop
        self._lookup = Lookup({ids[0] for ids in stop if len(ids) == 1})
        self.turns = Turns()

    def work(self, request: Request, control: Control) -> Work:
        """Take a request on; nothing is computed yet."""
        return Work(request, control, self._writer(request))

    def answer(self, request: Request, control: Control) -> Generator[str, None, Reply]:
        """Compute an answer, yielding its text as it comes."""
        work = self.work(request, control)
        with self.turns.take(lambda: control.reason is not None) as granted:
            run = self._start(work, self._lookup) if granted else None
            if run is not None:
                yield run.piece
                while not work.ended:
                    yield run.step(self._decoder)
            yield finish(work)
        return self.reply(work)

    def answer_many(self, requests: Sequence[tuple[Request, Control]], *, max_batch: int) -> list[Reply]:
        """Compute several answers, up to `max_batch` of them together; replies come in the order of the requests."""
        works = [self.work(request, control) for request, control in requests]
        with self.turns.take(lambda: all(work.control.reason is not None for work in works)) as granted:
            for batch in self._batches(works, max_batch) if granted else ():
                self._answer_batch(batch)
        for work in works:
            finish(work)
        return [self.reply(work) for work in works]

    def forget(self) -> None:
        """Drop computed prefixes and features, when it is this caller's turn."""
        with self.turns.take():
            self._decoder.forget()
            self._features.forget()
            self._lookup.forget()

    def _batches(self, works: Sequence[Work], max_batch: int) -> Iterator[list[Work]]:
        """Split into batches whose prompts have the same dynamic-NTK factor."""

        def alpha(work: Work) -> float:
            return self._decoder.alpha_for(len(work.request.prompt.ids))

        for _, group in itertools.groupby(sorted(works, key=alpha), key=alpha):
            members = list(group)
            yield from (members[start : start + max_batch] for start in range(0, len(members), max_batch))

    def _answer_batch(self, works: Sequence[Work]) -> None:
        lengths = [(len(work.request.prompt.ids), work.request.options.max_new_tokens) for work in works]
        decoder = self._decoder.batch(lengths)
        for row, work in enumerate(works):
            # A row at a time: shared prefixes are computed once, and ONNX Runtime's CPU attention takes several tokens
            # behind a prefix at batch 1 only.
            if self._start(work, None) is not None and not work.ended:
                self._decoder.move_to(decoder, row)
        active = {row: work.run for row, work in enumerate(works) if work.run is not None and not work.ended}
        while active:
            clock = time.perf_counter()
            logits = decoder.step()
            for row, run in list(active.items()):
                if decoder.caught_up(row):
                    run.take(logits[row], clock)
                if works[row].ended:
                    decoder.end(row)
                    del active[row]

    def _start(self, work: Work, lookup: Lookup | None) -> Generation | None:
        """Compute the prompt and take the first token; return the generation, None if the answer must end before."""
        for _ in self.starting(work, lookup):
            pass
        return work.run

    def starting(self, work: Work, lookup: Lookup | None) -> Iterator[None]:
        """Compute the prompt and take the first token, with a pause behind each picture and chunk.

        `work.run` is there at the end, unless the answer must end before. No other prompt may begin meanwhile.
        """
        request = work.request
        logits = yield from self._prefill(work)
        if logits is not None:
            work.run = Generation(self._decoder.sequence, lookup, work.writer, request.options, request.matcher, logits)
            work.ttft_s = time.perf_counter() - request.started

    def _prefill(self, work: Work) -> Generator[None, None, FloatArray | None]:
        """Encode pictures and compute the prompt; return the logits after it, or None if the answer must end."""
        clock = time.perf_counter()
        prompt, control = work.request.prompt, work.control
        if control.reason is not None:
            return None
        wanted = self._decoder.begin(prompt)
        work.reused_tokens = self._decoder.reused
        found: dict[str, Features] = {}
        for picture in (prompt.pictures[i] for i in wanted):
            if control.reason is not None:
                return None
            if picture.digest not in found:
                found[picture.digest], encoded = self._features.get(picture)
                work.images_encoded += encoded
            work.image_s += time.perf_counter() - clock
            yield
            clock = time.perf_counter()
        self._decoder.load(prompt, {i: found[prompt.pictures[i].digest] for i in wanted})
        logits = None
        while logits is None and control.reason is None:
            logits = self._decoder.prefill()
            work.prefill_s += time.perf_counter() - clock
            if logits is None:
                yield
            clock = time.perf_counter()
        work.prefill_tokens = self._decoder.computed - work.reused_tokens
        return logits

    def _writer(self, request: Request) -> AnswerWriter:
        family = self._family
        # Where a constraint rules, stop words are words like others: only control tokens end the answer.
        stop = self._stop if request.matcher is None else [ids for ids in self._stop if len(ids) == 1]
        return AnswerWriter(
            self._tokenizer,
            family.markup,
            stop=stop,
            stop_strings=request.options.stop,
            hidden=family.hidden_ids,
            lead=request.lead,
        )

    def reply(self, work: Work) -> Reply:
        """Return what became of a finished work; its matcher is given back."""
        request, run = work.request, work.run
        stats = Stats(
            image_ms=work.image_s * 1e3,
            prefill_ms=work.prefill_s * 1e3,
            ttft_ms=work.ttft_s * 1e3,
            token_ms=tuple(run.token_ms) if run else (),
            prompt_tokens=len(request.prompt.ids),
            reused_tokens=work.reused_tokens,
            prefill_tokens=work.prefill_tokens,
            image_tokens=self._family.image_tokens * len(request.prompt.pictures),
            new_tokens=run.new_tokens if run else 0,
            proposed_tokens=run.proposed_tokens if run else 0,
            forced_tokens=run.forced_tokens if run else 0,
            accepted_tokens=run.accepted_tokens if run else 0,
            images_encoded=work.images_encoded,
            history_turns_dropped=len(request.history) - request.prompt.turns,
        )
        complete = None
        if request.matcher is not None:
            complete = request.matcher.is_whole(work.writer.raw_text)
            request.matcher.release()
        reason = (run.finish_reason if run else None) or work.control.reason or "cancelled"
        return make_reply(self._family, request, work.writer, reason, complete, stats)


def finish(work: Work) -> str:
    """End the answer's text, whatever ended the answer; return the rest of it."""
    closing = work.run.close() if work.run else ""
    return closing + work.writer.finish()
