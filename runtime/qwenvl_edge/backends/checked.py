"""A decode call as every backend here makes it: its arguments are checked, it runs, its logits are checked."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.base import (
    Backend,
    Features,
    FloatArray,
    IntArray,
    Placed,
    check_finite,
    check_placed,
    check_tokens,
)
from qwenvl_edge.backends.kv_cache import KVCache
from qwenvl_edge.bundle.contract import INPUTS_EMBEDS, LOGITS_INDICES, POSITION_IDS, WRITE_INDICES
from qwenvl_edge.errors import BackendError

Inputs = Mapping[str, npt.NDArray[Any]]


class CheckedBackend(Backend):
    """A backend that says how a checked call is run and how a cache is cleared. kind: of the features that it takes."""

    kind: type[Features]

    @abstractmethod
    def _decode(self, cache: KVCache, inputs: Inputs, pictures: Sequence[Placed], length: int) -> FloatArray:
        """Checked inputs of decode, by their names -> logits, unchecked; the cache then holds `length` tokens."""

    @abstractmethod
    def _clear(self, cache: KVCache) -> None:
        """Fill a cache's memory with zeros."""

    def decode(
        self,
        cache: KVCache,
        inputs_embeds: FloatArray,
        position_ids: IntArray,
        write_indices: IntArray,
        logits_indices: IntArray,
        pictures: Sequence[Placed] = (),
    ) -> FloatArray:
        """See Backend.decode."""
        inputs: Inputs = {
            INPUTS_EMBEDS: inputs_embeds,
            POSITION_IDS: position_ids,
            WRITE_INDICES: write_indices,
            LOGITS_INDICES: logits_indices,
        }
        check_tokens(self.model, cache, **inputs)
        tokens = inputs_embeds.shape[1]
        check_placed(pictures, tokens, self.kind)
        length = int(np.max(write_indices)) + tokens
        logits = self._decode(cache, inputs, pictures, length)
        try:
            check_finite(logits, "logits")
        except BackendError:
            # What the mask hides may still be multiplied by zero, so NaN in the cache would come back.
            self._clear(cache)
            cache.length = 0
            raise
        cache.length = length
        return logits
