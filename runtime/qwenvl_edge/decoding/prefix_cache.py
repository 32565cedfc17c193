"""KV caches of recent conversations: a new prompt goes on from the longest prefix that was computed before.

Prompts are compared by content keys, one number per position: the token id of text, numbers drawn from the digest of
its pixels for a picture. So two prompts share a prefix only as far as words and pictures are the same; object
identities and paths play no part.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.base import Backend, KVCache
from qwenvl_edge.backends.kept import conversations_kept
from qwenvl_edge.families.base import Positions
from qwenvl_edge.inputs.prompt import Prompt

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
        """Return a slot for a prompt with content keys [T]; its cache holds what of the prompt needs no computing.

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
        digest = prompt.pictures[span.picture].digest
        keys[span.start : span.start + span.length] = _picture_keys(digest, span.length)
    return keys


@functools.lru_cache(maxsize=64)  # the pictures of a conversation come again with every question
def _picture_keys(digest: str, count: int) -> IntArray:
    noise = hashlib.shake_256(digest.encode()).digest(8 * count)
    keys: IntArray = np.frombuffer(noise, "<i8") | np.iinfo(np.int64).min
    return keys


def _common_prefix(a: IntArray, b: IntArray) -> int:
    """Return how many leading elements of two arrays are equal."""
    length = min(len(a), len(b))
    differing = np.flatnonzero(a[:length] != b[:length])
    return int(differing[0]) if len(differing) else length
