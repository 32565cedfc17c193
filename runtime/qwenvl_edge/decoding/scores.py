"""Log-probabilities of an answer's tokens, for callers that ask for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from qwenvl_edge.decoding.sampler import Sampler
from qwenvl_edge.decoding.sequence_decoder import TokenSequence
from qwenvl_edge.replies.reply import TokenLogprob

FloatArray = npt.NDArray[np.float32]


class Scores:
    """Log-probabilities of an answer's tokens, in their order, as the logits before each are computed.

    Args:
        sequence: prompt and answer.
        alternatives: how many of the likeliest tokens are given with each token.
        bytes_of: the bytes of ids.

    found: one entry per token scored so far.
    """

    def __init__(
        self, sequence: TokenSequence, sampler: Sampler, alternatives: int, bytes_of: Callable[[list[int]], bytes]
    ) -> None:
        self._sequence = sequence
        self._sampler = sampler
        self._alternatives = alternatives
        self._bytes_of = bytes_of
        self.found: list[TokenLogprob] = []

    @property
    def missing(self) -> int:
        """Number of tokens of the answer that are not scored."""
        return len(self._sequence) - self._sequence.prompt_length - len(self.found)

    def add(self, logits: FloatArray) -> None:
        """Score the first token that is not scored, from the logits [V] before it."""
        token = int(self._sequence.tokens[self._sequence.prompt_length + len(self.found)])
        top = tuple(self._entry(*each) for each in self._sampler.top_log_probs(logits, self._alternatives))
        self.found.append(self._entry(token, self._sampler.log_prob(logits, token), top))

    def _entry(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(token, self._bytes_of([token]), logprob, top)
