"""The decode loop of one answer: propose, compute, sample, write, until something ends it."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from qwenvl_edge.answer import AnswerWriter
from qwenvl_edge.decoder import SequenceDecoder
from qwenvl_edge.lookup import MOST, Lookup
from qwenvl_edge.matching import Matcher
from qwenvl_edge.options import GenerationOptions
from qwenvl_edge.reply import FinishReason
from qwenvl_edge.sampling import Sampler
from qwenvl_edge.sequence import Sequence

_NOTHING = np.empty(0, np.int64)


class Generation:
    """Goes on from the logits [V] after a prompt, the last of `sequence`; without `lookup` a token at a time.

    finish_reason: None while the answer goes on. new_tokens: tokens sampled. token_ms: computing time of each token
    after the first. proposed_tokens: how many were guessed, and accepted_tokens rightly. piece: the text that the last
    token made certain.
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
        self._sampler = Sampler(options.sampling)
        self.new_tokens = 0
        self.proposed_tokens = 0
        self.accepted_tokens = 0
        self.token_ms: list[float] = []
        self.finish_reason: FinishReason | None = None
        if self._lookup is not None:
            self._lookup.start(sequence.tokens)
        self.piece = self._take(logits)

    def step(self, decoder: SequenceDecoder) -> str:
        """Compute and take the next token, or several that were proposed; return the text that became certain."""
        clock = time.perf_counter()
        forced, proposed = self._propose()
        pieces = []
        for i, logits in enumerate(decoder.step(proposed)):
            clock = self.take(logits, clock)
            pieces.append(self.piece)
            if self.finish_reason is not None or i == len(proposed) or self._sequence.tokens[-1] != proposed[i]:
                break
        accepted = len(pieces) - 1
        self.proposed_tokens += len(proposed)
        self.accepted_tokens += accepted
        if self._lookup is not None and not forced:
            self._lookup.report(len(proposed), accepted)
        decoder.settle()
        return "".join(pieces)

    def take(self, logits: npt.NDArray[np.float32], clock: float) -> float:
        """Take the next token from its logits [V], computed since `clock` (time.perf_counter); return the time now."""
        self.piece = self._take(logits)
        now = time.perf_counter()
        self.token_ms.append((now - clock) * 1e3)
        return now

    def _propose(self) -> tuple[bool, npt.NDArray[np.int64]]:
        """Whether a constraint forces what comes next, and ids that may come next."""
        sequence, options = self._sequence, self._options
        room = min(options.max_new_tokens - self.new_tokens - 1, sequence.capacity - len(sequence), MOST)
        if self._lookup is None:
            return False, _NOTHING
        if self._matcher is not None and len(forced := self._matcher.forced()):
            return True, forced[:room]
        return False, self._lookup.propose(room)

    def _take(self, logits: npt.NDArray[np.float32]) -> str:
        sequence, matcher = self._sequence, self._matcher
        allowed = None if matcher is None else matcher.allowed()
        token = self._sampler.sample(logits, sequence.tokens, allowed=allowed)
        sequence.append(token)
        if self._lookup is not None:
            self._lookup.append(token)
        self.new_tokens += 1
        piece = self._writer.push(token)
        if self._writer.stopped is not None:
            self.finish_reason = self._writer.stopped
        elif matcher is not None and matcher.take(token):
            self.finish_reason = "stop"
        elif self.new_tokens >= self._options.max_new_tokens:
            self.finish_reason = "length"
        elif sequence.full:
            self.finish_reason = "context"
        return piece
