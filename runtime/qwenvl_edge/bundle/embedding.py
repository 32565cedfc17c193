"""The embedding table: memory-mapped as it is stored, so that only the rows in use are ever read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_STORED = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}  # NumPy has no bfloat16: its bits, as integers
EMBEDDING_DTYPES = tuple(_STORED)


def embedding_bytes(dtype: str, shape: tuple[int, int]) -> int:
    """Return the size of a table's file."""
    return shape[0] * shape[1] * np.dtype(_STORED[dtype]).itemsize


class EmbeddingTable:
    """Rows of a raw little-endian table [V, H], picked by `table[ids]` and widened to float32."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, int]):
        self.shape = shape
        self._dtype = dtype
        self._table: npt.NDArray[Any] = np.asarray(np.memmap(path, dtype=_STORED[dtype], mode="r", shape=shape))

    @property
    def stored(self) -> npt.NDArray[Any] | EmbeddingTable:
        """The table whose rows `stored[ids]` an assignment to a float32 array widens, with no copy in between.

        It is the mapped array, but for bfloat16, which NumPy does not know: then it is this table.
        """
        return self if self._dtype == "bfloat16" else self._table

    def __getitem__(self, ids: Any) -> npt.NDArray[np.float32]:
        """Ids of any shape [...] -> float32 [..., H]."""
        rows = self._table[ids]
        if self._dtype == "bfloat16":
            rows = (rows.astype("<u4") << 16).view("<f4")
        wide: npt.NDArray[np.float32] = rows.astype(np.float32)
        return wide
