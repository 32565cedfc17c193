"""One sequence through the decoder: embed, prefill, then a token at a time, on buffers reserved beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.base import Backend
from qwenvl_edge.prompt import Prompt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class SequenceDecoder:
    """Knows token ids and features, nothing of text.

    capacity: tokens that fit. tokens: the ids so far, int64 [length], prompt included.
    """

    def __init__(self, backend: Backend, embedding: FloatArray, *, capacity: int, decodable: int) -> None:
        self._backend = backend
        self._embedding = embedding
        self._decodable = decodable
        self._cache = backend.new_cache(1, capacity)
        self._ids = np.empty(capacity + 1, np.int64)
        self._embeds = np.empty((1, capacity, embedding.shape[1]), np.float32)
        self._positions = np.arange(capacity, dtype=np.int64)[None]
        self._write_index = np.zeros(1, np.int64)
        self._logits_index = np.zeros((1, 1), np.int64)
        self._length = 0
        self.capacity = capacity

    @property
    def tokens(self) -> IntArray:
        """The ids so far (a view)."""
        return self._ids[: self._length]

    @property
    def full(self) -> bool:
        """Whether there is no room for another token in the cache."""
        return self._length > self.capacity

    def prefill(self, prompt: Prompt, features: Sequence[FloatArray]) -> FloatArray:
        """Start over with a prompt and its pictures' features [Q, H]; return the logits [V] after its last token."""
        self._cache.reset(len(prompt.ids))
        self._length = len(prompt.ids)
        self._ids[: self._length] = prompt.ids
        embeds = self._embeds[:, : self._length]
        np.take(self._embedding, prompt.ids, axis=0, out=embeds[0], mode="clip")
        for start, rows in zip(prompt.image_starts, features, strict=True):
            embeds[0, start : start + len(rows)] = rows
        return self._decode(embeds, 0)

    def append(self, token: int) -> None:
        """Add a sampled token to the sequence, without computing it yet."""
        self._ids[self._length] = token
        self._length += 1

    def step(self) -> FloatArray:
        """Compute the token appended last; return the logits [V] after it."""
        embeds = self._embeds[:, :1]
        embeds[0, 0] = self._embedding[self._ids[self._length - 1]]
        return self._decode(embeds, self._length - 1)

    def _decode(self, embeds: FloatArray, start: int) -> FloatArray:
        count = embeds.shape[1]
        self._write_index[0] = start
        self._logits_index[0, 0] = count - 1
        positions = self._positions[:, start : start + count]
        logits = self._backend.decode(self._cache, embeds, positions, self._write_index, self._logits_index)
        return logits[0, 0, : self._decodable]
