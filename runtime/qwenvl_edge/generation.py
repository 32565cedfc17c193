"""The decode loop of one answer: sample, write, compute the next logits, until something ends it."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from qwenvl_edge.answer import AnswerWriter
from qwenvl_edge.decoder import SequenceDecoder
from qwenvl_edge.options import GenerationOptions
from qwenvl_edge.reply import FinishReason
from qwenvl_edge.sampling import Sampler


class Generation:
    """Goes on from a prefilled decoder and the logits [V] after its prompt.

    finish_reason: None while the answer goes on. new_tokens: tokens sampled. token_ms: computing
    time of each token after the first. piece: the text that the first token made certain.
    """

    def __init__(
        self,
        decoder: SequenceDecoder,
        writer: AnswerWriter,
        options: GenerationOptions,
        logits: npt.NDArray[np.float32],
    ) -> None:
        self._decoder = decoder
        self._writer = writer
        self._limit = options.max_new_tokens
        self._sampler = Sampler(options.sampling)
        self.new_tokens = 0
        self.token_ms: list[float] = []
        self.finish_reason: FinishReason | None = None
        self.piece = self._take(logits)

    def step(self) -> str:
        """Compute and take the next token; return the text that became certain."""
        clock = time.perf_counter()
        piece = self._take(self._decoder.step())
        self.token_ms.append((time.perf_counter() - clock) * 1e3)
        return piece

    def _take(self, logits: npt.NDArray[np.float32]) -> str:
        token = self._sampler.sample(logits, self._decoder.sequence.tokens)
        self._decoder.append(token)
        self.new_tokens += 1
        piece = self._writer.push(token)
        if self._writer.stopped is not None:
            self.finish_reason = self._writer.stopped
        elif self.new_tokens >= self._limit:
            self.finish_reason = "length"
        elif self._decoder.sequence.full:
            self.finish_reason = "context"
        return piece
