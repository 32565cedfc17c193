"""Several sequences decoded together, one token each a call."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.base import Backend
from qwenvl_edge.backends.kv_cache import KVCache
from qwenvl_edge.bundle.embedding import EmbeddingTable
from qwenvl_edge.decoding.token_sequence import Sequence

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
        self._first_rows: dict[int, KVCache] = {}

    @property
    def capacity(self) -> int:
        """Tokens that fit into a row."""
        return self._cache.capacity

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
        """Free a row: it is computed for nothing, as its first token, as long as rows behind it go on."""
        self._sequences[row] = None
        self._write[row] = 0

    def move(self, row: int, target: int) -> bool:
        """Let a row go on as the free row `target`; return False, and do nothing, if the backend cannot."""
        if not self._copy(self, row, target):
            return False
        self.end(row)
        return True

    def take_over(self, other: BatchDecoder) -> None:
        """Go on with all rows of another batch, at the same places; for backends that can tell rows apart."""
        for row, sequence in enumerate(other._sequences):
            if sequence is not None:
                self._copy(other, row, row)

    def _copy(self, other: BatchDecoder, row: int, target: int) -> bool:
        source = self._backend.rows(other._cache, row, 1)
        if source is None:
            return False
        self._backend.copy_cache(source, self._cache, other._computed[row], row=target)
        self._computed[target] = other._computed[row]
        self._sequences[target] = other._sequences[row]
        return True

    def step(self) -> FloatArray:
        """Compute the next appended token of each row; return the logits [R, V] after them, R behind the last row."""
        for row, sequence in enumerate(self._sequences):
            if sequence is not None:
                self._write[row] = self._computed[row]
                self._tokens[row] = sequence.tokens[self._computed[row]]
                self._computed[row] += 1
        cache = self._rows_in_use()
        tokens, write = self._tokens[: cache.batch, None], self._write[: cache.batch]
        logits = self._backend.decode(
            cache, self._embedding[tokens], write[:, None].copy(), write, self._wanted[: cache.batch]
        )
        self._cache.length = cache.length
        return logits[:, 0, : self._decodable]

    def _rows_in_use(self) -> KVCache:
        """The cache up to the last row that goes on, or all of it."""
        count = 1 + max((row for row, sequence in enumerate(self._sequences) if sequence is not None), default=0)
        if count == self._cache.batch:
            return self._cache
        if count not in self._first_rows:
            self._first_rows[count] = self._backend.rows(self._cache, 0, count) or self._cache
        cache = self._first_rows[count]
        cache.length = self._cache.length
        return cache
