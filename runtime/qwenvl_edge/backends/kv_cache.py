"""The KV cache's bookkeeping: capacity, tokens in use, and the rotary tables that its keys were made with.

Keys are cached after rotary embedding, so a cache is valid for one key of positions: it is set at `reset` and kept
through decode.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import numpy.typing as npt

from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.errors import ContextError
from qwenvl_edge.families.base import Positions

FloatArray = npt.NDArray[np.float32]


def cache_bytes(model: ModelInfo, capacity: int, *, item_bytes: int = 4, scale_bytes: int = 0) -> int:
    """Bytes of one row of keys and values with room for `capacity` tokens.

    item_bytes: bytes per number (4: float32). scale_bytes: bytes of the scale per token and head (4 in an int8 cache).
    """
    return 2 * model.num_layers * model.num_kv_heads * (model.head_dim * item_bytes + scale_bytes) * capacity


class KVCache:
    """Keys and values of `batch` rows with room for `capacity` tokens each.

    length: tokens in use (of the longest row); the backend sets it at every decode. key, rope_cos, rope_sin
    [capacity, head_dim / 2]: those of the last reset's positions; without one, nothing can be decoded. buffers: the
    backend's own memory, opaque to everyone else.
    """

    rope_cos: FloatArray
    rope_sin: FloatArray

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
        """Keep the first `keep` tokens and take the rotary tables of a prompt's positions.

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
            self.rope_cos, self.rope_sin = positions.table(self.capacity)
