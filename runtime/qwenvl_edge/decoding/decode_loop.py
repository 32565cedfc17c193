"""The decode loop of one answer: propose, compute, draw, write, until something ends it and the reply is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwenvl_edge.constraints.ending import Seek, find_end
from qwenvl_edge.decoding.prompt_lookup import Lookup
from qwenvl_edge.decoding.sampler import Sampler
from qwenvl_edge.decoding.scores import Scores
from qwenvl_edge.decoding.sequence_decoder import SequenceDecoder, TokenSequence
from qwenvl_edge.decoding.thinking import Guide
from qwenvl_edge.families.base import Family
from qwenvl_edge.inputs.options import GenerationOptions
from qwenvl_edge.inputs.request import Control, Request
from qwenvl_edge.replies.answer_writer import AnswerWriter, make_reply
from qwenvl_edge.replies.reply import FinishReason, Reply, Stats
from qwenvl_edge.replies.stream import Thought

FloatArray = npt.NDArray[np.float32]
_NOTHING = np.empty(0, np.int64)


class Generation:
    """Goes on from the logits [V] after a prompt, the last of `sequence`; without `lookup` one token at a time.

    ends: ids that are not drawn before the answer has options.min_new_tokens tokens.

    Tokens that a constraint leaves no choice for are appended without being drawn. Their logits are computed after
    that, with those of the next token, so they are scored late.

    finish_reason: None while the answer goes on. new_tokens: tokens of the answer, forced_tokens of them not drawn.
    token_ms: computing time of each token after the first. proposed_tokens: how many were guessed, accepted_tokens of
    them right. piece: the text that the tokens taken last made certain. scores: None unless they are asked for.
    """

    def __init__(
        self,
        sequence: TokenSequence,
        lookup: Lookup | None,
        writer: AnswerWriter,
        options: GenerationOptions,
        matcher: Guide | None,
        logits: FloatArray,
        bytes_of: Callable[[list[int]], bytes],
        ends: Sequence[int] = (),
    ) -> None:
        self._sequence = sequence
        self._ends = ends
        self._lookup = lookup if options.lookup else None
        self._writer = writer
        self._options = options
        self._matcher = matcher
        self._greedy = options.greedy
        self._sampler = Sampler(options.sampling)
        self._allowed: bytes | None = None
        self.scores = None if options.logprobs is None else Scores(sequence, self._sampler, options.logprobs, bytes_of)
        self.new_tokens = 0
        self.forced_tokens = 0
        self.proposed_tokens = 0
        self.accepted_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.piece = ""
        if self._lookup is not None:
            self._lookup.start(sequence.tokens, sequence.reused)
        if not self._take_forced():
            self._take(self._draw(logits))
            self._take_forced()
        self.score(logits)
        self.token_ms = [0.0] * (self.new_tokens - 1)

    @property
    def unscored(self) -> int:
        """Number of tokens, forced ones at the end, that are still to be scored."""
        return 0 if self.scores is None else self.scores.missing

    def step(self, decoder: SequenceDecoder) -> str:
        """Compute and take the next token, or several that were proposed; return the text that became certain."""
        clock = time.perf_counter()
        start, computed = len(self._sequence), decoder.computed
        proposed, unscored = self._propose(), self.unscored
        rows = decoder.step(proposed, unscored)
        if self._lookup is not None:
            self._lookup.report(start + len(proposed) - computed, time.perf_counter() - clock)
        for logits in rows[:unscored]:
            self.score(logits)
        pieces = []
        accepted = 0
        for row, logits in enumerate(rows[unscored:]):
            if len(self._sequence) == start + row:
                clock = self.take(logits, clock)
                pieces.append(self.piece)
            else:  # it was forced meanwhile
                self.score(logits)
            if self.finish_reason or row == len(proposed) or self._sequence.tokens[start + row] != proposed[row]:
                break
            accepted += 1
        self.proposed_tokens += len(proposed)
        self.accepted_tokens += accepted
        decoder.settle(len(proposed) - accepted)
        return "".join(pieces)

    def take(self, logits: FloatArray, clock: float) -> float:
        """Take the next token, and those that it forces, from its logits [V], computed since `clock`.

        Returns the time now (time.perf_counter, as `clock`).
        """
        self.piece = ""
        known = self.new_tokens
        self._take(self._draw(logits))
        self._take_forced()
        self.score(logits)
        now = time.perf_counter()
        self.token_ms += [(now - clock) * 1e3, *[0.0] * (self.new_tokens - known - 1)]
        return now

    def score(self, logits: FloatArray) -> None:
        """Score the first token that is not scored, if scores are asked for, from the logits [V] before it."""
        if self.scores is not None:
            self.scores.add(logits)

    def score_rest(self, decoder: SequenceDecoder) -> None:
        """Score forced tokens at the end of an answer, whose logits no later step has computed."""
        if self.finish_reason is not None and self.unscored:
            for logits in decoder.score():
                self.score(logits)

    @property
    def cut(self) -> bool:
        """True if a constraint's form may be left open."""
        return self._matcher is not None and self.finish_reason not in ("stop", "stop_string")

    def close(self, seek: Seek) -> str:
        """Write the text that completes a constraint's form after an answer that was cut; return it."""
        if self._matcher is None or not self.cut:
            return ""
        return "".join(map(self._close, self._matcher.closing(seek)))

    def _close(self, token: int) -> str:
        """Write a token that completes a constraint's form."""
        if self._matcher is not None:
            self._matcher.take(token)
        return self._writer.push(token)

    def _propose(self) -> npt.NDArray[np.int64]:
        """Return ids that may come next; often none."""
        if self._lookup is None:
            return _NOTHING
        room = self._options.max_new_tokens - self.new_tokens - 1
        return self._lookup.propose(min(room, self._sequence.capacity - len(self._sequence)))

    def _draw(self, logits: FloatArray) -> int:
        sequence, sampler, matcher = self._sequence, self._sampler, self._matcher
        if self.new_tokens < self._options.min_new_tokens:
            return sampler.sample(logits, sequence.tokens, allowed=self._going_on(len(logits)))
        if matcher is None:
            return sampler.sample(logits, sequence.tokens)
        if self._greedy:  # the likeliest of all ids is the likeliest of those allowed, if it is one of them
            token = sampler.sample(logits, sequence.tokens)
            if matcher.allows(token):
                return token
        allowed = matcher.allowed() if self._allowed is None else self._allowed
        return sampler.sample(logits, sequence.tokens, allowed=allowed)

    def _going_on(self, count: int) -> npt.NDArray[np.bool_]:
        """Return the mask [V] that leaves out what ends an answer."""
        allowed = np.ones(count, np.bool_)
        allowed[[token for token in self._ends if token < count]] = False
        return allowed

    def _take_forced(self) -> bool:
        """Take the tokens that must come next; return whether there were some."""
        self._allowed = None
        if self._matcher is None:
            return False
        forced = [] if self.finish_reason else self._matcher.forced()
        for token in forced:
            if self.finish_reason is None:
                self._take(token)
                self.forced_tokens += 1
        if not (self._greedy or self.finish_reason):
            # Now, since the matcher's code and data will have left the caches when the next logits are there.
            self._allowed = self._matcher.allowed()
        return bool(forced)

    def _take(self, token: int) -> None:
        sequence, matcher = self._sequence, self._matcher
        sequence.append(token)
        if self._lookup is not None:
            self._lookup.append(token)
        self.new_tokens += 1
        self.piece += self._writer.push(token)
        ended = matcher is not None and matcher.take(token)
        if self._writer.stopped is not None:
            self.finish_reason = self._writer.stopped
        elif ended:
            self.finish_reason = "stop"
        elif self.new_tokens >= self._options.max_new_tokens:
            self.finish_reason = "length"
        elif sequence.full:
            self.finish_reason = "context"


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
        """True if the answer has ended, by itself or from outside."""
        return self.run is None or self.run.finish_reason is not None or self.control.reason is not None

    def told(self, piece: str) -> Iterator[str]:
        """Yield the reasoning that became certain, if any, and then a piece of the answer's text."""
        if thought := self.writer.take_thought():
            yield Thought(thought)
        yield piece

    def finish(self, seek: Seek = find_end) -> str:
        """End the answer's text, whatever ended the answer; return what is left of it.

        seek: finds the end of a form, which takes up to a quarter of a second of computing.
        """
        closing = self.run.close(seek) if self.run else ""
        return closing + self.writer.finish()

    def reply(self, family: Family) -> Reply:
        """Return the reply of the finished answer; the request's matcher is given back."""
        request, run = self.request, self.run
        complete = None
        if request.matcher is not None:
            complete = request.matcher.is_whole(self.writer.raw_text)
            request.matcher.release()
        found = () if run is None or run.scores is None else tuple(run.scores.found)
        return make_reply(
            family,
            request,
            self.writer,
            reason=(run.finish_reason if run else None) or self.control.reason or "cancelled",
            complete=complete,
            stats=self._stats(),
            logprobs=None if request.options.logprobs is None else found,
        )

    def _stats(self) -> Stats:
        request, run = self.request, self.run
        return Stats(
            image_ms=self.image_s * 1e3,
            prefill_ms=self.prefill_s * 1e3,
            ttft_ms=self.ttft_s * 1e3,
            token_ms=tuple(run.token_ms) if run else (),
            prompt_tokens=len(request.prompt.ids),
            reused_tokens=self.reused_tokens,
            prefill_tokens=self.prefill_tokens,
            image_tokens=sum(span.length for span in request.prompt.spans),
            new_tokens=run.new_tokens if run else 0,
            proposed_tokens=run.proposed_tokens if run else 0,
            forced_tokens=run.forced_tokens if run else 0,
            accepted_tokens=run.accepted_tokens if run else 0,
            images_encoded=self.images_encoded,
            history_turns_dropped=len(request.history) - request.prompt.turns,
            thinking_tokens=self.writer.thinking_tokens,
        )
