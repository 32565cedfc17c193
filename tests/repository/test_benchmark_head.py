"""benchmarks/head.py: the sizes it computes are those of the weights that an export plans."""

from __future__ import annotations

import pytest

from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.graphs.decoder import build_decoders
from qwenvl_edge_export.options import HEAD, ExportPrecision
from qwenvl_edge_export.quantization.calibration import decoder_names
from support.paths import ROOT


def test_sizes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import head

    checkpoint = Checkpoint.open(ROOT / "models" / "nano")
    found = head.sizes(checkpoint.config)
    assert found["int4"]["decoder_mb"] < found["int8"]["decoder_mb"]
    for name, each in found.items():
        decoder = ExportPrecision.choose("int4", head=name).decoder
        _, plan = build_decoders(checkpoint, decoder)
        parts = {weight: decoder.format(weight).names(weight) for weight in decoder_names(checkpoint.config)}
        assert each["head_mb"] == pytest.approx(plan.bytes_of(parts[HEAD]) / 1e6)
        assert each["decoder_mb"] == pytest.approx(sum(map(plan.bytes_of, parts.values())) / 1e6)
