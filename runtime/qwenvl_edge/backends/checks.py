"""Checks of what backends are given. Each raises an error of one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from qwenvl_edge.bundle.contract import (
    INPUTS_EMBEDS,
    LOGITS_INDICES,
    PIXEL_VALUES,
    QUERY_SCALE,
    ROPE_COS,
    ROPE_SIN,
    WRITE_INDICES,
)
from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.errors import BackendError, ContextError
from qwenvl_edge.families.base import RotaryRows

if TYPE_CHECKING:
    from qwenvl_edge.backends.base import Features, Placed

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class CacheSize(Protocol):
    """The size of a KV cache, as KVCache has it: rows, tokens that fit into each, and tokens in the longest."""

    batch: int
    capacity: int
    length: int


def check_cache_size(batch: int, capacity: int) -> None:
    """Check the arguments of new_cache. Raises BackendError if there is less than one row or token."""
    if batch < 1 or capacity < 1:
        raise BackendError(f"a KV cache needs a batch and a capacity of at least 1, not {batch} and {capacity}.")


def check_pixels(pixel_values: FloatArray, side: int) -> None:
    """Check preprocessed pictures of `side` pixels.

    Raises:
        BackendError: the array is not [N, 3, side, side] float32 with N >= 1.
    """
    _check(PIXEL_VALUES, pixel_values, np.dtype(np.float32), (None, 3, side, side))
    if not len(pixel_values):
        raise BackendError("pixel_values holds no picture; pass at least one.")


def check_tokens(
    model: ModelInfo,
    cache: CacheSize,
    *,
    inputs_embeds: FloatArray,
    rotary: RotaryRows,
    write_indices: IntArray,
    logits_indices: IntArray,
) -> None:
    """Check the arguments of decode against the model and the cache.

    Raises:
        BackendError: an array has the wrong shape, dtype or range.
        ContextError: the tokens do not fit into the cache.
    """
    batch, int64 = cache.batch, np.dtype(np.int64)
    _check(INPUTS_EMBEDS, inputs_embeds, np.dtype(np.float32), (batch, None, model.hidden_size))
    tokens = inputs_embeds.shape[1]
    if not tokens:
        raise BackendError("inputs_embeds holds no token; pass at least one.")
    for name, rows in ((ROPE_COS, rotary.cos), (ROPE_SIN, rotary.sin)):
        _check(name, rows, np.dtype(np.float32), (batch, tokens, model.head_dim // 2))
    if rotary.query_scale is not None:
        _check(QUERY_SCALE, rotary.query_scale, np.dtype(np.float32), (batch, tokens))
    _check(WRITE_INDICES, write_indices, int64, (batch,))
    _check(LOGITS_INDICES, logits_indices, int64, (batch, None))
    _check_range(WRITE_INDICES, write_indices, cache.length + 1, "the tokens in the cache")
    check_room(cache, int(write_indices.max()) + tokens)
    _check_range(LOGITS_INDICES, logits_indices, tokens, "the tokens of this call")


def check_room(cache: CacheSize, needed: int) -> None:
    """Check that `needed` tokens fit into a row of the cache. Raises ContextError that says by how many they do not."""
    if needed > cache.capacity:
        raise ContextError(
            f"{needed:,} tokens do not fit into a KV cache of {cache.capacity:,}: {needed - cache.capacity:,} too many."
        )


def check_placed(pictures: Sequence[Placed], tokens: int, features_type: type[Features]) -> None:
    """Check the pictures of a call of `tokens` tokens.

    Raises:
        BackendError: features are not of `features_type`, or lie outside the call or their picture.
    """
    for picture in pictures:
        if not isinstance(picture.features, features_type):
            raise BackendError("the pictures have features of another backend; encode them with this one.")
        at, first, count = picture.at, picture.first, picture.count
        if min(at, first, count - 1) < 0 or at + count > tokens or first + count > len(picture.features):
            raise BackendError(
                f"features {first}..{first + count - 1} at token {at} do not fit {tokens} tokens and "
                f"{len(picture.features)} rows of features."
            )


def check_copy(source: CacheSize, target: CacheSize, tokens: int, row: int) -> None:
    """Check the arguments of copy_cache.

    Raises:
        BackendError: the caches do not fit together, or `source` holds fewer tokens.
    """
    if source.batch != 1 or not 0 <= row < target.batch:
        raise BackendError(
            f"cannot copy a cache of batch {source.batch} into row {row} of one of batch {target.batch}; copy one row."
        )
    if not 0 <= tokens <= min(source.length, target.capacity):
        raise BackendError(
            f"cannot copy {tokens:,} tokens of a cache that holds {source.length:,} into one of {target.capacity:,}."
        )


def _check(
    name: str, array: npt.NDArray[np.generic], dtype: np.dtype[np.generic], shape: tuple[int | None, ...]
) -> None:
    fits = len(array.shape) == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype != dtype:
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        found = ", ".join(map(str, array.shape))
        raise BackendError(f"{name} must be {dtype} [{wanted}], not {array.dtype} [{found}].")


def _check_range(name: str, values: IntArray, end: int, allowed: str) -> None:
    if not values.size:
        return
    low, high = values.min(), values.max()
    if low < 0 or high >= end:
        raise BackendError(f"{name} must lie in 0..{end - 1} ({allowed}); found {low}..{high}.")
