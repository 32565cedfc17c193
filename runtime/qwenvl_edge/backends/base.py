"""The interface between the engine and whatever runs the graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.kv_cache import KVCache, cache_bytes
from qwenvl_edge.bundle.contract import INPUTS_EMBEDS, LOGITS_INDICES, PIXEL_VALUES, POSITION_IDS, WRITE_INDICES
from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.errors import BackendError, ContextError
from qwenvl_edge.inputs.pictures import ChannelOrder, Picture, Preprocessing, pixel_values

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """What a backend takes at most, None where only the model limits it.

    max_context: capacity of a cache. max_batch: rows of a cache.
    """

    max_context: int | None = None
    max_batch: int | None = None


class Features(Protocol):
    """One picture's features [Q, H], where their backend keeps them; a NumPy array from a backend on the CPU."""

    def __len__(self) -> int:
        """Q."""


@dataclass(frozen=True)
class Placed:
    """Features in place of tokens of a call: `count` of their rows from `first` on, at the call's token `at`."""

    features: Any  # Features, of this backend's own kind
    at: int
    first: int
    count: int


class Backend(ABC):
    """Runs a bundle's two graphs. B batch, T tokens of this call, K rows that need logits, V vocabulary.

    description: what runs them and where, for people.
    """

    model: ModelInfo
    description: str = "a backend of the caller's"
    limits: Limits = Limits()

    def describe(self) -> str:
        """The description, and what of it has changed since."""
        return self.description

    @abstractmethod
    def encode_images(self, pixel_values: FloatArray) -> FloatArray:
        """Preprocessed pictures [N, 3, S, S] float32 -> image features [N, Q, H] float32.

        Raises:
            BackendError: wrong shape or dtype, the library failed, or the features hold NaN or infinity.
        """

    def keep_images(self, pixel_values: FloatArray) -> Sequence[Features]:
        """As encode_images, but the features stay where `decode` takes them from; each lives as long as it is held.

        Raises:
            BackendError: as encode_images.
        """
        return list(self.encode_images(pixel_values).copy())  # does not depend on a buffer of the backend

    def keep_picture(self, picture: Picture, preprocessing: Preprocessing) -> Features:
        """As keep_images, of one picture, resized and normalised where this backend does that: here on the CPU.

        Raises:
            BackendError: as encode_images.
        """
        return self.keep_images(pixel_values(picture, preprocessing)[None])[0]

    def load_frame(self, source: Any, channel_order: ChannelOrder, name: str) -> Picture | None:
        """A picture in memory of this backend's, for a source whose pixels lie there; None: load it as any other.

        source, channel_order and name are those of image.load_picture. Unlike the rest it may be called by any thread
        at any time.

        Raises:
            ImageError: as image.load_picture.
        """
        return None

    @abstractmethod
    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` rows of at most `capacity` tokens, its memory reserved now.

        Raises:
            BackendError: the memory cannot be had.
        """

    def cache_bytes(self, capacity: int) -> int:
        """Memory that new_cache(1, capacity) takes; of float32 numbers, where a backend does not know better."""
        return cache_bytes(self.model, capacity)

    @abstractmethod
    def copy_cache(self, source: KVCache, target: KVCache, tokens: int, *, row: int = 0) -> None:
        """Copy the first `tokens` tokens of a batch-1 cache into row `row` of another with the same rotary tables.

        `target.length` becomes at least `tokens`.

        Raises:
            BackendError: the caches do not fit together, or `source` holds fewer tokens.
        """

    def rows(self, cache: KVCache, start: int, count: int) -> KVCache | None:
        """Some rows of a cache as a cache of their own at the same memory; None from a backend that has no such thing.

        Its length is the cache's at this moment and its own from then on.
        """
        return None

    @abstractmethod
    def decode(
        self,
        cache: KVCache,
        inputs_embeds: FloatArray,
        position_ids: IntArray,
        write_indices: IntArray,
        logits_indices: IntArray,
        pictures: Sequence[Placed] = (),
    ) -> FloatArray:
        """Run T new tokens a row through the decoder, writing their keys and values into `cache`.

        Args:
            cache: from this backend's new_cache, reset for the prompt.
            inputs_embeds: [B, T, H] float32.
            position_ids: [B, T] int64, 0-based.
            write_indices: [B] int64, the cache row of each row's first token: the tokens it already holds. A smaller
                value than before drops the tokens behind it.
            logits_indices: [B, K] int64, which of the T tokens need logits; K may be 0.
            pictures: features from this backend's keep_images that take the places of tokens of the first row, whose
                embeddings may be overwritten.

        Returns:
            Logits [B, K, V] float32. `cache.length` becomes max(write_indices) + T.

        Raises:
            BackendError: wrong shapes or dtypes, the library failed, or the logits hold NaN or infinity.
            ContextError: the tokens do not fit into the cache.
        """


def check_placed(pictures: Sequence[Placed], tokens: int, kind: type[Features]) -> None:
    """Check the pictures of a call of so many tokens; their features must be of a kind.

    Raises:
        BackendError: they are of another kind, or do not lie within the call or the features.
    """
    for picture in pictures:
        if not isinstance(picture.features, kind):
            raise BackendError(
                "the pictures have features of another backend; encode them with this one's keep_images."
            )
        at, first, count = picture.at, picture.first, picture.count
        if min(at, first, count - 1) < 0 or at + count > tokens or first + count > len(picture.features):
            raise BackendError(
                f"features {first}..{first + count - 1} at token {at} do not fit {tokens} tokens and "
                f"{len(picture.features)} rows of features."
            )


def splice(inputs_embeds: FloatArray, pictures: Sequence[Placed]) -> None:
    """Write checked features that are arrays over the embeddings of the first row."""
    for picture in pictures:
        rows = picture.features[picture.first : picture.first + picture.count]
        inputs_embeds[0, picture.at : picture.at + picture.count] = rows


def check_cache_size(batch: int, capacity: int) -> None:
    """Check what new_cache was given. Raises BackendError where it is less than one row or token."""
    if batch < 1 or capacity < 1:
        raise BackendError(f"a KV cache needs a batch and a capacity of at least 1, not {batch} and {capacity}.")


def check_pixels(model: ModelInfo, pixel_values: FloatArray) -> None:
    """Check what encode_images was given.

    Raises:
        BackendError: the array is not [N, 3, S, S] float32 with N >= 1.
    """
    size = model.image_size
    _check(PIXEL_VALUES, pixel_values, np.dtype(np.float32), (None, 3, size, size))
    if not len(pixel_values):
        raise BackendError("pixel_values holds no picture; pass at least one.")


def check_tokens(
    model: ModelInfo,
    cache: KVCache,
    *,
    inputs_embeds: FloatArray,
    position_ids: IntArray,
    write_indices: IntArray,
    logits_indices: IntArray,
) -> None:
    """Check what decode was given against the model and the cache.

    Raises:
        BackendError: an array has the wrong shape, dtype or range.
        ContextError: the tokens do not fit into the cache.
    """
    batch, int64 = cache.batch, np.dtype(np.int64)
    _check(INPUTS_EMBEDS, inputs_embeds, np.dtype(np.float32), (batch, None, model.hidden_size))
    tokens = inputs_embeds.shape[1]
    if not tokens:
        raise BackendError("inputs_embeds holds no token; pass at least one.")
    _check(POSITION_IDS, position_ids, int64, (batch, tokens))
    _check(WRITE_INDICES, write_indices, int64, (batch,))
    _check(LOGITS_INDICES, logits_indices, int64, (batch, None))
    _check_range(WRITE_INDICES, write_indices, cache.length + 1, "the tokens in the cache")
    if (needed := int(write_indices.max()) + tokens) > cache.capacity:
        raise ContextError(
            f"{needed:,} tokens do not fit into a KV cache of {cache.capacity:,}: {needed - cache.capacity:,} too many."
        )
    _check_range(POSITION_IDS, position_ids, cache.capacity, "the cache's capacity")
    _check_range(LOGITS_INDICES, logits_indices, tokens, "the tokens of this call")


def check_copy(source: KVCache, target: KVCache, tokens: int, row: int) -> None:
    """Check what copy_cache was given.

    Raises:
        BackendError: the caches do not fit together, or `source` holds fewer tokens.
    """
    if source.batch != 1 or not 0 <= row < target.batch or source.ntk_alpha != target.ntk_alpha:
        raise BackendError(
            f"cannot copy a cache of batch {source.batch} and NTK factor {source.ntk_alpha:g} into row {row} of one of "
            f"batch {target.batch} and factor {target.ntk_alpha:g}; copy one row between caches reset alike."
        )
    if not 0 <= tokens <= min(source.length, target.capacity):
        raise BackendError(
            f"cannot copy {tokens:,} tokens of a cache that holds {source.length:,} into one of {target.capacity:,}."
        )


def check_finite(values: FloatArray, stage: str) -> None:
    """Check that a graph's output can be used.

    Raises:
        BackendError: `values` holds NaN or infinity; names the stage.
    """
    if not np.isfinite(values).all():
        raise BackendError(
            f"the {stage} hold NaN or infinity: the weights or the input are broken, or the precision overflows; "
            "check the bundle with `qwenvl verify`."
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


def _check_range(name: str, values: IntArray, end: int, what: str) -> None:
    if not values.size:
        return
    # A reduction costs as much as a hundred plain comparisons, and a token's own step has but one value.
    low, high = (values.item(),) * 2 if values.size == 1 else (values.min(), values.max())
    if low < 0 or high >= end:
        raise BackendError(f"{name} must lie in 0..{end - 1} ({what}); found {low}..{high}.")
