"""How large a KV cache is, and how much of earlier conversations is kept: caches by memory, features by number."""

from __future__ import annotations

from qwenvl_edge.bundle.manifest import ModelInfo

MEMORY_MB = 512
"""Memory for KV caches of recent conversations, unless the caller asks for another size."""
FEATURES_KEPT = 16
"""Pictures whose image features are kept."""
_MOST_CONVERSATIONS = 8  # however small the model


def conversations_kept(memory_bytes: int, cache_bytes: int) -> int:
    """Number of KV caches of `cache_bytes` each that are kept within a memory: at least the one in use."""
    return min(max(memory_bytes // cache_bytes, 1), _MOST_CONVERSATIONS)


def cache_bytes(model: ModelInfo, capacity: int, *, item_bytes: int = 4, scale_bytes: int = 0) -> int:
    """Bytes of one row of keys and values with room for `capacity` tokens.

    item_bytes: bytes per number (4: float32). scale_bytes: bytes of the scale per token and head (4 in an int8 cache).
    """
    return 2 * model.num_layers * model.num_kv_heads * (model.head_dim * item_bytes + scale_bytes) * capacity
