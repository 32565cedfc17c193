"""Graphs of Qwen2-VL, Qwen2.5-VL and Qwen3-VL against recorded tensors of transformers, in every dialect."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qwenvl_edge.bundle.contract import ONNXRUNTIME, STANDARD
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.verification.limits import LIMITS, divergence
from support.dialects import DIALECTS, OF_BLOCKS
from support.golden_graphs import (
    FAMILIES,
    PICTURES,
    PROMPTS,
    GoldenDecoder,
    GoldenGraphs,
    deepstack_rows,
    encode,
    rope_rows,
)

FEATURES, LOGITS = 1e-5, 2e-4


@pytest.fixture(scope="module", params=FAMILIES)
def graphs(request, tmp_path_factory) -> GoldenGraphs:
    return GoldenGraphs(request.param, tmp_path_factory.mktemp(request.param), ExportPrecision.choose("fp32"))


@pytest.fixture(scope="module", params=DIALECTS)
def decoder(request, graphs):
    return graphs.decoder_session(request.param)


@pytest.fixture(scope="module")
def vision(graphs):
    return graphs.vision_session(STANDARD)


def close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def prefill(graphs, decoder, prompt, deepstack, cuts=()):
    """Logits [T, V] of a golden prompt, computed in pieces; and the decoder, which goes on."""
    embeds = graphs.text[f"{prompt}.inputs_embeds"]
    cos, sin = rope_rows(graphs, prompt, len(embeds))
    run, bounds, found = GoldenDecoder(graphs, decoder), [0, *cuts, len(embeds)], []
    for a, b in itertools.pairwise(bounds):
        rows = None if deepstack is None else deepstack[:, None, a:b]
        found.append(run(embeds[None, a:b], (cos[None, a:b], sin[None, a:b]), a, rows)[0])
    return np.concatenate(found), run


@pytest.mark.parametrize("dialect", [STANDARD, ONNXRUNTIME])
def test_features(graphs, dialect):
    session, golden = graphs.vision_session(dialect), graphs.vision
    for picture in PICTURES:
        names = ("features", "deepstack")[: 1 + bool(graphs.config.vision.deepstack)]
        found = encode(session, graphs.config.vision, golden[f"{picture}.pixel_values"], golden[f"{picture}.grid_thw"])
        for name, values in zip(names, found, strict=True):
            close(values, golden[f"{picture}.{name}"], FEATURES)


@pytest.mark.parametrize("dialect", [STANDARD, ONNXRUNTIME])
def test_pictures_of_one_grid_do_not_see_each_other(graphs, dialect):
    session, golden = graphs.vision_session(dialect), graphs.vision
    pixels, (_, rows, columns) = golden["a.pixel_values"], golden["a.grid_thw"]
    other = np.random.default_rng(0).standard_normal(pixels.shape).astype(np.float32)
    both = encode(session, graphs.config.vision, np.concatenate([other, pixels]), (2, rows, columns))[0]
    close(both[len(both) // 2 :], golden["a.features"], FEATURES)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_and_greedy_tokens(graphs, decoder, vision, prompt):
    golden, length = graphs.text, len(graphs.text[f"{prompt}.input_ids"])
    logits, run = prefill(graphs, decoder, prompt, deepstack_rows(graphs, vision, prompt))
    close(logits, golden[f"{prompt}.logits"], LOGITS)
    cos, sin = rope_rows(graphs, prompt, length + 12)
    step, tokens = logits[-1], []
    for i in range(12):
        close(step, golden[f"{prompt}.step_logits"][i], LOGITS)
        tokens.append(int(step.argmax()))
        at = slice(length + i, length + i + 1)
        step = run(graphs.embedding[None, tokens[-1:]], (cos[None, at], sin[None, at]), length + i)[0, 0]
    assert tokens == golden[f"{prompt}.greedy"].tolist()


def test_a_prefill_may_be_cut_anywhere(graphs, decoder, vision):
    deepstack = deepstack_rows(graphs, vision, "mixed")
    golden = graphs.text["mixed.logits"]
    for cut in range(1, len(golden)):
        close(prefill(graphs, decoder, "mixed", deepstack, [cut])[0], golden, LOGITS)


def test_a_batch_of_three_with_different_pictures(graphs, decoder, vision):
    prompts = ("one", "text", "two")
    golden = graphs.text
    longest = max(len(golden[f"{prompt}.input_ids"]) for prompt in prompts)
    hidden, layers = graphs.config.text.hidden_size, len(graphs.config.vision.deepstack)
    embeds, deep = np.zeros((3, longest, hidden), np.float32), np.zeros((layers, 3, longest, hidden), np.float32)
    rope = [np.zeros((3, longest, graphs.config.text.head_dim // 2), np.float32) for _ in range(2)]
    for row, prompt in enumerate(prompts):
        length = len(golden[f"{prompt}.input_ids"])
        embeds[row, :length] = golden[f"{prompt}.inputs_embeds"]
        for table, values in zip(rope, rope_rows(graphs, prompt, longest), strict=True):
            table[row] = values
        if layers:
            deep[:, row, :length] = deepstack_rows(graphs, vision, prompt)
    run = GoldenDecoder(graphs, decoder, batch=3)
    logits = run(embeds, (rope[0], rope[1]), 0, deep)
    lengths = np.array([len(golden[f"{prompt}.input_ids"]) for prompt in prompts])
    for row, prompt in enumerate(prompts):
        close(logits[row, : lengths[row]], golden[f"{prompt}.logits"], LOGITS)
    for step in range(1, 4):
        tokens = np.array([[golden[f"{prompt}.greedy"][step - 1]] for prompt in prompts])
        places = lengths + step - 1
        rows = [rope_rows(graphs, prompt, place + 1) for prompt, place in zip(prompts, places, strict=True)]
        tables = tuple(np.stack([row[part][-1:] for row in rows]) for part in range(2))
        logits = run(graphs.embedding[tokens], tables, places)
        for row, prompt in enumerate(prompts):
            close(logits[row, 0], golden[f"{prompt}.step_logits"][step], LOGITS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("precision", "target"), [("fp16", "gpu"), ("int8", "cpu"), ("w8a8", "cpu"), ("w8a8", "gpu")])
def test_features_in_fewer_bits(family, precision, target, tmp_path):
    """Scales of w8a8's inputs come from calibration; without any, its weights alone are integers."""
    limits = {"fp16": 1e-3, "int8": 0.06, "w8a8": 0.04}
    graphs = GoldenGraphs(family, tmp_path, ExportPrecision.choose(precision, target=target))
    config, golden = graphs.config.vision, graphs.vision
    for dialect in (STANDARD, ONNXRUNTIME)[: 2 if target == "cpu" else 1]:
        session = graphs.vision_session(dialect)
        for picture in "ac":
            found = encode(session, config, golden[f"{picture}.pixel_values"], golden[f"{picture}.grid_thw"])
            wanted = [golden[f"{picture}.features"], *([golden[f"{picture}.deepstack"]] if config.deepstack else [])]
            for values, expected in zip(found, wanted, strict=True):
                close(values, expected, limits[precision] * np.abs(expected).max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dialect", OF_BLOCKS)
def test_logits_of_blocks_of_8_bits(family, dialect, tmp_path):
    """Layers that blocks of 32 divide are integers, the others stay floats."""
    graphs = GoldenGraphs(family, tmp_path, ExportPrecision.choose("int8"))
    logits, _ = prefill(graphs, graphs.decoder_session(dialect), "text", None)
    expected = graphs.text["text.logits"]
    assert divergence(logits, expected) < LIMITS["int8"].max_kl
    lengths = np.linalg.norm(logits, axis=-1) * np.linalg.norm(expected, axis=-1)
    assert ((logits * expected).sum(-1) / lengths).min() > 0.97  # untrained weights: single rows are far off
