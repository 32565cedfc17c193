"""Short calls of a backend, for tests that compare backends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from qwenvl_edge.backends.base import Backend, KVCache, Placed
from qwenvl_edge.families.base import RotaryRows
from qwenvl_edge.inputs.pictures import Picture, load_picture


def embeds(backend: Backend, tokens: int, batch: int = 1, seed: int = 0) -> np.ndarray:
    """Random embeddings [B, T, H]."""
    shape = (batch, tokens, backend.model.hidden_size)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rotary(backend: Backend, places: Iterable[int], tokens: int, prompt: int = 1) -> RotaryRows:
    """Rows [B, T, D / 2] of T tokens from the places [B] on, for prompts of so many tokens."""
    positions = backend.family.positions(prompt)
    rows = [positions.rows(int(place), tokens) for place in places]
    return RotaryRows(*(None if parts[0] is None else np.concatenate(parts) for parts in zip(*rows, strict=True)))


def decode(
    backend: Backend,
    cache: KVCache,
    rows: int | np.ndarray,
    *,
    write: int | Sequence[int] | None = None,
    wanted: Sequence[int] | None = None,
    seed: int = 0,
    prompt: int = 1,
) -> np.ndarray:
    """Decode rows [B, T, H], or that many random ones; logits [B, K, V].

    write: the cache position of the first token, one for all rows or one per row; None: after the tokens in the cache.
    wanted: the tokens whose logits are returned; None: the last one. prompt: the length of the prompt, for positions.
    """
    rows = embeds(backend, rows, cache.batch, seed) if isinstance(rows, int) else rows
    tokens = rows.shape[1]
    places = np.broadcast_to(np.array(cache.length if write is None else write), (cache.batch,)).astype(np.int64)
    indices = np.tile(np.array([tokens - 1] if wanted is None else wanted, np.int64), (cache.batch, 1))
    return backend.decode(cache, rows, rotary(backend, places, tokens, prompt), places, indices)


def noise(seed: int) -> Picture:
    """A picture of random pixels."""
    return load_picture(np.random.default_rng(seed).integers(0, 256, (61, 87, 3), np.uint8))


def pictured(backend: Backend) -> np.ndarray:
    """Logits [1, 2, V] after a picture of noise whose features come in two calls."""
    features = backend.encode(noise(1))
    count = len(features)
    cache, found = backend.new_cache(1, 2 * count), []
    for tokens, picture in ((11, Placed(features, 4, 0, 7)), (count, Placed(features, 0, 7, count - 7))):
        start = np.array([cache.length])
        call = (rotary(backend, start, tokens), start, np.array([[tokens - 1]]), [picture])
        found.append(backend.decode(cache, embeds(backend, tokens), *call))
    return np.concatenate(found, axis=1)


def rows_of_different_length(backend: Backend) -> np.ndarray:
    """Logits [3, 6, V] of six tokens after 10, 64 and 33 others in a batch, which begins with copies of one cache."""
    one, batch = backend.new_cache(1, 128), backend.new_cache(3, 128)
    decode(backend, one, 64)
    for row, tokens in enumerate((10, 64, 33)):
        backend.copy_cache(one, batch, tokens, row=row)
    steps = [decode(backend, batch, 1, write=[10 + i, 64 + i, 33 + i], seed=i) for i in range(6)]
    return np.concatenate(steps, axis=1)


def assert_close(found: np.ndarray, expected: np.ndarray, share: float = 0.01) -> None:
    """Check that values differ by no more than a share of the largest one; 1 % covers the rounding of fp16."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * float(np.abs(expected).max()))


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Check that values are equal, up to the order of float32 sums."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def both(*backends: Backend, batch: int = 1, capacity: int = 64) -> list[tuple[Backend, KVCache]]:
    """Each backend with a new cache."""
    return [(side, side.new_cache(batch, capacity)) for side in backends]
