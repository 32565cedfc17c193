"""The KV cache's bookkeeping: capacity, tokens in use, and the positions that its keys were rotated for.

Keys are cached after rotary embedding, so a prompt may continue a cache only if its positions have an equal key: that
of the last `reset`. A batch's rows may have different positions; its cache has no key.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.errors import ContextError
from qwenvl_edge.families.base import Positions


def cache_bytes(model: ModelInfo, capacity: int, *, item_bytes: int = 4, scale_bytes: int = 0) -> int:
    """Bytes of one row of keys and values with room for `capacity` tokens.

    item_bytes: bytes per number (4: float32). scale_bytes: bytes of the scale per token and head (4 in an int8 cache).
    """
    return 2 * model.num_layers * model.num_kv_heads * (model.head_dim * item_bytes + scale_bytes) * capacity


class KVCache:
    """Keys and values of `batch` rows with room for `capacity` tokens each.

    length: tokens in use (of the longest row); the backend sets it at every decode. key: that of the positions of the
    last reset. buffers: the backend's own memory, opaque to everyone else.
    """

    def __init__(self, model: ModelInfo, *, batch: int, capacity: int, buffers: Any = None):
        self.model = model
        self.batch = batch
        self.capacity = capacity
        self.buffers = buffers
        self.length = 0
        self.key: Hashable = None

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens at most."""
        self.length = min(self.length, length)

    def reset(self, positions: Positions, *, keep: int = 0) -> None:
        """Begin a prompt with some positions and keep the first `keep` tokens.

        Nothing is kept if their key differs from the last reset's.

        Raises:
            ContextError: the prompt is longer than the capacity.
        """
        if positions.length > self.capacity:
            raise ContextError(
                f"the prompt has {positions.length:,} tokens, {positions.length - self.capacity:,} more than the KV "
                f"cache holds ({self.capacity:,}); shorten it or open a larger cache."
            )
        self.truncate(keep)
        if positions.key != self.key:
            self.length = 0
            self.key = positions.key
