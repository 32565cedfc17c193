"""The memory plan against what a process is seen to take."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from qwenvl_edge import QwenVLEngine, cli
from qwenvl_edge.backends import memory_estimate as memory
from qwenvl_edge.backends.memory_estimate import estimate_memory
from qwenvl_edge.backends.onnxruntime.session import fastest_dialect, runs_native_vision, weight_bytes
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.errors import BackendError
from qwenvl_edge.machine import memory as system_memory
from qwenvl_edge.machine.memory import available_bytes, swap_bytes

pytest.importorskip("qwenvl_edge_export.export", reason="exporting needs PyTorch")

from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from support.random_checkpoint import config_dict, write_checkpoint

_WATCH = """
import json, sys, threading, time
import numpy as np

peak = 0

def anonymous():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) * 1024

def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.001)
"""
_RUN = f"""{_WATCH}
from qwenvl_edge import QwenVLEngine

threading.Thread(target=watch, daemon=True).start()
context, conversations, batch, memory_mb = map(int, sys.argv[2:])
engine = QwenVLEngine(sys.argv[1], max_context=context, threads=1, cache_memory_mb=memory_mb)
picture = np.zeros((40, 40, 3), np.uint8)
words = [f"{{number}} hello" + " hello" * (context // 7) for number in range(max(conversations, batch))]
for number in range(conversations):
    engine.chat(words[number], images=[picture + number], do_sample=False, max_new_tokens=2)
if batch:
    questions = [{{"message": text, "images": [picture]}} for text in words[:batch]]
    engine.chat_many(questions, max_batch=batch, do_sample=False, max_new_tokens=2)
time.sleep(0.1)
print(json.dumps(peak))
"""
_PICTURES = f"""{_WATCH}
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.bundle.bundle import Bundle

backend = OnnxRuntimeBackend(Bundle.open(sys.argv[1]), threads=1)
pixels = np.random.default_rng(0).normal(size=(1, 3, 448, 448)).astype(np.float32)
before, peaks = anonymous(), []
threading.Thread(target=watch, daemon=True).start()
for _ in range(3):
    backend.encode_pixels(pixels)
    time.sleep(0.05)
    peaks.append(peak - before)
print(json.dumps([peaks[0], peaks[2]]))
"""
_LARGE_PICTURE = f"""{_WATCH}
from qwenvl_edge.backends.kept import picture_bytes
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.bundle.bundle import Bundle

bundle = Bundle.open(sys.argv[1])
backend = OnnxRuntimeBackend(bundle, threads=1)
side = 2 * backend.family.preprocessing.patches.side
picture = np.random.default_rng(0).integers(0, 256, (32 * side, 40 * side, 3), np.uint8)
layout = backend.family.layout((40 * side, 32 * side))
inputs = backend.family.vision_inputs([picture], layout)
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
backend.run_vision(inputs)
time.sleep(0.05)
workspace = bundle.manifest.workspace
print(json.dumps([layout.tokens, peak - before, picture_bytes(workspace, backend.family, layout.tokens)]))
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
@pytest.mark.parametrize(
    ("precision", "context", "batch"),
    [("fp32", 800, 0), ("fp16", 800, 0), ("int8", 800, 0), ("int4", 800, 0), ("int8", 600, 3)],
)
def test_the_plan_is_within_a_tenth_of_a_run(checkpoint, precision, context, batch):
    path = checkpoint.with_name(precision)
    if not path.exists():
        export(checkpoint, path, precision=ExportPrecision.choose(precision), check=False)
    bundle = Bundle.open(path)
    memory_mb = round(3.2 * estimate_memory(bundle, max_context=context).cache / 2**20)  # of three conversations
    arguments = [str(path), *map(str, (context, 3, batch, memory_mb))]
    # With as many threads as the run, and before it: the first time products are measured, which takes memory.
    weights = weight_bytes(bundle, fastest_dialect(bundle, 1))
    run = subprocess.run([sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, check=True)
    sizes = {"max_context": context, "max_batch": max(batch, 1), "cache_memory_mb": memory_mb}
    plan = estimate_memory(bundle, **sizes, weights=weights)
    alone = estimate_memory(bundle, max_context=context, cache_memory_mb=memory_mb)
    assert 2 * alone.cache < plan.kept < 3 * alone.cache  # what two of the three conversations are kept with
    assert plan.total == pytest.approx(json.loads(run.stdout), rel=0.1)


@pytest.mark.skipif(available_bytes() is None, reason="the system does not tell its memory")
@pytest.mark.parametrize("mlp_ratio", [1.0, 4.0])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_pictures_take_what_is_planned_for_them(tmp_path, precision, mlp_ratio):
    """Of 448 pixels; scores, which ONNX Runtime's own attention does not keep, would be as much again."""
    raw = config_dict({"width": 512, "heads": 8, "mlp_ratio": mlp_ratio, "image_size": 448, "n_queries": 16})
    source = write_checkpoint(tmp_path / "checkpoint", raw=raw)
    bundle = export(source, tmp_path / "bundle", precision=ExportPrecision.choose(precision), check=False)
    command = [sys.executable, "-c", _PICTURES, str(bundle.path)]
    seen = [json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(2)]
    first, third = map(max, zip(*seen, strict=True))  # a watcher that gets no processor sees too little, never too much
    assert third == pytest.approx(first, rel=0.02)
    # The native core's tower takes less where the MLP is narrow.
    slack = 1.5 if runs_native_vision(bundle, fastest_dialect(bundle)) else 1.2
    assert third / 1.2 < estimate_memory(bundle, max_context=100).picture < third * slack


def test_parts_follow_their_causes(tiny_bundle):
    plan = estimate_memory(tiny_bundle, max_context=1000)
    model = tiny_bundle.manifest.model
    features = 16 * tiny_bundle.manifest.family.config["image_tokens"] * model.hidden_size * 4
    assert plan.cache == 2 * 2 * 4 * 64 * 1000 * 4
    assert plan.kept == 7 * plan.cache + features
    wider = estimate_memory(tiny_bundle, max_context=1000, max_batch=3)
    assert (wider.cache, wider.weights, wider.picture) == (4 * plan.cache, plan.weights, plan.picture)
    assert wider.workspace > plan.workspace
    narrow = estimate_memory(tiny_bundle, max_context=1000, cache_memory_mb=1)
    assert narrow.kept == features
    parts = (plan.weights, plan.cache, plan.kept, max(plan.workspace, plan.picture), plan.process)
    assert plan.total == sum(parts)


@pytest.mark.parametrize(("options", "match"), [({"max_context": 0}, "max-context"), ({"max_batch": 0}, "max-batch")])
def test_limits_out_of_range(tiny_bundle, options, match):
    with pytest.raises(BackendError, match=match):
        estimate_memory(tiny_bundle, **({"max_context": 100} | options))


def test_a_bundle_that_cannot_fit_is_refused_before_it_is_loaded(tiny_bundle, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 50_000_000)
    with pytest.raises(
        BackendError,
        match=r"would take 0\.\d+ GB \(weights .*, KV cache .*, earlier conversations .*, workspace .*but 0\.05 GB",
    ):
        QwenVLEngine(tiny_bundle, max_context=512)
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    QwenVLEngine(tiny_bundle, max_context=512)


def test_free_memory_is_read_from_the_system(tmp_path, monkeypatch):
    file = tmp_path / "meminfo"
    monkeypatch.setattr(system_memory, "_MEMINFO", file)
    assert (available_bytes(), swap_bytes()) == (None, 0)
    file.write_text("MemTotal: 10 kB\nMemAvailable:    7 kB\nSwapFree: 3 kB\n")
    assert (available_bytes(), swap_bytes()) == (7 * 1024, 3 * 1024)


def test_the_program_prints_the_plan(tiny_bundle, capsys):
    assert cli.main(["plan", str(tiny_bundle.path), "--max-context", "512", "--max-batch", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines][:2] == ["weights", "KV cache"]
    assert lines[-1].startswith("total") and lines[-1].endswith("MB")


TOWERS = {
    "qwen2_vl": {"embed_dim": 320, "depth": 2},
    "qwen2_5_vl": {"hidden_size": 320, "intermediate_size": 856, "depth": 2, "fullatt_block_indexes": [1]},
    "qwen3_vl": {"hidden_size": 320, "intermediate_size": 1200, "depth": 3},
}


@pytest.mark.skipif(available_bytes() is None, reason="the system does not tell its memory")
@pytest.mark.parametrize("family", TOWERS)
def test_attention_over_a_large_picture_keeps_no_scores(family, tmp_path):
    """1,280 tokens, the default ceiling: the scores of four heads alone would be 419 MB."""
    from support.golden_graphs import resized_checkpoint

    checkpoint = resized_checkpoint(tmp_path / "checkpoint", family, {}, TOWERS[family])
    chosen = ExportPrecision.choose("int8")
    side = 32 if family == "qwen3_vl" else 28
    export(checkpoint, tmp_path / "bundle", precision=chosen, check=False, max_pixels=1280 * side**2)
    run = [sys.executable, "-c", _LARGE_PICTURE, str(tmp_path / "bundle")]
    tokens, found, planned = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    assert tokens == 1280
    assert found < 200e6
    assert 0.4 * planned < found < 1.1 * planned
