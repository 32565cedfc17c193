"""One sequence through the decoder: find what is computed already, prefill the rest in chunks, then step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.base import Backend, Features, Placed
from qwenvl_edge.bundle.embedding import EmbeddingTable
from qwenvl_edge.decoding.batch_decoder import BatchDecoder
from qwenvl_edge.decoding.content_keys import content_keys
from qwenvl_edge.decoding.prefix_cache import CachePool, Slot
from qwenvl_edge.decoding.prompt_lookup import MOST
from qwenvl_edge.decoding.token_sequence import Sequence
from qwenvl_edge.inputs.prompt import Prompt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class SequenceDecoder:
    """Knows token ids and features, nothing of text. Use: begin, load, prefill until it returns logits, then step.

    capacity: tokens that fit. sequence: the ids so far. reused: tokens of the prompt that were computed before.
    """

    sequence: Sequence

    def __init__(
        self,
        backend: Backend,
        embedding: EmbeddingTable,
        *,
        capacity: int,
        decodable: int,
        image_tokens: int,
        chunk: int,
        memory_bytes: int,
    ) -> None:
        self._backend = backend
        self._embedding = embedding
        self._decodable = decodable
        self._image_tokens = image_tokens
        self._pool = CachePool(backend, capacity=capacity, memory_bytes=memory_bytes)
        rows = chunk + MOST
        self._embeds = np.empty((1, rows, embedding.shape[1]), np.float32)
        self._positions = np.arange(capacity, dtype=np.int64)[None]
        self._write_index = np.zeros(1, np.int64)
        self._wanted = np.arange(rows, dtype=np.int64)[None]
        self._chunk = chunk
        self._slot: Slot = self._pool.newest
        self._spans: list[tuple[int, Features]] = []
        self.reused = 0
        self.capacity = capacity

    @property
    def computed(self) -> int:
        """How many tokens the cache holds."""
        return self._slot.cache.length

    def begin(self, prompt: Prompt) -> list[int]:
        """Start a sequence behind its longest computed prefix; return the pictures whose features are wanted."""
        self._slot = self._pool.take(content_keys(prompt, self._image_tokens))
        self.reused = self._slot.cache.length
        self.sequence = Sequence(prompt.ids, self.capacity, reused=self.reused)
        self._spans = []
        return [i for i, start in enumerate(prompt.image_starts) if start + self._image_tokens > self.reused]

    def load(self, prompt: Prompt, features: Mapping[int, Features]) -> None:
        """Take the features [Q, H] of the pictures that `begin` asked for."""
        self._spans = [(prompt.image_starts[i], rows) for i, rows in features.items()]

    def prefill(self) -> FloatArray | None:
        """Compute the next chunk of the prompt; return the logits [V] after its last token once it is through."""
        start = self._slot.cache.length
        end = min(start + self._chunk, self.sequence.prompt_length)
        embeds = self._embed(self.sequence.tokens[start:end])
        pictures = []
        for first, rows in self._spans:
            low, high = max(first, start), min(first + len(rows), end)
            if low < high:
                pictures.append(Placed(rows, at=low - start, first=low - first, count=high - low))
        if end < self.sequence.prompt_length:
            self._decode(embeds, 0, pictures)
            return None
        logits: FloatArray = self._decode(embeds, 1, pictures)[0]
        return logits

    def step(self, proposed: IntArray) -> FloatArray:
        """Compute what was appended since the last step and `proposed` [M] behind it.

        Returns the logits [1 + M, V] after the last appended token and after each proposed one. Say with `settle` how
        many of those are taken.
        """
        start = self.computed
        tokens = np.concatenate([self.sequence.tokens[start:], proposed])
        self._slot.keys[start : start + len(tokens)] = tokens
        while len(tokens) > self._embeds.shape[1]:
            self._decode(self._embed(tokens[: self._chunk]), 0)
            tokens = tokens[self._chunk :]
        return self._decode(self._embed(tokens), 1 + len(proposed))

    def settle(self, rejected: int) -> None:
        """Drop the last proposed tokens, which were not taken."""
        self._slot.cache.truncate(self.computed - rejected)

    def alpha_for(self, prompt_length: int) -> float:
        """The dynamic-NTK factor of a prompt; prompts of one batch must have the same."""
        return self._slot.cache.alpha_for(prompt_length)

    @property
    def can_grow(self) -> bool:
        """Whether the rows of a batch can go on in a larger one."""
        return self._backend.rows(self._slot.cache, 0, 1) is not None

    def batch(self, lengths: Iterable[tuple[int, int]]) -> BatchDecoder:
        """Reserve a batch for prompts of some lengths, with the most tokens that each answer may have."""
        rows = list(lengths)
        return BatchDecoder(
            self._backend,
            self._embedding,
            rows=len(rows),
            prompt_length=rows[0][0],
            capacity=min(max(prompt + answer for prompt, answer in rows), self.capacity),
            decodable=self._decodable,
        )

    def move_to(self, batch: BatchDecoder, row: int) -> None:
        """Let the prefilled sequence go on as a row of a batch."""
        batch.put(row, self._slot.cache, self.sequence)

    def forget(self) -> None:
        """Drop everything computed."""
        self._pool.forget()

    def _embed(self, tokens: IntArray) -> FloatArray:
        embeds = self._embeds[:, : len(tokens)]
        embeds[0] = self._embedding[tokens]
        return embeds

    def _decode(self, embeds: FloatArray, wanted: int, pictures: Iterable[Placed] = ()) -> FloatArray:
        """Compute embeds [1, T, H] behind what the cache holds; logits [wanted, V] of the last `wanted` tokens."""
        cache, count = self._slot.cache, embeds.shape[1]
        start = self._write_index[0] = cache.length
        positions = self._positions[:, start : start + count]
        try:
            logits = self._backend.decode(
                cache, embeds, positions, self._write_index, self._wanted[:, count - wanted : count], tuple(pictures)
            )
        except BaseException:
            cache.truncate(0)  # what it holds now is not known
            raise
        return logits[0, :, : self._decodable]
