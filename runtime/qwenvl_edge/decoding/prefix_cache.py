"""KV caches of recent conversations: a new prompt goes on from the longest prefix that was computed before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.base import Backend
from qwenvl_edge.backends.kv_cache import KVCache
from qwenvl_edge.decoding.content_keys import common_prefix

IntArray = npt.NDArray[np.int64]
MEMORY_MB = 512
"""Memory for KV caches of recent conversations, unless another size is asked for."""
_MOST = 8  # conversations kept, however small the model
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


def conversations_kept(memory_bytes: int, cache_bytes: int) -> int:
    """How many KV caches of a size are kept within a memory: 1 at least, the one in use."""
    return min(max(memory_bytes // cache_bytes, 1), _MOST)


class CachePool:
    """Hands out caches, at most as many as fit into `memory_bytes` (but one at least), least recently used first.

    A prompt continues the cache with the longest common prefix: in place if little of that cache is lost by it, else
    in another one, into which the prefix is copied, so that both conversations can go on. A cache belongs to one
    dynamic-NTK factor; a prompt with another factor shares nothing with it.
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

    def take(self, keys: IntArray) -> Slot:
        """Return a slot for a prompt with content keys [T]; its cache holds what of the prompt needs no computing.

        At least the last token is left to compute, since its logits are wanted.
        """
        source, shared = self._longest(keys)
        lost = source.cache.length - shared
        target = self._other(source) if lost > _FORK_LOSS else source
        if target is not source and shared:
            target.cache.reset(len(keys))
            self._backend.copy_cache(source.cache, target.cache, shared)
        else:
            target.cache.reset(len(keys), keep=shared if target is source else 0)
        target.keys[: len(keys)] = keys
        self._slots.remove(target)
        self._slots.append(target)
        return target

    def forget(self) -> None:
        """Drop everything computed."""
        for slot in self._slots:
            slot.cache.truncate(0)

    def _longest(self, keys: IntArray) -> tuple[Slot, int]:
        alpha = self._slots[0].cache.alpha_for(len(keys))
        best, longest = self._slots[0], 0
        for slot in self._slots:
            shared = common_prefix(slot.computed, keys[:-1]) if slot.cache.ntk_alpha == alpha else 0
            if shared >= longest:  # among equals the one used last
                best, longest = slot, shared
        return best, longest

    def _other(self, source: Slot) -> Slot:
        """An empty or new slot, or the least recently used one that is not the source."""
        empty = next((slot for slot in self._slots if not slot.cache.length), None)
        if empty is not None:
            return empty
        if len(self._slots) < self._limit:
            self._slots.insert(0, self._new())
            return self._slots[0]
        return next((slot for slot in self._slots if slot is not source), source)

    def _new(self) -> Slot:
        return Slot(self._backend.new_cache(1, self._capacity), np.empty(self._capacity + 1, np.int64))
