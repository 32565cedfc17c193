from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.graphs import data_file as weights
from qwenvl_edge_export.graphs.data_file import ALIGNMENT_BYTES, WeightFile, float_pieces


@pytest.fixture
def checkpoint(small_checkpoint) -> Checkpoint:
    return Checkpoint.open(small_checkpoint(dtype=torch.bfloat16))


def test_tensors_lie_where_the_plan_says(checkpoint, tmp_path):
    names = ["transformer.ln_f.weight", "lm_head.weight", "transformer.h.0.attn.c_attn.bias"]
    file = WeightFile("some.data", checkpoint)
    planned = [file.stored(name) for name in names]
    assert file.stored(names[0]).offset == planned[0].offset  # a name is planned once
    counted: list[int] = []
    info = file.write(tmp_path, counted.append)
    data = (tmp_path / "some.data").read_bytes()
    assert len(data) == info.size == file.size_bytes == sum(counted)
    assert hashlib.sha256(data).hexdigest() == info.sha256
    for name, tensor in zip(names, planned, strict=True):
        assert tensor.offset % ALIGNMENT_BYTES == 0
        values = np.frombuffer(data, "<f4", count=tensor.length // 4, offset=tensor.offset)
        np.testing.assert_array_equal(values, checkpoint.tensor(name).float().flatten())


def test_tensors_that_are_put_into_the_file_before(checkpoint, tmp_path):
    """They are hashed as they are; the others, and what lies between, are written."""
    names = ["transformer.ln_f.weight", "lm_head.weight", "transformer.h.0.attn.c_attn.bias"]
    file = WeightFile("some.data", checkpoint)
    for name in names:
        file.stored(name)
    (tmp_path / "other").mkdir()
    expected = file.write(tmp_path / "other", lambda count: None)
    assert not file.is_begun(tmp_path)
    file.begin(tmp_path)
    file.put(tmp_path, {names[1]: float_pieces(names[1], checkpoint.tensor(names[1]))})
    assert file.is_begun(tmp_path) and file.bytes_of([names[1]]) == 4 * checkpoint.tensor(names[1]).numel()
    counted: list[int] = []
    assert file.write(tmp_path, counted.append, [names[1]]) == expected
    assert sum(counted) == expected.size
    assert (tmp_path / "some.data").read_bytes() == (tmp_path / "other" / "some.data").read_bytes()


def test_values_are_read_when_the_file_is_written(checkpoint, tmp_path):
    reads: list[str] = []

    def read() -> torch.Tensor:
        reads.append("read")
        return torch.ones(2, 3)

    file = WeightFile("some.data", checkpoint)
    file.computed("ones", (2, 3), read)
    file.computed("ones", (2, 3), read)
    assert not reads
    file.write(tmp_path, lambda count: None)
    assert reads == ["read"]


def test_pieces_join_to_the_tensor(monkeypatch):
    monkeypatch.setattr(weights, "_PIECE_ELEMENTS", 100)
    tensor = torch.randn(30, 11).T
    pieces = list(float_pieces("x", tensor))
    assert [len(piece) for piece in pieces] == [400, 400, 400, 120]
    np.testing.assert_array_equal(np.frombuffer(b"".join(pieces), "<f4").reshape(11, 30), tensor)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_values_that_are_not_finite(value):
    with pytest.raises(CheckpointError, match="the tensor x holds NaN or infinity"):
        list(float_pieces("x", torch.tensor([1.0, value])))


def test_the_largest_bfloat16_is_finite():
    largest = torch.finfo(torch.bfloat16).max
    (piece,) = float_pieces("x", torch.tensor([largest], dtype=torch.bfloat16))
    assert np.frombuffer(piece, "<f4")[0] == np.float32(largest)
