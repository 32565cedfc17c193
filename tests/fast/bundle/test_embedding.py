"""The embedding table gives the float32 values of what is stored, in each dtype that a bundle may have."""

import numpy as np
import pytest

from qwenvl_edge.bundle.embedding import EMBEDDING_DTYPES, EmbeddingTable, embedding_bytes

VALUES = np.array([[0.0, -1.5], [3.0, 2.0**-20], [-0.0, 0.15625]], np.float32)  # exact in each dtype


def stored(dtype: str) -> bytes:
    if dtype == "bfloat16":
        return (VALUES.view("<u4") >> 16).astype("<u2").tobytes()
    return VALUES.astype(np.dtype(dtype).newbyteorder("<")).tobytes()


@pytest.mark.parametrize("dtype", EMBEDDING_DTYPES)
def test_rows(tmp_path, dtype):
    path = tmp_path / "embedding.bin"
    path.write_bytes(stored(dtype))
    assert path.stat().st_size == embedding_bytes(dtype, VALUES.shape)
    table = EmbeddingTable(path, dtype, VALUES.shape)
    ids = np.array([[2, 0], [1, 1]])
    assert table[ids].dtype == np.float32
    assert table[ids].tobytes() == VALUES[ids].tobytes()
    assigned = np.full((2, 2, 2), np.nan, np.float32)
    assigned[...] = table.stored[ids]
    assert assigned.tobytes() == VALUES[ids].tobytes()
