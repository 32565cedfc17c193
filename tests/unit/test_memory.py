"""The memory plan against what a process is seen to take."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from qwenvl_edge import QwenVLEngine, cli, memory
from qwenvl_edge.errors import BackendError
from qwenvl_edge.memory import available_bytes, plan_memory

pytest.importorskip("qwenvl_edge_export.exporter", reason="exporting needs PyTorch")

from random_checkpoint import config_dict, write_checkpoint

from qwenvl_edge_export.exporter import export
from qwenvl_edge_export.precision import ExportPrecision

_RUN = """
import json, sys
import numpy as np
from qwenvl_edge import QwenVLEngine
engine = QwenVLEngine(sys.argv[1], max_context=int(sys.argv[2]), threads=1)
words = "hello " * int(sys.argv[3])
engine.chat(words, images=[np.zeros((40, 40, 3), np.uint8)], do_sample=False, max_new_tokens=2)
status = open("/proc/self/status").read()
print(json.dumps(int(status.split("RssAnon:")[1].split()[0]) * 1024))
"""
LARGE = config_dict(
    {"output_dim": 1024, "width": 256},
    hidden_size=1024,
    num_hidden_layers=6,
    num_attention_heads=8,
    kv_channels=128,
    intermediate_size=8192,
    seq_length=2048,
    max_position_embeddings=4096,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A hundred million parameters: enough for the process itself not to be most of it."""
    import torch

    folder = tmp_path_factory.mktemp("memory")
    return write_checkpoint(folder / "checkpoint", raw=LARGE, dtype=torch.bfloat16)


@pytest.mark.skipif(available_bytes() is None, reason="the system does not tell its memory")
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_the_plan_is_within_a_tenth_of_a_run(checkpoint, precision):
    bundle = export(
        checkpoint, checkpoint.with_name(precision), precision=ExportPrecision.choose(precision), check=False
    )
    arguments = [str(bundle.path), "3000", "450"]
    run = subprocess.run([sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, check=True)
    assert plan_memory(bundle, max_context=3000).total == pytest.approx(json.loads(run.stdout), rel=0.1)


def test_parts_follow_their_causes(tiny_bundle):
    plan = plan_memory(tiny_bundle, max_context=1000)
    assert plan.cache == 2 * 2 * 4 * 64 * 1000 * 4
    wider = plan_memory(tiny_bundle, max_context=1000, max_batch=3)
    assert (wider.cache, wider.weights, wider.picture) == (3 * plan.cache, plan.weights, plan.picture)
    assert wider.workspace > plan.workspace
    assert plan.total == plan.weights + plan.cache + max(plan.workspace, plan.picture) + plan.process


@pytest.mark.parametrize(("options", "match"), [({"max_context": 0}, "max-context"), ({"max_batch": 0}, "max-batch")])
def test_limits_out_of_range(tiny_bundle, options, match):
    with pytest.raises(BackendError, match=match):
        plan_memory(tiny_bundle, **({"max_context": 100} | options))


def test_a_bundle_that_cannot_fit_is_refused_before_it_is_loaded(tiny_bundle, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 50_000_000)
    with pytest.raises(BackendError, match=r"would take 0\.\d+ GB \(weights .*, KV cache .*, workspace .*but 0\.05 GB"):
        QwenVLEngine(tiny_bundle, max_context=512)
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    QwenVLEngine(tiny_bundle, max_context=512)


def test_free_memory_is_read_from_the_system(tmp_path, monkeypatch):
    file = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "_MEMINFO", file)
    assert (available_bytes(), memory.swap_bytes()) == (None, 0)
    file.write_text("MemTotal: 10 kB\nMemAvailable:    7 kB\nSwapFree: 3 kB\n")
    assert (available_bytes(), memory.swap_bytes()) == (7 * 1024, 3 * 1024)


def test_the_program_prints_the_plan(tiny_bundle, capsys):
    assert cli.main(["plan", str(tiny_bundle.path), "--max-context", "512", "--max-batch", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines][:2] == ["weights", "KV cache"]
    assert lines[-1].startswith("total") and lines[-1].endswith("MB")
