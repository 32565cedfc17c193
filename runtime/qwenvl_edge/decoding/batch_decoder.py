"""Several sequences decoded together: one token of each per call."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.base import KVCache
from qwenvl_edge.decoding.sequence_decoder import SequenceDecoder, TokenSequence
from qwenvl_edge.families.base import Positions

FloatArray = npt.NDArray[np.float32]


class BatchDecoder:
    """Rows that a SequenceDecoder prefilled one after another, each with its own positions.

    Args:
        decoder: prefills the prompts; its backend computes the batch.
        rows: how many there are.
        capacity: tokens that fit into a row.
    """

    def __init__(self, decoder: SequenceDecoder, *, rows: int, capacity: int) -> None:
        self._decoder = decoder
        self._backend = decoder.backend
        self._cache = self._backend.new_cache(rows, capacity)
        self._sequences: list[TokenSequence | None] = [None] * rows
        self._positions: list[Positions] = [decoder.positions] * rows
        self._rotary = decoder.positions.rows(0, 1).repeated(rows)
        self._tokens = np.zeros(rows, np.int64)
        self._write = np.zeros(rows, np.int64)
        self._computed = [0] * rows
        self._wanted = np.zeros((rows, 1), np.int64)
        self._first_rows: dict[int, KVCache] = {}

    @property
    def capacity(self) -> int:
        """Tokens that fit into a row."""
        return self._cache.capacity

    def put(self, row: int) -> None:
        """Let the sequence that was prefilled last go on as a row: its cache is copied, its ids are shared."""
        cache = self._decoder.cache
        self._backend.copy_cache(cache, self._cache, cache.length, row=row)
        self._sequences[row] = self._decoder.sequence
        self._positions[row] = self._decoder.positions
        self._computed[row] = cache.length

    def caught_up(self, row: int) -> bool:
        """Return whether all tokens of a row are computed, so that its logits are those of the next token."""
        sequence = self._sequences[row]
        return sequence is not None and self._computed[row] == len(sequence)

    def end(self, row: int) -> None:
        """Free a row. While rows after it are in use it is still computed, to no purpose, as a row of one token."""
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

    def step(self) -> FloatArray:
        """Compute the next appended token of each row.

        Returns the logits [R, V] after them; R counts the rows up to the last one in use.
        """
        for row, sequence in enumerate(self._sequences):
            if sequence is not None:
                self._write[row] = self._computed[row]
                self._tokens[row] = sequence.tokens[self._computed[row]]
                self._rotary.put(row, self._positions[row].rows(self._write[row].item(), 1))
                self._computed[row] += 1
        cache = self._rows_in_use()
        tokens, write = self._tokens[: cache.batch, None], self._write[: cache.batch]
        rotary = self._rotary.first(cache.batch)
        logits = self._backend.decode_unchecked(
            cache, self._decoder.embedding[tokens], rotary, write, self._wanted[: cache.batch]
        )
        self._cache.length = cache.length
        return logits[:, 0, : self._decoder.decodable]

    def _copy(self, other: BatchDecoder, row: int, target: int) -> bool:
        source = self._backend.rows(other._cache, row, 1)
        if source is None:
            return False
        self._backend.copy_cache(source, self._cache, other._computed[row], row=target)
        self._computed[target] = other._computed[row]
        self._sequences[target] = other._sequences[row]
        self._positions[target] = other._positions[row]
        return True

    def _rows_in_use(self) -> KVCache:
        """Return the cache up to the last row in use, or all of it where the backend cannot give a part."""
        count = 1 + max((row for row, sequence in enumerate(self._sequences) if sequence is not None), default=0)
        if count == self._cache.batch:
            return self._cache
        if count not in self._first_rows:
            self._first_rows[count] = self._backend.rows(self._cache, 0, count) or self._cache
        cache = self._first_rows[count]
        cache.length = self._cache.length
        return cache


def can_grow(decoder: SequenceDecoder) -> bool:
    """Return whether the rows of a batch can go on in a larger one, with `take_over`."""
    return decoder.backend.rows(decoder.cache, 0, 1) is not None
