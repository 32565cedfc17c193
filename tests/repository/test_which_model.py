"""The tables of docs/which-model.md are what the planner says today."""

from __future__ import annotations

import pytest

pytest.importorskip("qwenvl_edge_export.export", reason="layouts of weights are the exporter's, which needs PyTorch")

from qwenvl_edge.bundle.contract import DECODER_DATA, EMBEDDING_FILE, VISION_DATA
from qwenvl_edge.cli.boards import BOARDS
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from tools import synthetic_checkpoint, which_model


def test_the_page_holds_what_is_computed():
    text = which_model.PAGE.read_text(encoding="utf-8")
    found = [block[2] for block in which_model.BLOCK.finditer(text)]
    assert sorted(found) == sorted(which_model.MAKERS)
    assert which_model.filled(text) == text, "run: python -m tools.which_model"


def test_a_planned_bundle_has_the_sizes_of_an_exported_one(tmp_path):
    """Also its precision and its workspace, from which memory follows."""
    synthetic_checkpoint.write(tmp_path / "checkpoint", "tiny")
    for precision, target in (("int4", "cpu"), ("fp16", "gpu")):
        chosen = ExportPrecision.choose(precision, target=target)
        real = export(tmp_path / "checkpoint", tmp_path / precision, precision=chosen, check=False).manifest
        planned = which_model.planned("tiny", which_model.Form(precision), target).manifest
        for name in (VISION_DATA, DECODER_DATA, EMBEDDING_FILE):
            assert planned.files[name].size == real.files[name].size
        assert (planned.precision, planned.workspace) == (real.precision, real.workspace)
        assert (planned.model, planned.graphs) == (real.model, real.graphs)


def test_a_larger_board_is_never_worse():
    order = ["no", "elsewhere", "fits"]
    for model in which_model.MODELS:
        for forms in (which_model.SMALL, which_model.LARGE, which_model.INTEGERS, which_model.SMALLEST):
            names = ("orin-nano-8gb", "orin-nx-16gb", "agx-orin-32gb", "agx-orin-64gb")
            found = [order.index(which_model.verdict(model, forms, BOARDS[name])) for name in names]
            assert found == sorted(found)
