"""KV caches in the GPU's memory, written in place."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from qwenvl_edge.backends.base import KVCache
from qwenvl_edge.backends.checks import check_cache_size, check_copy
from qwenvl_edge.bundle.contract import present_of
from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.errors import BackendError
from qwenvl_edge.machine.cuda import ALIGNMENT, Cuda, DeviceMemory, Stream


@dataclass(frozen=True)
class CacheTensor:
    """One tensor [B, heads, C, *rest] of a cache, named as the graph's input; `item_bytes` per element."""

    name: str
    heads: int
    rest: tuple[int, ...]
    item_bytes: int

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of one head."""
        return math.prod(self.rest) * self.item_bytes


def row_bytes(tensors: Sequence[CacheTensor], capacity: int) -> int:
    """Bytes of one row of a cache with room for `capacity` tokens."""
    return capacity * sum(tensor.heads * tensor.token_bytes for tensor in tensors)


class CacheMemory:
    """Room for `capacity` tokens in each of `batch` rows.

    shapes: of the graph's inputs that are bound to it. addresses: of these inputs and of the outputs; a past and its
    present have the same address.

    Raises:
        BackendError: there is not enough memory.
    """

    def __init__(self, cuda: Cuda, stream: Stream, tensors: Sequence[CacheTensor], *, batch: int, capacity: int):
        self._stream = stream
        self._tensors = tensors
        self._capacity = capacity
        sizes = [batch * tensor.heads * capacity * tensor.token_bytes for tensor in tensors]
        try:
            self._caches = [DeviceMemory(cuda, size) for size in sizes]
        except BackendError as error:
            size = f"{sum(sizes) / 1e9:,.1f} GB"
            raise BackendError(
                f"no memory for a KV cache of {capacity:,} tokens and batch {batch} ({size}): {error}"
            ) from None
        self._place(0, batch)
        self.clear()
        stream.synchronize()  # else a cache that is dropped unused would be freed while it is cleared

    def rows(self, start: int, count: int) -> CacheMemory | None:
        """View `count` rows from row `start` on; None if they would begin at an address that cannot be bound."""
        if any(start * self._row_bytes(tensor) % ALIGNMENT for tensor in self._tensors):
            return None
        view = copy.copy(self)
        view._place(start, count)
        return view

    def clear(self) -> None:
        """Queue filling with zeros: attention may multiply masked tokens by zero, so they must be finite."""
        for tensor in self._tensors:
            self._stream.clear(self.addresses[tensor.name], self.shapes[tensor.name][0] * self._row_bytes(tensor))

    def copy_row(self, source: CacheMemory, tokens: int, row: int) -> None:
        """Queue the copy of the first `tokens` tokens of another cache's first row into row `row`."""
        for tensor in self._tensors:
            self._stream.copy_rows(
                (self.addresses[tensor.name] + row * self._row_bytes(tensor), self._capacity * tensor.token_bytes),
                (source.addresses[tensor.name], source._capacity * tensor.token_bytes),
                rows=tensor.heads,
                row_bytes=tokens * tensor.token_bytes,
            )

    def _place(self, start: int, count: int) -> None:
        pairs = list(zip(self._tensors, self._caches, strict=True))
        past = {tensor.name: memory.address + start * self._row_bytes(tensor) for tensor, memory in pairs}
        present = {present_of(name): address for name, address in past.items()}
        self.shapes = {tensor.name: (count, tensor.heads, self._capacity, *tensor.rest) for tensor in self._tensors}
        self.addresses = past | present

    def _row_bytes(self, tensor: CacheTensor) -> int:
        return tensor.heads * self._capacity * tensor.token_bytes


class Buffers(Protocol):
    """A backend's own object per cache, which holds at least the cache's memory."""

    @property
    def memory(self) -> CacheMemory:
        """The cache's memory."""


class DeviceCaches:
    """The caches of one backend, all on one stream.

    Args:
        new_memory: reserves the memory of `batch` rows and `capacity` tokens; raises BackendError if there is none.
        new_buffers: makes KVCache.buffers for a memory.
    """

    def __init__(
        self,
        model: ModelInfo,
        stream: Stream,
        new_memory: Callable[[int, int], CacheMemory],
        new_buffers: Callable[[CacheMemory], Buffers],
    ):
        self._model = model
        self._stream = stream
        self._new_memory = new_memory
        self._new_buffers = new_buffers

    def new(self, batch: int, capacity: int) -> KVCache:
        """See Backend.new_cache."""
        check_cache_size(batch, capacity)
        buffers = self._new_buffers(self._new_memory(batch, capacity))
        return KVCache(self._model, batch=batch, capacity=capacity, buffers=buffers)

    def rows(self, cache: KVCache, start: int, count: int) -> KVCache | None:
        """See Backend.rows."""
        memory = cache.buffers.memory.rows(start, count)
        if memory is None:
            return None
        view = copy.copy(cache)
        view.batch, view.buffers = count, self._new_buffers(memory)
        return view

    def copy(self, source: KVCache, target: KVCache, tokens: int, row: int) -> None:
        """See Backend.copy_cache."""
        check_copy(source, target, tokens, row)
        target.buffers.memory.copy_row(source.buffers.memory, tokens, row)
        self._stream.synchronize()
        target.length = max(target.length, tokens)
