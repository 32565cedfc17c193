"""A backend's decode in a line, for tests that compare backends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qwenvl_edge.backends.base import Backend, Placed
from qwenvl_edge.backends.kv_cache import KVCache


def embeds(backend: Backend, tokens: int, batch: int = 1, seed: int = 0) -> np.ndarray:
    """Random embeddings [B, T, H]."""
    shape = (batch, tokens, backend.model.hidden_size)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def decode(
    backend: Backend,
    cache: KVCache,
    rows: int | np.ndarray,
    *,
    write: int | Sequence[int] | None = None,
    wanted: Sequence[int] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Decode rows [B, T, H], or that many random ones; logits [B, K, V].

    write: the place of the first token, one for all rows or one each; None puts it behind what the cache holds. wanted:
    which tokens' logits; None takes the last one's.
    """
    rows = embeds(backend, rows, cache.batch, seed) if isinstance(rows, int) else rows
    tokens = rows.shape[1]
    places = np.broadcast_to(np.array(cache.length if write is None else write), (cache.batch,)).astype(np.int64)
    indices = np.tile(np.array([tokens - 1] if wanted is None else wanted, np.int64), (cache.batch, 1))
    return backend.decode(cache, rows, places[:, None] + np.arange(tokens), places, indices)


def pictured(backend: Backend) -> np.ndarray:
    """Logits [1, 2, V] behind a picture of noise whose kept features come in two calls."""
    size, count = backend.model.image_size, backend.model.image_tokens
    pixels = np.random.default_rng(1).normal(size=(1, 3, size, size)).astype(np.float32)
    (features,) = backend.keep_images(pixels)
    cache, found = backend.new_cache(1, 2 * count), []
    for tokens, picture in ((11, Placed(features, 4, 0, 7)), (count, Placed(features, 0, 7, count - 7))):
        start = np.array([cache.length])
        call = (start + np.arange(tokens)[None], start, np.array([[tokens - 1]]), [picture])
        found.append(backend.decode(cache, embeds(backend, tokens), *call))
    return np.concatenate(found, axis=1)


def rows_of_different_length(backend: Backend) -> np.ndarray:
    """Logits [3, 6, V] of six tokens behind 10, 64 and 33 others in a batch, which begins with copies of one cache."""
    one, batch = backend.new_cache(1, 128), backend.new_cache(3, 128)
    decode(backend, one, 64)
    for row, tokens in enumerate((10, 64, 33)):
        backend.copy_cache(one, batch, tokens, row=row)
    steps = [decode(backend, batch, 1, write=[10 + i, 64 + i, 33 + i], seed=i) for i in range(6)]
    return np.concatenate(steps, axis=1)


def assert_close(found: np.ndarray, expected: np.ndarray, share: float = 0.01) -> None:
    """Check that values differ by no more than a share of the largest one; 1 % is what fp16 leaves open."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * float(np.abs(expected).max()))


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Check that values are the same but for the order of float32 sums."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def both(*backends: Backend, batch: int = 1, capacity: int = 64) -> list[tuple[Backend, KVCache]]:
    """Each backend with a new cache."""
    return [(side, side.new_cache(batch, capacity)) for side in backends]
