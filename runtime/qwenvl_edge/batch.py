"""Several sequences decoded together, one token each a call."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.base import Backend
from qwenvl_edge.embedding import EmbeddingTable
from qwenvl_edge.kv_cache import KVCache
from qwenvl_edge.sequence import Sequence

FloatArray = npt.NDArray[np.float32]


class BatchDecoder:
    """Rows that were prefilled elsewhere and copied in; all of them belong to one dynamic-NTK factor.

    Args:
        rows: how many there are.
        prompt_length: the length of any of the prompts, which chooses that factor.
        capacity: tokens that fit into a row.
    """

    def __init__(
        self,
        backend: Backend,
        embedding: EmbeddingTable,
        *,
        rows: int,
        prompt_length: int,
        capacity: int,
        decodable: int,
    ) -> None:
        self._backend = backend
        self._embedding = embedding
        self._decodable = decodable
        self._cache = backend.new_cache(rows, capacity)
        self._cache.reset(prompt_length)
        self._sequences: list[Sequence | None] = [None] * rows
        self._tokens = np.zeros(rows, np.int64)
        self._write = np.zeros(rows, np.int64)
        self._computed = [0] * rows
        self._wanted = np.zeros((rows, 1), np.int64)

    def put(self, row: int, cache: KVCache, sequence: Sequence) -> None:
        """Copy a prefilled cache of batch 1 into a row; `sequence` is what it holds and what will be appended."""
        self._backend.copy_cache(cache, self._cache, cache.length, row=row)
        self._sequences[row] = sequence
        self._computed[row] = cache.length

    def caught_up(self, row: int) -> bool:
        """Whether all tokens of a row are computed, so that its logits are those of the next one."""
        sequence = self._sequences[row]
        return sequence is not None and self._computed[row] == len(sequence)

    def end(self, row: int) -> None:
        """Compute nothing of use for this row any more; it stays where it is until the batch ends."""
        self._sequences[row] = None

    def step(self) -> FloatArray:
        """Compute the next appended token of each row; return the logits [rows, V] after them."""
        for row, sequence in enumerate(self._sequences):
            if sequence is not None:
                self._write[row] = self._computed[row]
                self._tokens[row] = sequence.tokens[self._computed[row]]
                self._computed[row] += 1
        logits = self._backend.decode(
            self._cache, self._embedding[self._tokens[:, None]], self._write[:, None].copy(), self._write, self._wanted
        )
        return logits[:, 0, : self._decodable]
