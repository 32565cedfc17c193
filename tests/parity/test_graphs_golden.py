"""PyTorch and both graph dialects against figures of the published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.qwen_vl.reference import QwenVLNetwork
from qwenvl_edge_export.families.qwen_vl.reference_vision import resize_positions
from support.decoding import rotary
from support.dialects import DIALECTS
from support.random_checkpoint import write_weights
from support.reference import load_model

VISION_TOLERANCE = 3e-5
LOGITS_TOLERANCE = 1e-4
IMAGE_START = 2214
# The pictures of each prompt, as rows of the golden pixel_values (a, b, c, rgba, gray).
PICTURES = {"text": [], "img1": [0], "img3_history": [0, 1, 2], "raw": [3]}


@pytest.fixture(scope="module")
def vision(tiny_checkpoint: Path):
    return dict(np.load(tiny_checkpoint / "golden_vision.npz"))


@pytest.fixture(scope="module")
def text(tiny_checkpoint: Path):
    return dict(np.load(tiny_checkpoint / "golden_text.npz"))


@pytest.fixture(scope="module")
def pickled_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as two pytorch_model-*.bin shards."""
    folder = tmp_path_factory.mktemp("pickled")
    for name in ("config.json", "generation_config.json", "qwen.tiktoken"):
        (folder / name).write_bytes((tiny_checkpoint / name).read_bytes())
    write_weights(folder, load_file(tiny_checkpoint / "model.safetensors"), shards=2, pickled=True)
    return folder


@pytest.fixture(scope="module", params=["safetensors", "pickled"])
def model(request, tiny_checkpoint: Path, pickled_checkpoint: Path) -> QwenVLNetwork:
    checkpoint = Checkpoint.open(pickled_checkpoint if request.param == "pickled" else tiny_checkpoint)
    return load_model(checkpoint)


@pytest.fixture(scope="module", params=DIALECTS)
def backend(request, tiny_bundle) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(tiny_bundle, threads=1, dialect=request.param)


def close(found, expected, tolerance):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=tolerance)


@torch.no_grad()
def test_pytorch_vision(model, vision):
    pixels = torch.from_numpy(vision["pixel_values"])
    close(model.encode_images(pixels)[:, ::4], vision["features_every_4th"], VISION_TOLERANCE)


@torch.no_grad()
def test_pytorch_inside_the_vision_model(tiny_checkpoint, vision):
    visual = load_model(Checkpoint.open(tiny_checkpoint)).transformer.visual
    patches = visual.encode_patches(torch.from_numpy(vision["pixel_values"][:2]))
    close(patches, vision["vit_out"], VISION_TOLERANCE)
    pooled = visual.attn_pool(patches)
    close(pooled[:, ::16], vision["attn_pool_every_16th"], VISION_TOLERANCE)
    close(visual.ln_post(pooled)[:, ::16], vision["ln_post_every_16th"], VISION_TOLERANCE)
    close(resize_positions(visual.positional_embedding, 4), vision["pos_interp"], 1e-6)
    close(resize_positions(visual.attn_pool.pos_embed, 4), vision["resampler_key_pos"], 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", PICTURES)
def test_pytorch_text(model, vision, text, name):
    ids = torch.from_numpy(text[f"{name}.input_ids"])[None]
    features = model.encode_images(torch.from_numpy(vision["pixel_values"][PICTURES[name]]))
    embeds = model.embed(ids, features)
    logits, cache = model.decode(embeds)
    close(logits[0, -4:], text[f"{name}.logits_last4"], LOGITS_TOLERANCE)
    np.testing.assert_array_equal(logits[0].argmax(-1), text[f"{name}.logits_argmax"])
    keys = text.get(f"{name}.k0_last4", text.get(f"{name}.k0"))
    close(cache[0][0][0].transpose(0, 1)[-len(keys) :], keys, LOGITS_TOLERANCE)
    assert model.generate(embeds, 16) == text[f"{name}.greedy"].tolist()


@torch.no_grad()
def test_pytorch_left_padded_batch(model, text):
    ids, mask = (torch.from_numpy(text[f"batch.{part}"]) for part in ("input_ids", "attention_mask"))
    logits, _ = model.decode(model.embed(ids), padding=mask.bool(), last=1)
    close(logits[:, 0], text["batch.last_logits"], LOGITS_TOLERANCE)


def test_graph_vision(backend, vision):
    features = backend.encode_pixels(vision["pixel_values"])
    close(features[:, ::4], vision["features_every_4th"], VISION_TOLERANCE)
    for i, pixels in enumerate(vision["pixel_values"]):
        close(backend.encode_pixels(pixels[None])[0], features[i], VISION_TOLERANCE)


@pytest.mark.parametrize("name", PICTURES)
def test_graph_text(backend, tiny_bundle, vision, text, name):
    ids, table = text[f"{name}.input_ids"], tiny_bundle.embedding
    embeds, length = table[ids][None], len(ids)
    if PICTURES[name]:
        features = backend.encode_pixels(vision["pixel_values"][PICTURES[name]])
        for start, rows in zip(np.flatnonzero(ids == IMAGE_START) + 1, features, strict=True):
            embeds[0, start : start + len(rows)] = rows
    cache = backend.new_cache(1, length + 16)
    assert backend.family.positions(length).key == text[f"{name}.ntk_alpha"]
    start, every = np.zeros(1, np.int64), np.arange(length)[None]
    logits = backend.decode(cache, embeds, rotary(backend, start, length, prompt=length), start, every)
    close(logits[0, -4:], text[f"{name}.logits_last4"], LOGITS_TOLERANCE)
    np.testing.assert_array_equal(logits[0].argmax(-1), text[f"{name}.logits_argmax"])

    step, tokens = logits[0, -1], []
    for i in range(16):
        close(step, text[f"{name}.step_logits"][i], LOGITS_TOLERANCE)
        tokens.append(int(step.argmax()))
        start = np.array([length + i])
        rows = rotary(backend, start, 1, prompt=length)
        step = backend.decode(cache, table[tokens[-1:]][None], rows, start, np.zeros((1, 1), np.int64))[0, 0]
    assert tokens == text[f"{name}.greedy"].tolist()
