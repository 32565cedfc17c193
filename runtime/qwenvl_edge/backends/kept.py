"""How much of earlier conversations is kept for the next question: KV caches by memory, image features by number."""

from __future__ import annotations

MEMORY_MB = 512
"""Memory for KV caches of recent conversations, unless the caller asks for another size."""
FEATURES_KEPT = 16
"""Pictures whose image features are kept."""
_MOST_CONVERSATIONS = 8  # however small the model


def conversations_kept(memory_bytes: int, cache_bytes: int) -> int:
    """Number of KV caches of `cache_bytes` each that are kept within a memory: at least the one in use."""
    return min(max(memory_bytes // cache_bytes, 1), _MOST_CONVERSATIONS)
