"""benchmarks/head.py: the sizes it computes are those of the weights that an export writes."""

from __future__ import annotations

import pytest

from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.graphs.weight_layout import decoder_layout
from qwenvl_edge_export.options import ExportPrecision
from support.paths import ROOT


def test_sizes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import head

    decoder = Checkpoint.open(ROOT / "models" / "nano").family.decoder
    found = head.sizes(decoder)
    assert found["int4"]["decoder_mb"] < found["int8"]["decoder_mb"]
    for name, each in found.items():
        layout = decoder_layout(decoder, ExportPrecision.choose("int4", head=name).decoder)
        parts = {
            weight: [slot.name for slot in layout.stored(weight.name).slots] for weight in decoder.linear_weights()
        }
        assert each["head_mb"] == pytest.approx(layout.bytes_of(parts[decoder.head.weight]) / 1e6)
        assert each["decoder_mb"] == pytest.approx(sum(map(layout.bytes_of, parts.values())) / 1e6)
