"""Graphs cut into pieces: they compute what the whole graph computes, and each needs little of the weights."""

from __future__ import annotations

import pytest

from qwenvl_edge.bundle.contract import DECODER_GRAPHS, STANDARD
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.verification.graph_pieces import CutGraph
from qwenvl_edge_export.verification.verify import verify
from support.random_checkpoint import config_dict, write_checkpoint

PRECISIONS = {"fp16": "gpu", "bf16": "gpu", "int8": "cpu", "int4": "cpu", "w8a8": "cpu"}
BUDGET, LAYERS = 60_000, 300_000


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Eight layers, and an output layer that is many times as large as one."""
    raw = config_dict(num_hidden_layers=8, vocab_size=3000)
    return write_checkpoint(tmp_path_factory.mktemp("pieces") / "checkpoint", raw=raw)


@pytest.fixture(scope="module", params=PRECISIONS)
def bundle(request, source, tmp_path_factory):
    precision = ExportPrecision.choose(request.param, target=PRECISIONS[request.param])
    folder = tmp_path_factory.mktemp("bundle") / request.param
    return export(source, folder, precision=precision, check=False)


def test_pieces_compute_what_the_whole_computes(bundle, source, monkeypatch):
    whole = verify(bundle, source)
    monkeypatch.setattr("qwenvl_edge_export.verification.verify.PIECE_BYTES", BUDGET)
    pieces = verify(bundle, source)
    assert [(row.graph, row.case) for row in pieces.rows] == [(row.graph, row.case) for row in whole.rows]
    for cut, uncut in zip(pieces.rows, whole.rows, strict=True):
        if uncut.case != "box" or uncut.graph == "vision":  # the answer that is asked for may be another one
            assert cut.max_abs == pytest.approx(uncut.max_abs, rel=0.5, abs=1e-4)
            assert cut.cosine == pytest.approx(uncut.cosine, abs=1e-4)
        assert cut.agreed in (None, uncut.agreed) or uncut.case == "box"
        assert cut.passed == uncut.passed


def test_each_node_is_in_one_piece(bundle):
    for name in (bundle.manifest.graphs.vision, *bundle.manifest.graphs.decoder.values()):
        graph = CutGraph(bundle.file(name), BUDGET)
        nodes = [node.name for piece in graph.pieces for node in piece.nodes]
        assert nodes == [node.name for node in graph.model.graph.node]


def test_a_large_matrix_is_cut_by_its_rows(bundle):
    """The portable graph's output layer, 3,000 x 128 floats, and of 4-bit weights each row where it lies."""
    graph = CutGraph(bundle.file(DECODER_GRAPHS[STANDARD]), BUDGET)
    (head,) = (piece for piece in graph.pieces if piece.rows and piece.rows[-1][1] == 3000)
    assert all(end - first <= BUDGET / 128 for first, end in head.rows)
    assert [first for first, _ in head.rows] == [0, *(end for _, end in head.rows[:-1])]
    kinds = dict.fromkeys(head.inputs, (1, 2))
    for start, end in (head.rows[0], head.rows[-1]):
        parts = [graph.build(head, kinds, (start, end)), graph.build_makers(head, (start, end))]
        whole = {each.name: each for each in graph.model.graph.initializer}
        stored = [each for part in parts for each in part.graph.initializer]
        sliced = [each for each in stored if whole[each.name].dims[:1] == [3000]]
        assert sliced and all(each.dims[0] == end - start for each in sliced)
        for tensor in sliced:
            place, before = (
                {entry.key: int(entry.value) for entry in each.external_data if entry.key != "location"}
                for each in (tensor, whole[tensor.name])
            )
            assert place["offset"] - before["offset"] == before["length"] * start // 3000
            assert place["length"] == before["length"] * (end - start) // 3000


def test_weights_are_made_once_for_all_calls(bundle):
    """Nothing is widened in the model that every call runs, and nothing is given that its makers do not make."""
    graph = CutGraph(bundle.file(DECODER_GRAPHS[STANDARD]), BUDGET)
    stored = {tensor.name for tensor in graph.model.graph.initializer}
    for piece in graph.pieces:
        kinds = dict.fromkeys(piece.inputs, (1, 2))
        part, makers = graph.build(piece, kinds), graph.build_makers(piece)
        made = {value.name for value in makers.graph.output}
        assert {value.name for value in part.graph.input} == {*piece.inputs, *made}
        assert not [node for node in part.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]
        assert len(part.graph.node) + len(makers.graph.node) == len(piece.nodes)
    assert any(piece.makers for piece in graph.pieces)


def test_cuts_lie_between_layers(source, tmp_path):
    """Only rows, and what all layers read, cross from one piece to the next."""
    precision = ExportPrecision.choose("int8")
    bundle = export(source, tmp_path / "bundle", precision=precision, check=False)
    graph = CutGraph(bundle.file(DECODER_GRAPHS[STANDARD]), LAYERS)
    assert len(graph.pieces) > 4
    shared = {name for name in graph.pieces[1].inputs if name in graph.pieces[2].inputs}
    for before, after in zip(graph.pieces[:3], graph.pieces[1:4], strict=True):
        made = {name for name in after.inputs if name in before.outputs}
        assert len(made - shared) == 1
