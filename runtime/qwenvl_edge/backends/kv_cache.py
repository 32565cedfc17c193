"""The KV cache's bookkeeping: capacity, tokens in use, and the rotary tables that its keys were made with.

Dynamic NTK (as in the published Qwen code) stretches the rotary base by a factor chosen from the prompt's length. Keys
are cached after rotary embedding, so a cache is valid for one factor: it is chosen at `reset` and kept through decode,
also when that runs past the length it was chosen for.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.errors import ContextError

FloatArray = npt.NDArray[np.float32]


def ntk_alpha(length: int, seq_length: int) -> float:
    """Dynamic NTK factor of a prompt of `length` tokens: 1 up to seq_length, 3 up to twice that, then 7, 15, ..."""
    return max(2.0 ** math.ceil(math.log2(max(length, 1) / seq_length) + 1) - 1, 1.0)


def rope_tables(capacity: int, head_dim: int, base: float, alpha: float) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines [capacity, head_dim / 2] float32 of positions 0..capacity-1, base stretched by `alpha`."""
    # The published code computes in float32; at position 8,000 the last bit of a frequency is 5e-4 radians. Powers are
    # taken in float64 and rounded, which gives PyTorch's float32 values (all but one or two of a table).
    stretched = float(np.float32(base * alpha ** (head_dim / (head_dim - 2))))
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1.0) / (stretched ** exponents.astype(np.float64)).astype(np.float32)
    angles = np.arange(capacity, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


def cache_bytes(model: ModelInfo, capacity: int, *, item_bytes: int = 4, scale_bytes: int = 0) -> int:
    """Memory of one row of keys and values with room for `capacity` tokens.

    item_bytes: of a number (4: float32). scale_bytes: of what lies beside each token of each head (4 beside int8).
    """
    return 2 * model.num_layers * model.num_kv_heads * (model.head_dim * item_bytes + scale_bytes) * capacity


class KVCache:
    """Keys and values of `batch` rows with room for `capacity` tokens each.

    length: tokens in use (of the longest row); the backend sets it at every decode. ntk_alpha, rope_cos, rope_sin
    [capacity, head_dim / 2]: as chosen by the last reset. buffers: the backend's own memory, opaque to everyone else.
    """

    def __init__(self, model: ModelInfo, *, batch: int, capacity: int, buffers: Any = None):
        self.model = model
        self.batch = batch
        self.capacity = capacity
        self.buffers = buffers
        self.length = 0
        self.ntk_alpha = 0.0
        self.rope_cos: FloatArray
        self.rope_sin: FloatArray
        self.reset(1)

    def alpha_for(self, prefill_length: int) -> float:
        """The dynamic-NTK factor that a prompt of `prefill_length` tokens needs."""
        return ntk_alpha(prefill_length, self.model.seq_length) if self.model.use_dynamic_ntk else 1.0

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens at most."""
        self.length = min(self.length, length)

    def reset(self, prefill_length: int, *, keep: int = 0) -> None:
        """Keep the first `keep` tokens and choose the rotary tables for a prompt of `prefill_length` tokens.

        Nothing is kept where the tables change, since keys are cached after rotary embedding.

        Raises:
            ContextError: the prompt is longer than the capacity.
        """
        if prefill_length > self.capacity:
            raise ContextError(
                f"the prompt has {prefill_length:,} tokens, {prefill_length - self.capacity:,} more than the KV cache "
                f"holds ({self.capacity:,}); shorten it or open a larger cache."
            )
        self.truncate(keep)
        alpha = self.alpha_for(prefill_length)
        if alpha != self.ntk_alpha:
            self.length = 0
            self.ntk_alpha = alpha
            self.rope_cos, self.rope_sin = rope_tables(
                self.capacity, self.model.head_dim, self.model.rope_base, self.ntk_alpha
            )
