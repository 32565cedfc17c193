"""Checkpoints of random sizes and forms: the bundle computes what transformers' whole model computes.

A seed decides all; SEEDS of each family run here. `support.any_family.draw` says what is drawn.
"""

from __future__ import annotations

from fnmatch import fnmatch

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the reference needs transformers")

from qwenvl_edge import QwenVLEngine, Video
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.inputs.prompt import PromptBuilder, parse_message
from qwenvl_edge.inputs.tokenizer import open_tokenizer
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from support.any_family import draw, logits_of
from support.families import load, prefill
from support.golden_graphs import FAMILIES

SEEDS = range(6)


def pictures(seed):
    """Two pictures of any size and a short clip."""
    dice = np.random.default_rng(seed)
    sizes = dice.integers(20, 300, (3, 2))
    made = [dice.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    clip = [np.roll(made[2], 7 * step, 0) for step in range(int(dice.integers(1, 4)))]
    return made[0], made[1], Video(clip, fps=8.0)


def messages(seed):
    first, second, clip = pictures(seed)
    return [
        [{"image": first}, {"text": "What is this?"}],
        [{"text": "Compare "}, {"image": second}, {"text": " with "}, {"image": first}, {"text": "."}],
        [{"video": clip}, {"text": "What happens?"}],
        [{"text": "Count to three."}],
    ]


def prompt_of(bundle, backend, message):
    family, file = backend.family, bundle.file(bundle.manifest.tokenizer)
    builder = PromptBuilder(family, open_tokenizer(family, file, backend.model.vocab_size))
    return builder.chat(parse_message(message, (), load), system=family.default_system, window=10**6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_answers(family, seed, tmp_path):
    drawn = draw(tmp_path / "checkpoint", family, seed)
    bundle = export(drawn.folder, tmp_path / "bundle", precision=ExportPrecision.choose("fp32"), check=False)
    backend = OnnxRuntimeBackend(bundle, threads=1)
    engine = QwenVLEngine(bundle, backend=backend)
    member = backend.family
    for message in messages(seed):
        prompt = prompt_of(bundle, backend, message)
        expected = logits_of(drawn.model, member, prompt)
        found = prefill(backend, bundle, prompt)
        scale = max(1.0, float(np.abs(expected).max()) / 8)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * scale, err_msg=repr(drawn))
        reply = engine.chat(message, do_sample=False, repetition_penalty=1.0, max_new_tokens=1, logprobs=0)
        row = expected[-1, : member.decodable].astype(np.float64)
        best = row.max() - np.log(np.exp(row - row.max()).sum()) - row.max()
        assert reply.logprobs[0].logprob == pytest.approx(best, abs=1e-3), repr(drawn)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_bits_at_any_width(family, precision, tmp_path):
    """Layers that no block divides stay in floats, and the manifest names them."""
    drawn = draw(tmp_path / "checkpoint", family, 50 + len(precision))
    bundle = export(drawn.folder, tmp_path / "bundle", precision=ExportPrecision.choose(precision), check=False)
    backend = OnnxRuntimeBackend(bundle, threads=1)
    prompt = prompt_of(bundle, backend, messages(50)[0])
    found, expected = prefill(backend, bundle, prompt), logits_of(drawn.model, backend.family, prompt)
    cosine = (found * expected).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert np.median(cosine) > {"int8": 0.99, "int4": 0.9}[precision], repr(drawn)
    decoder = Checkpoint.open(drawn.folder).family.decoder
    undivided = [w.name for w in decoder.linear_weights() if w.shape[1] % bundle.manifest.precision.block_size]
    kept = bundle.manifest.precision.kept.split(", ")
    assert all(any(fnmatch(name, pattern) for pattern in kept) for name in undivided)
    assert QwenVLEngine(bundle, backend=backend).chat("Hello", max_new_tokens=3).stats.new_tokens <= 3


def test_heads_that_onnxruntime_does_not_take(tmp_path):
    """Its attention wants a multiple of 8 channels; the standard operators take any."""
    seed = next(seed for seed in range(99) if head_dim(tmp_path / f"{seed}", seed) % 8)
    said = []
    bundle = export(tmp_path / f"{seed}", tmp_path / "bundle", note=said.append, check=True)
    assert set(bundle.manifest.graphs.decoder) == {"standard"} and bundle.manifest.parity["passed"]
    assert any("heads are" in sentence and "no multiple of 8" in sentence for sentence in said)


def head_dim(folder, seed):
    return draw(folder, "qwen3_vl", seed).raw["text_config"]["head_dim"]
