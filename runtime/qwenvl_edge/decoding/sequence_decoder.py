"""One sequence through the decoder: find what is computed already, prefill the rest in chunks, then step."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.base import Backend, Features, KVCache, Placed
from qwenvl_edge.backends.kept import conversations_kept
from qwenvl_edge.bundle.embedding import EmbeddingTable
from qwenvl_edge.decoding.prompt_lookup import MOST
from qwenvl_edge.families.base import Positions
from qwenvl_edge.families.pieces import Span
from qwenvl_edge.inputs.prompt import Prompt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
_FORK_LOSS = 64  # a copy of the shared prefix is made to save more computed tokens than these


@dataclass(eq=False)
class Slot:
    """A cache and what it was computed from: `keys` (content keys [capacity + 1]), valid up to `cache.length`."""

    cache: KVCache
    keys: IntArray

    @property
    def computed(self) -> IntArray:
        """The keys of the tokens in the cache (a view)."""
        return self.keys[: self.cache.length]


class PrefixCache:
    """Hands out KV caches, as many as fit into `memory_bytes`, at least one; the least recently used is replaced.

    A prompt continues the cache with the longest common prefix: in place if that loses few tokens of the cache, else in
    another cache, into which the prefix is copied, so that both conversations can go on. A prompt shares nothing with a
    cache whose positions have another key.

    Prompts are compared by content keys, so two share a prefix only as far as words and pictures are the same; object
    identities and paths play no part.
    """

    def __init__(self, backend: Backend, *, capacity: int, memory_bytes: int) -> None:
        self._backend = backend
        self._capacity = capacity
        self._limit = conversations_kept(memory_bytes, backend.cache_bytes(capacity))
        self._slots = [self._new()]  # least recently used first; the first is reserved at load

    @property
    def newest(self) -> Slot:
        """The slot used last."""
        return self._slots[-1]

    def take(self, keys: IntArray, positions: Positions) -> Slot:
        """Return a slot for a prompt with content keys [T]; its cache holds the part that is computed already.

        At least the last token is left to compute, since its logits are wanted.
        """
        source, shared = self._longest(keys, positions)
        lost = source.cache.length - shared
        target = self._other(source) if lost > _FORK_LOSS else source
        if target is not source and shared:
            target.cache.reset(positions)
            self._backend.copy_cache(source.cache, target.cache, shared)
        else:
            target.cache.reset(positions, keep=shared if target is source else 0)
        target.keys[: len(keys)] = keys
        self._slots.remove(target)
        self._slots.append(target)
        return target

    def forget(self) -> None:
        """Drop everything computed."""
        for slot in self._slots:
            slot.cache.truncate(0)

    def _longest(self, keys: IntArray, positions: Positions) -> tuple[Slot, int]:
        best, longest = self._slots[0], 0
        for slot in self._slots:
            shared = _common_prefix(slot.computed, keys[:-1]) if slot.cache.key == positions.key else 0
            if shared >= longest:  # among equals the one used last
                best, longest = slot, shared
        return best, longest

    def _other(self, source: Slot) -> Slot:
        """Return an empty or new slot, or the least recently used one that is not the source."""
        empty = next((slot for slot in self._slots if not slot.cache.length), None)
        if empty is not None:
            return empty
        if len(self._slots) < self._limit:
            self._slots.insert(0, self._new())
            return self._slots[0]
        return next((slot for slot in self._slots if slot is not source), source)

    def _new(self) -> Slot:
        return Slot(self._backend.new_cache(1, self._capacity), np.empty(self._capacity + 1, np.int64))


def content_keys(prompt: Prompt) -> IntArray:
    """Return keys [T] int64: ids of text, and negative numbers drawn from its digest for each row of a picture."""
    keys: IntArray = prompt.ids.copy()
    for span in prompt.spans:
        rows = _picture_keys(f"{prompt.pictures[span.picture].digest} {span.layout}", span.layout.tokens)
        keys[span.start : span.start + span.length] = rows[span.first : span.first + span.length]
    if prompt.salt:  # two prompts share a prefix only if their first keys are equal
        keys[0] = _picture_keys(f"salt {prompt.salt} {prompt.ids[0]}", 1)[0]
    return keys


@functools.lru_cache(maxsize=64)  # the pictures of a conversation come again with every question
def _picture_keys(content: str, count: int) -> IntArray:
    noise = hashlib.shake_256(content.encode()).digest(8 * count)
    keys: IntArray = np.frombuffer(noise, "<i8") | np.iinfo(np.int64).min
    return keys


def _common_prefix(a: IntArray, b: IntArray) -> int:
    """Return how many leading elements of two arrays are equal."""
    length = min(len(a), len(b))
    differing = np.flatnonzero(a[:length] != b[:length])
    return int(differing[0]) if len(differing) else length


class TokenSequence:
    """The ids of one sequence, prompt and answer.

    It holds one id more than the KV cache holds tokens, because the last sampled token needs no room there.

    prompt_length: how many of the ids are the prompt. reused: how many of these were computed before.
    """

    def __init__(self, prompt: IntArray, capacity: int, *, reused: int = 0) -> None:
        self._ids = np.empty(capacity + 1, np.int64)
        self._ids[: len(prompt)] = prompt
        self._length = len(prompt)
        self.capacity = capacity
        self.prompt_length = len(prompt)
        self.reused = reused

    def __len__(self) -> int:
        return self._length

    @property
    def tokens(self) -> IntArray:
        """The ids so far (a view)."""
        return self._ids[: self._length]

    @property
    def full(self) -> bool:
        """True if the KV cache has no room for another token."""
        return self._length > self.capacity

    def append(self, token: int) -> None:
        """Add a token."""
        self._ids[self._length] = token
        self._length += 1


class SequenceDecoder:
    """Decodes token ids and features; it knows no text. Use: begin, load, prefill until it returns logits, then step.

    capacity: tokens that fit. sequence: the ids so far. positions: those of the prompt and after it. reused: tokens of
    the prompt that were computed before. embedding: the rows of the ids. decodable: how many ids have logits.
    """

    sequence: TokenSequence
    positions: Positions

    def __init__(
        self,
        backend: Backend,
        embedding: EmbeddingTable,
        *,
        capacity: int,
        decodable: int,
        chunk: int,
        memory_bytes: int,
    ) -> None:
        self._backend = backend
        self.embedding = embedding
        self._stored_rows = embedding.stored
        self.decodable = decodable
        self.capacity = capacity
        self.reused = 0
        self._prefixes = PrefixCache(backend, capacity=capacity, memory_bytes=memory_bytes)
        rows = chunk + MOST
        self._embeds = np.empty((1, rows, embedding.shape[1]), np.float32)
        self._write_index = np.zeros(1, np.int64)
        self._wanted = np.arange(rows, dtype=np.int64)[None]
        self._chunk = chunk
        self._slot: Slot = self._prefixes.newest
        self._spans: list[tuple[Span, Features]] = []

    @property
    def backend(self) -> Backend:
        """The backend that it computes with."""
        return self._backend

    @property
    def cache(self) -> KVCache:
        """The KV cache of the sequence."""
        return self._slot.cache

    @property
    def computed(self) -> int:
        """Number of tokens that the cache holds."""
        return self._slot.cache.length

    def begin(self, prompt: Prompt) -> list[int]:
        """Start a sequence after its longest computed prefix; return the pictures whose features are wanted."""
        self._slot = self._prefixes.take(content_keys(prompt), prompt.positions)
        self.reused = self._slot.cache.length
        self.positions = prompt.positions
        self.sequence = TokenSequence(prompt.ids, self.capacity, reused=self.reused)
        self._spans = []
        return [span.picture for span in prompt.spans if span.start + span.length > self.reused]

    def load(self, prompt: Prompt, features: Mapping[int, Features]) -> None:
        """Take the features [Q, H] of the pictures that `begin` asked for."""
        self._spans = [(span, features[span.picture]) for span in prompt.spans if span.picture in features]

    def prefill(self) -> FloatArray | None:
        """Compute the next chunk of the prompt; return the logits [V] after its last token, None before that."""
        start = self._slot.cache.length
        end = min(start + self._chunk, self.sequence.prompt_length)
        pictures = []
        for span, rows in self._spans:
            low, high = max(span.start, start), min(span.start + span.length, end)
            if low < high:
                first = span.first + low - span.start
                pictures.append(Placed(rows, at=low - start, first=first, count=high - low))
        whole = end == self.sequence.prompt_length
        logits = self._decode(self.sequence.tokens[start:end], int(whole), pictures)
        return logits[0] if whole else None

    def step(self, proposed: IntArray, unscored: int = 0) -> FloatArray:
        """Compute what was appended since the last step, then `proposed` [M].

        Returns the logits [U + 1 + M, V] after each of the last U = `unscored` appended tokens but the last one, after
        the last one, and after each proposed token. Say with `settle` how many of the proposed ones were not taken.
        """
        tokens = np.concatenate([self.sequence.tokens[self.computed :], proposed])
        return self._compute(tokens, unscored + 1 + len(proposed))

    def score(self) -> FloatArray:
        """Compute what was appended since the last step but for the last token; return the logits after each."""
        tokens = self.sequence.tokens[self.computed : -1]
        return self._compute(tokens, len(tokens))

    def settle(self, rejected: int) -> None:
        """Drop the last proposed tokens, which were not taken."""
        self._slot.cache.truncate(self.computed - rejected)

    def forget(self) -> None:
        """Drop everything computed."""
        self._prefixes.forget()

    def _compute(self, tokens: IntArray, wanted: int) -> FloatArray:
        """Compute tokens of the answer [T], in several calls if need be; logits [wanted, V] of the last `wanted`."""
        self._slot.keys[self.computed : self.computed + len(tokens)] = tokens
        early = []
        while len(tokens) > self._embeds.shape[1]:
            later = min(wanted, len(tokens) - self._chunk)
            rows = self._decode(tokens[: self._chunk], wanted - later)
            early.append(rows.copy())  # the next call may use their memory again
            tokens, wanted = tokens[self._chunk :], later
        last = self._decode(tokens, wanted)
        return np.concatenate([*early, last]) if early else last

    def _decode(self, tokens: IntArray, wanted: int, pictures: Iterable[Placed] = ()) -> FloatArray:
        """Compute tokens [T] after those in the cache, in one call; logits [wanted, V] of the last `wanted` tokens."""
        cache, count = self._slot.cache, len(tokens)
        embeds = self._embeds[:, :count]
        embeds[0] = self._stored_rows[tokens]  # widens them to float32
        self._write_index[0] = cache.length
        rotary = self.positions.rows(cache.length, count)
        try:
            logits = self._backend.decode_unchecked(
                cache, embeds, rotary, self._write_index, self._wanted[:, count - wanted : count], tuple(pictures)
            )
        except BaseException:
            cache.truncate(0)  # what it holds now is not known
            raise
        return logits[0, :, : self.decodable]
