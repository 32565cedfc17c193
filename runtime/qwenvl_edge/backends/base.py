"""The interface between the engine and whatever runs the graphs."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.checks import check_placed, check_room, check_tokens
from qwenvl_edge.backends.kept import cache_bytes
from qwenvl_edge.bundle.contract import (
    DEEPSTACK,
    INPUTS_EMBEDS,
    LOGITS_INDICES,
    QUERY_SCALE,
    ROPE_COS,
    ROPE_SIN,
    WRITE_INDICES,
)
from qwenvl_edge.bundle.hashing import LargeFile
from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.errors import BackendError, ContextError
from qwenvl_edge.families.base import Positions, RotaryRows
from qwenvl_edge.inputs.clips import Visual
from qwenvl_edge.inputs.pictures import ChannelOrder, Picture
from qwenvl_edge.machine.forks import NotPicklable

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Inputs = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class BackendLimits:
    """Upper limits of a backend; None: only the model limits it.

    max_context: tokens of a cache. max_batch: rows of a cache.
    """

    max_context: int | None = None
    max_batch: int | None = None


class KVCache:
    """Keys and values of `batch` rows with room for `capacity` tokens each.

    Keys are cached after rotary embedding, so a prompt may continue a cache only if its positions have an equal key:
    that of the last `reset`. A batch's rows may have different positions; its cache has no key.

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


class Features(Protocol):
    """One picture's features [Q, H] float32 in the memory of their backend; on a CPU a NumPy array or DeepFeatures."""

    def __len__(self) -> int:
        """Number of rows Q."""


@dataclass(frozen=True)
class DeepFeatures:
    """Features on a CPU of models with deepstack layers: rows [Q, H] and, for each such layer, deepstack [L, Q, H]."""

    rows: FloatArray
    deepstack: FloatArray

    def __len__(self) -> int:
        """Number of rows Q."""
        return len(self.rows)


@dataclass(frozen=True)
class Placed:
    """`count` rows of a picture's features, from row `first` on, that replace a call's tokens from token `at` on."""

    features: Any  # Features, of this backend's own type
    at: int
    first: int
    count: int


class Backend(NotPicklable, ABC):
    """Runs a bundle's two graphs. B batch, T tokens of a call, K tokens of a call that need logits, V vocabulary.

    A backend implements encode, new_cache, copy_cache, _decode and _clear; the rest has defaults.

    model: dimensions of the bundle's model. description: backend and device, for people. limits: upper limits of its
    caches. features_type: the type of features that encode returns and decode takes. unhashed: files beside the
    bundle's that it computes with and whose SHA-256 is not known yet.
    """

    model: ModelInfo
    description: str = "a backend of the caller's"
    limits: BackendLimits = BackendLimits()
    features_type: type[Features] = np.ndarray
    unhashed: tuple[LargeFile, ...] = ()

    def describe(self) -> str:
        """The description, with what has become known since the backend was opened."""
        return self.description

    @abstractmethod
    def encode(self, picture: Visual) -> Features:
        """Resize, normalise and encode a picture or clip; its features live as long as somebody holds them.

        Raises:
            BackendError: the library failed, or the features hold NaN or infinity.
        """

    def load_frame(self, source: Any, channel_order: ChannelOrder, name: str) -> Picture | None:
        """Make a picture in this backend's memory of a source whose pixels lie there; None: it is not such a source.

        Arguments are those of inputs.pictures.load_picture. Unlike the other methods, any thread may call it at any
        time.

        Raises:
            ImageError: as load_picture.
        """
        return None

    @abstractmethod
    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """Reserve an empty cache of `batch` rows with room for `capacity` tokens each.

        Raises:
            BackendError: there is not enough memory.
        """

    def cache_bytes(self, capacity: int) -> int:
        """Memory that new_cache(1, capacity) takes; by default that of float32 keys and values."""
        return cache_bytes(self.model, capacity)

    @abstractmethod
    def copy_cache(self, source: KVCache, target: KVCache, tokens: int, *, row: int = 0) -> None:
        """Copy the first `tokens` tokens of a batch-1 cache into row `row` of another.

        `target.length` becomes at least `tokens`.

        Raises:
            BackendError: the caches do not fit together, or `source` holds fewer tokens.
        """

    def rows(self, cache: KVCache, start: int, count: int) -> KVCache | None:
        """View `count` rows of a cache, from row `start` on, as a cache at the same memory; None: not possible here.

        The view begins with the cache's length and then keeps its own.
        """
        return None

    def decode(
        self,
        cache: KVCache,
        inputs_embeds: FloatArray,
        rotary: RotaryRows,
        write_indices: IntArray,
        logits_indices: IntArray,
        pictures: Sequence[Placed] = (),
    ) -> FloatArray:
        """Run T new tokens per row through the decoder; their keys and values are written into `cache`.

        Args:
            cache: from this backend's new_cache.
            inputs_embeds: [B, T, H] float32.
            rotary: cosines and sines [B, T, D / 2] of the tokens; query_scale [B, T] where the family has one.
            write_indices: [B] int64, the cache position of each row's first token: the number of tokens before it. A
                smaller value than before drops the later tokens.
            logits_indices: [B, K] int64, the tokens of this call that need logits; K may be 0.
            pictures: features from this backend's `encode` that replace tokens of the first row; those tokens'
                embeddings may be overwritten.

        Returns:
            Logits [B, K, V] float32. `cache.length` becomes max(write_indices) + T.

        Raises:
            BackendError: wrong shapes or dtypes, the library failed, or the logits hold NaN or infinity.
            ContextError: the tokens do not fit into the cache.
        """
        check_tokens(
            self.model,
            cache,
            inputs_embeds=inputs_embeds,
            rotary=rotary,
            write_indices=write_indices,
            logits_indices=logits_indices,
        )
        check_placed(pictures, inputs_embeds.shape[1], self.features_type)
        return self.decode_unchecked(cache, inputs_embeds, rotary, write_indices, logits_indices, pictures)

    def decode_unchecked(
        self,
        cache: KVCache,
        inputs_embeds: FloatArray,
        rotary: RotaryRows,
        write_indices: IntArray,
        logits_indices: IntArray,
        pictures: Sequence[Placed] = (),
    ) -> FloatArray:
        """Decode without checking shapes, dtypes and ranges: for the engine, which builds the arrays itself.

        At every token of an answer the checks would cost more Python than the call itself. Still checked are the room
        in the cache, because a write beyond it would corrupt memory, and the logits.
        """
        length = max(write_indices.tolist()) + inputs_embeds.shape[1]
        if length > cache.capacity:
            check_room(cache, length)
        inputs: dict[str, npt.NDArray[Any]] = {
            INPUTS_EMBEDS: inputs_embeds,
            ROPE_COS: rotary.cos,
            ROPE_SIN: rotary.sin,
            WRITE_INDICES: write_indices,
            LOGITS_INDICES: logits_indices,
        }
        if rotary.query_scale is not None:
            inputs[QUERY_SCALE] = rotary.query_scale
        if self.model.deepstack_layers:
            inputs[DEEPSTACK] = no_deepstack(self.model.deepstack_layers, self.model.hidden_size)
        logits = self._decode(cache, inputs, pictures, length)
        expected = (*logits_indices.shape, self.model.vocab_size)
        if logits.shape != expected or logits.dtype != np.float32:
            raise BackendError(
                f"{self.description} returned logits of {logits.dtype} {list(logits.shape)}; they must be float32 "
                f"{list(expected)}."
            )
        try:
            check_finite(logits, "logits")
        except BackendError:
            # Attention may multiply masked tokens by zero, so NaN left in the cache would come back.
            self._clear(cache)
            cache.length = 0
            raise
        cache.length = length
        return logits

    @abstractmethod
    def _decode(self, cache: KVCache, inputs: Inputs, pictures: Sequence[Placed], length: int) -> FloatArray:
        """Run the decoder on the arguments of decode, by input name; return logits [B, K, V] float32, unchecked.

        length: tokens in the longest row after the call. The caller sets `cache.length`.

        Raises:
            BackendError: the library failed, or cannot run such a call.
        """

    @abstractmethod
    def _clear(self, cache: KVCache) -> None:
        """Fill a cache's memory with zeros."""


def check_finite(values: FloatArray, stage: str) -> None:
    """Check a graph's output, which `stage` names in the message ("logits").

    Raises:
        BackendError: `values` holds NaN or infinity.
    """
    if not np.isfinite(values).all():
        raise BackendError(
            f"the {stage} hold NaN or infinity: the weights or the input are broken, or the precision overflows; "
            "check the bundle with `qwenvl verify`."
        )


def check_features(features: Features, rows: int, features_type: type[Features]) -> None:
    """Check the features that `encode` returned.

    Raises:
        BackendError: they are not of the type that decode takes, or not `rows` rows.
    """
    if not isinstance(features, features_type):
        raise BackendError(
            f"the backend encoded a picture to a {type(features).__name__}, but its decode takes a "
            f"{features_type.__name__}."
        )
    if len(features) != rows:
        raise BackendError(f"the backend encoded a picture to {len(features)} rows, but it takes {rows} in the prompt.")


def splice(inputs: dict[str, npt.NDArray[Any]], pictures: Sequence[Placed]) -> None:
    """Write features that lie on the CPU over the embeddings [B, T, H] of the first row, and into the deepstack rows.

    inputs: of `_decode`. Rows for deepstack layers come in an array [L, B, T, H] of their own.
    """
    embeds = inputs[INPUTS_EMBEDS]
    deepstack = inputs.get(DEEPSTACK)
    if deepstack is not None:
        deepstack = inputs[DEEPSTACK] = np.zeros((len(deepstack), *embeds.shape), np.float32)
    for picture in pictures:
        features, at = picture.features, slice(picture.at, picture.at + picture.count)
        taken = slice(picture.first, picture.first + picture.count)
        embeds[0, at] = (features.rows if isinstance(features, DeepFeatures) else features)[taken]
        if deepstack is not None and isinstance(features, DeepFeatures):
            deepstack[:, 0, at] = features.deepstack[:, taken]


@functools.lru_cache(maxsize=4)
def no_deepstack(layers: int, width: int) -> FloatArray:
    """Return the deepstack input of calls without pictures, zeros [L, 1, 1, H]."""
    return np.zeros((layers, 1, 1, width), np.float32)
