"""The decode loop of one answer: propose, compute, draw, write, until something ends it."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from qwenvl_edge.constraints.matcher import Matcher
from qwenvl_edge.decoding.prompt_lookup import Lookup
from qwenvl_edge.decoding.sampler import Sampler
from qwenvl_edge.decoding.sequence_decoder import SequenceDecoder
from qwenvl_edge.decoding.token_sequence import Sequence
from qwenvl_edge.inputs.options import GenerationOptions
from qwenvl_edge.replies.reply import FinishReason
from qwenvl_edge.replies.text_writer import AnswerWriter

_NOTHING = np.empty(0, np.int64)


class Generation:
    """Goes on from the logits [V] after a prompt, the last of `sequence`; without `lookup` a token at a time.

    Tokens that a constraint leaves no choice for are appended without being drawn.

    finish_reason: None while the answer goes on. new_tokens: tokens of the answer, forced_tokens of them not drawn.
    token_ms: computing time of each token after the first. proposed_tokens: how many were guessed, and
    accepted_tokens rightly. piece: the text that the tokens taken last made certain.
    """

    def __init__(
        self,
        sequence: Sequence,
        lookup: Lookup | None,
        writer: AnswerWriter,
        options: GenerationOptions,
        matcher: Matcher | None,
        logits: npt.NDArray[np.float32],
    ) -> None:
        self._sequence = sequence
        self._lookup = lookup if options.lookup else None
        self._writer = writer
        self._options = options
        self._matcher = matcher
        self._greedy = options.greedy
        self._sampler = Sampler(options.sampling)
        self._allowed: bytes | None = None
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
        self.token_ms = [0.0] * (self.new_tokens - 1)

    def step(self, decoder: SequenceDecoder) -> str:
        """Compute and take the next token, or several that were proposed; return the text that became certain."""
        clock = time.perf_counter()
        start, computed = len(self._sequence), decoder.computed
        proposed = self._propose()
        rows = decoder.step(proposed)
        if self._lookup is not None:
            self._lookup.report(start + len(proposed) - computed, time.perf_counter() - clock)
        pieces = []
        accepted = 0
        for row, logits in enumerate(rows):
            if len(self._sequence) == start + row:  # else it was forced meanwhile
                clock = self.take(logits, clock)
                pieces.append(self.piece)
            if self.finish_reason or row == len(proposed) or self._sequence.tokens[start + row] != proposed[row]:
                break
            accepted += 1
        self.proposed_tokens += len(proposed)
        self.accepted_tokens += accepted
        decoder.settle(len(proposed) - accepted)
        return "".join(pieces)

    def take(self, logits: npt.NDArray[np.float32], clock: float) -> float:
        """Take the next token, and those that it forces, from its logits [V], computed since `clock`.

        Returns the time now (time.perf_counter, as `clock`).
        """
        self.piece = ""
        known = self.new_tokens
        self._take(self._draw(logits))
        self._take_forced()
        now = time.perf_counter()
        self.token_ms += [(now - clock) * 1e3, *[0.0] * (self.new_tokens - known - 1)]
        return now

    def close(self) -> str:
        """Write what a constraint still asks for behind an answer that was cut; return the text."""
        if self._matcher is None or self.finish_reason in ("stop", "stop_string"):
            return ""
        return "".join(map(self._close, self._matcher.closing()))

    def _close(self, token: int) -> str:
        """Write a token that a constraint asks for."""
        if self._matcher is not None:
            self._matcher.take(token)
        return self._writer.push(token)

    def _propose(self) -> npt.NDArray[np.int64]:
        """Ids that may come next; often none."""
        if self._lookup is None:
            return _NOTHING
        room = self._options.max_new_tokens - self.new_tokens - 1
        return self._lookup.propose(min(room, self._sequence.capacity - len(self._sequence)))

    def _draw(self, logits: npt.NDArray[np.float32]) -> int:
        sequence, sampler, matcher = self._sequence, self._sampler, self._matcher
        if matcher is None:
            return sampler.sample(logits, sequence.tokens)
        if self._greedy:  # the likeliest of all ids is the likeliest of those allowed, if it is one of them
            token = sampler.sample(logits, sequence.tokens)
            if matcher.allows(token):
                return token
        allowed = matcher.allowed() if self._allowed is None else self._allowed
        return sampler.sample(logits, sequence.tokens, allowed=allowed)

    def _take_forced(self) -> bool:
        """Take what must come next, if anything; return whether there was something."""
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
