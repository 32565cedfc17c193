"""Checkpoint to answer for Qwen2-VL, Qwen2.5-VL and Qwen3-VL: the engine says what transformers said."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("qwenvl_edge_export.export", reason="exporting needs PyTorch")

from qwenvl_edge import QwenVLEngine, Video
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from support.dialects import DIALECTS
from support.golden_graphs import FAMILIES, PROMPTS, golden

GREEDY = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 12}


@pytest.fixture(scope="module", params=FAMILIES)
def bundle(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param) / "bundle"
    return export(golden(request.param), place, precision=ExportPrecision.choose("fp32"), check=False)


@pytest.fixture(scope="module", params=DIALECTS)
def engine(request, bundle):
    return QwenVLEngine(bundle, backend=OnnxRuntimeBackend(bundle, threads=1, dialect=request.param))


def recorded(name):
    folder = golden(name)
    return json.loads((folder / "golden_meta.json").read_text()), dict(np.load(folder / "golden_text.npz"))


def ask(engine, folder, prompt, recorded, arrays):
    """The engine's greedy answer to a golden prompt."""
    said, pictures = recorded["messages"], iter(recorded["images"])
    system = next((turn["content"] for turn in said if turn["role"] == "system"), None)
    turns = [turn["content"] for turn in said if turn["role"] != "system"]
    items = []
    for item in turns[-1]:
        if item["type"] == "image":
            items.append({"image": folder / "images" / f"{next(pictures)}.png"})
        elif item["type"] == "video":
            clip = recorded["video"]
            times = [index / clip["fps"] for index in clip["frames_indices"]]
            frames = arrays.get(f"{prompt}.frames", arrays["video2.frames"])
            items.append({"video": Video(list(frames), times=times)})
        else:
            items.append({"text": item["text"]})
    history = [(turns[i], turns[i + 1]) for i in range(0, len(turns) - 1, 2)]
    return engine.chat(items, history=history, system=system, **GREEDY)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_answers(engine, bundle, prompt):
    name = bundle.manifest.family.name
    meta, arrays = recorded(name)
    asked = meta["prompts"][prompt]
    reply = ask(engine, golden(name), prompt, asked, arrays)
    assert reply.stats.prompt_tokens == asked["tokens"]
    assert reply.raw_text == asked["greedy_text"].strip()  # an answer begins with its first word
