"""benchmarks/families.py: what it asks an engine, and what the figures make of its results."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from support.golden_graphs import golden
from support.paths import ROOT

pytest.importorskip("qwenvl_edge_export.export", reason="exporting needs PyTorch")

from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_the_second_question_reuses_the_picture(benchmarks, tmp_path):
    import families

    place = tmp_path / "bundle"
    export(golden("qwen3_vl"), place, precision=ExportPrecision.choose("int4"), check=False)
    command = [sys.executable, "-c", families._ASK, str(place), "1", "1", "3"]
    (turn,) = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert turn["vision_ms"] > 0 and turn["image_tokens"] < turn["prompt_tokens"]
    assert 0 < turn["second_computed"] < turn["image_tokens"]  # words alone


def test_the_table_of_figures(benchmarks, tmp_path, monkeypatch):
    import figure_text
    import figures_models

    monkeypatch.setattr(figures_models, "RESULTS", tmp_path)
    monkeypatch.setattr(figure_text, "RESULTS", tmp_path)
    assert "Not measured" in figures_models.families()
    keys = ("ttft_ms", "vision_ms", "prefill_ms", "tokens_per_s", "decode_bandwidth_share", "vision_vs_torch")
    headline = dict.fromkeys((*keys, "second_question_share", "peak_memory_mb"), 0.5) | {"family": "qwen3-vl-2b"}
    eager = {label: {"median": 777.0} for label in ("float32", "bfloat16")}
    conditions = {"date": "today", "cores": 2, "cpu": "processor", "python": "3"}
    result = {"conditions": conditions, "headline": headline, "details": {"torch_vision_ms": eager}}
    (tmp_path / "latency-qwen3-vl-2b.json").write_text(json.dumps(result))
    found = figures_models.families()
    assert "qwen3-vl-2b" in found and found.count("777") == 2 and "today" in found
