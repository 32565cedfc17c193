from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.graphs import stored as stored_module
from qwenvl_edge_export.graphs.builder import FLOAT
from qwenvl_edge_export.graphs.data_file import DataFile
from qwenvl_edge_export.graphs.roles import Weight, stored
from qwenvl_edge_export.graphs.stored import StoredFloats, float_pieces
from qwenvl_edge_export.graphs.weight_layout import ALIGNMENT_BYTES, WeightLayout

WEIGHTS = [
    stored("transformer.ln_f.weight", 128),
    stored("lm_head.weight", 480, 128),
    stored("transformer.h.0.attn.c_attn.bias", 384),
]
LAYOUT = WeightLayout("some.data", FLOAT, [StoredFloats(weight, FLOAT) for weight in (*WEIGHTS, WEIGHTS[0])])


@pytest.fixture
def checkpoint(small_checkpoint) -> Checkpoint:
    return Checkpoint.open(small_checkpoint(dtype=torch.bfloat16))


def test_tensors_lie_where_the_layout_says(checkpoint, tmp_path):
    assert [slot.name for _, entries in LAYOUT for slot in [entry.slot for entry in entries]] == [
        weight.name
        for weight in WEIGHTS  # a name has one place
    ]
    counted: list[int] = []
    info = DataFile(tmp_path, LAYOUT).write(checkpoint.tensor, counted.append)
    data = (tmp_path / "some.data").read_bytes()
    assert len(data) == info.size == LAYOUT.size_bytes == sum(counted)
    assert hashlib.sha256(data).hexdigest() == info.sha256
    for weight in WEIGHTS:
        tensor = LAYOUT.tensor(weight.name)
        assert tensor.offset % ALIGNMENT_BYTES == 0
        values = np.frombuffer(data, "<f4", count=tensor.length // 4, offset=tensor.offset)
        np.testing.assert_array_equal(values, checkpoint.tensor(weight.name).float().flatten())


def test_tensors_that_are_put_into_the_file_before(checkpoint, tmp_path):
    """They are hashed as they are; the others, and what lies between, are written."""
    (tmp_path / "other").mkdir()
    expected = DataFile(tmp_path / "other", LAYOUT).write(checkpoint.tensor, lambda count: None)
    file, name = DataFile(tmp_path, LAYOUT), WEIGHTS[1].name
    assert not file.is_begun()
    file.begin()
    file.put({name: float_pieces(name, checkpoint.tensor(name))})
    assert file.is_begun() and LAYOUT.bytes_of([name]) == 4 * checkpoint.tensor(name).numel()
    counted: list[int] = []
    assert file.write(checkpoint.tensor, counted.append, present=[name]) == expected
    assert sum(counted) == expected.size
    assert (tmp_path / "some.data").read_bytes() == (tmp_path / "other" / "some.data").read_bytes()


def test_values_are_read_when_the_file_is_written(tmp_path):
    reads: list[str] = []

    def read(tensors) -> torch.Tensor:
        reads.append("read")
        return torch.ones(2, 3)

    layout = WeightLayout("some.data", FLOAT, [StoredFloats(Weight("ones", (2, 3), read), FLOAT)] * 2)
    assert not reads
    DataFile(tmp_path, layout).write(lambda name: torch.empty(0), lambda count: None)
    assert reads == ["read"]


def test_pieces_join_to_the_tensor(monkeypatch):
    monkeypatch.setattr(stored_module, "_PIECE_ELEMENTS", 100)
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
