"""A KV cache in the GPU's memory, written in place, with the rotary tables that its keys were made with."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwenvl_edge.backends.base import FloatArray
from qwenvl_edge.backends.cuda.device import ALIGNMENT, Cuda, DeviceMemory, Stream
from qwenvl_edge.backends.kv_cache import KVCache
from qwenvl_edge.bundle.contract import ROPE_COS, ROPE_SIN, present_of
from qwenvl_edge.errors import BackendError

ROPE_TABLES = (ROPE_COS, ROPE_SIN)


@dataclass(frozen=True)
class CacheTensor:
    """One tensor of a cache by its input's name: [B, heads, C, *rest], `item_bytes` an element."""

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

    shapes: of the graph's inputs that it stands for. addresses: what to bind, past and present at one address.

    Raises:
        BackendError: the memory cannot be had.
    """

    def __init__(
        self, cuda: Cuda, stream: Stream, tensors: Sequence[CacheTensor], *, batch: int, capacity: int, head_dim: int
    ):
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
        self._tables = RopeTables(cuda, stream, (capacity, head_dim // 2))
        self._place(0, batch)
        self.clear()
        stream.synchronize()  # a cache that is dropped unused must not be freed while it is being cleared

    def rows(self, start: int, count: int) -> CacheMemory | None:
        """Some rows, at the same memory; None where they would begin at an address that cannot be bound."""
        if any(start * self._row_bytes(tensor) % ALIGNMENT for tensor in self._tensors):
            return None
        view = copy.copy(self)
        view._place(start, count)
        return view

    def use_tables(self, cache: KVCache) -> None:
        """Bring the rotary tables of the cache's last reset to the GPU, if they are not there."""
        self._tables.use(cache)

    def clear(self) -> None:
        """Fill with zeros: what is masked may be multiplied by zero, so it must be finite."""
        for tensor in self._tensors:
            self._stream.clear(self.addresses[tensor.name], self.shapes[tensor.name][0] * self._row_bytes(tensor))

    def copy_row(self, source: CacheMemory, tokens: int, row: int) -> None:
        """Copy the first `tokens` tokens of the first row of another cache into row `row`."""
        for tensor in self._tensors:
            self._stream.copy_rows(
                (self.addresses[tensor.name] + row * self._row_bytes(tensor), self._capacity * tensor.token_bytes),
                (source.addresses[tensor.name], source._capacity * tensor.token_bytes),
                rows=tensor.heads,
                row_bytes=tokens * tensor.token_bytes,
            )

    def _place(self, start: int, count: int) -> None:
        pairs = list(zip(self._tensors, self._caches, strict=True))
        caches = {tensor.name: (count, tensor.heads, self._capacity, *tensor.rest) for tensor in self._tensors}
        past = {tensor.name: memory.address + start * self._row_bytes(tensor) for tensor, memory in pairs}
        present = {present_of(name): address for name, address in past.items()}
        self.shapes = caches | dict.fromkeys(ROPE_TABLES, self._tables.shape)
        self.addresses = past | present | self._tables.addresses

    def _row_bytes(self, tensor: CacheTensor) -> int:
        return tensor.heads * self._capacity * tensor.token_bytes


class RopeTables:
    """The tables [C, D / 2] of one cache on the GPU; a new reset's are brought there when they are first needed."""

    def __init__(self, cuda: Cuda, stream: Stream, shape: tuple[int, int]):
        self._stream = stream
        self.shape = shape
        self._memory = {name: DeviceMemory(cuda, 4 * math.prod(shape)) for name in ROPE_TABLES}
        self.addresses = {name: memory.address for name, memory in self._memory.items()}
        self._uploaded: FloatArray | None = None
        for memory in self._memory.values():
            stream.clear(
                memory.address, memory.nbytes
            )  # a cache may be smaller than the plan's, and its tables with it

    def use(self, cache: KVCache) -> None:
        """Upload the cache's tables unless they are here."""
        if self._uploaded is not cache.rope_cos:
            for name, table in zip(ROPE_TABLES, (cache.rope_cos, cache.rope_sin), strict=True):
                self._stream.upload(self.addresses[name], np.ascontiguousarray(table))
            self._uploaded = cache.rope_cos
