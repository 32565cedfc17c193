"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL for tests: tiny checkpoints with recorded tensors (tests/data/families)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from qwenvl_edge.backends.base import Placed
from qwenvl_edge.bundle.manifest import FamilyInfo, GenerationDefaults, ModelInfo
from qwenvl_edge.engine import QwenVLEngine
from qwenvl_edge.families import create_family, open_family
from qwenvl_edge.families.dynamic_config import DynamicVLConfig
from qwenvl_edge.families.dynamic_vl import DynamicVLFamily
from qwenvl_edge.families.vocabulary import byte_alphabet
from qwenvl_edge.inputs.clips import Video
from qwenvl_edge.inputs.pictures import Picture, load_picture
from qwenvl_edge.inputs.prompt import Prompt, PromptBuilder, parse_history, parse_message
from qwenvl_edge.inputs.tokenizer import Tokenizer, open_tokenizer
from support.paths import DATA
from support.scripted import ScriptedBackend, write_bundle

GOLDEN = DATA / "families"
GREEDY = GenerationDefaults("chatml", False, 1.0, 0, 1.0, 1.0, 64, 4096)
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
    *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
)
_COUNTS = {"qwen2_vl": 14, "qwen2_5_vl": 22, "qwen3_vl": 26}


def config_of(name: str, *, first_id: int = 516, **changes: Any) -> DynamicVLConfig:
    """A configuration as the golden checkpoints have it; special tokens begin at `first_id`."""
    three = name == "qwen3_vl"
    tokens = {text: first_id + number for number, text in enumerate(_SPECIAL[: _COUNTS[name]])}
    config = DynamicVLConfig(
        patch_size=16 if three else 14,
        merge_size=2,
        temporal_patch_size=2,
        vision_head_dim=16,
        window_size=112 if name == "qwen2_5_vl" else 0,
        position_side=12 if three else 0,
        min_pixels=4096 if three else 3136,
        max_pixels=65536 if three else 50176,
        video_min_pixels=4096 if three else 3136,
        video_max_pixels=25165824 if three else 24576 * 28 * 28,
        image_mean=(0.5, 0.5, 0.5) if three else (0.48145466, 0.4578275, 0.40821073),
        image_std=(0.5, 0.5, 0.5) if three else (0.26862954, 0.26130258, 0.27577711),
        rope_theta=5e6 if three else 1e6,
        mrope_section=(6, 5, 5) if three else (2, 3, 3),
        mrope_interleaved=three,
        tokens_per_second=2.0 if name == "qwen2_5_vl" else 0.0,
        special_tokens=tokens,
        not_special=tuple(text for text in tokens if not text.startswith("<|") or "fim" in text or "_name" in text),
        used_rows=first_id + len(tokens),
        thinking=False,
        tools=three,
        trained_length=4096,
    )
    return dataclasses.replace(config, **changes)


def family_of(name: str, **changes: Any) -> DynamicVLFamily:
    """A family with the configuration of `config_of`."""
    model = ModelInfo(96, 3, 6, 2, 32 if name == "qwen3_vl" else 16, 576, 4096, 3 if name == "qwen3_vl" else 0)
    family = create_family(FamilyInfo(name, as_json(config_of(name, **changes))), model)
    assert isinstance(family, DynamicVLFamily)
    return family


def as_json(config: DynamicVLConfig) -> dict[str, Any]:
    """A configuration as bundle.json has it."""
    raw: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return raw


@functools.lru_cache
def tokenizer_of(name: str) -> Tokenizer:
    """The tokenizer of a golden checkpoint."""
    return open_tokenizer(family_of(name), GOLDEN / name / "vocab.json", 576)


@functools.lru_cache
def golden(name: str, kind: str) -> dict[str, np.ndarray]:
    """golden_vision.npz or golden_text.npz of a family, by name; kind: "vision" or "text"."""
    with np.load(GOLDEN / name / f"golden_{kind}.npz") as arrays:
        return dict(arrays)


def golden_json(name: str, kind: str) -> dict[str, Any]:
    """golden_tokenizer.json or golden_meta.json of a family."""
    raw: dict[str, Any] = json.loads((GOLDEN / name / f"golden_{kind}.json").read_text(encoding="utf-8"))
    return raw


def picture_file(name: str, letter: str) -> Path:
    """A golden picture, "a" to "f"."""
    return GOLDEN / name / "images" / f"{letter}.png"


FRAME_TIMES = {"video2": [0.0, 0.5], "video5": [0, 1 / 3, 2 / 3, 1.0, 4 / 3], "mixed": [0.0, 0.5]}
"""When the frames of the golden clips were taken, in seconds."""


def load(source: Any, name: str = "picture") -> Picture:
    return load_picture(source, name=name)


def video_of(name: str, prompt: str) -> Video:
    """The clip of a golden prompt."""
    return Video(list(golden(name, "text")[f"{prompt}.frames"]), times=FRAME_TIMES[prompt])


def conversation_of(name: str, prompt: str) -> tuple[Any, list[Any], str | None]:
    """Message, history and system text of a golden prompt, as `chat` takes them."""
    meta = golden_json(name, "meta")["prompts"][prompt]
    pictures = iter(meta["images"])

    def items(content: Any) -> Any:
        if isinstance(content, str):
            return content
        made = {
            "text": lambda item: {"text": item["text"]},
            "image": lambda _: {"image": picture_file(name, next(pictures))},
            "video": lambda _: {"video": video_of(name, prompt)},
        }
        return [made[item["type"]](item) for item in content]

    talk = [message for message in meta["messages"] if message["role"] != "system"]
    system = next((message["content"] for message in meta["messages"] if message["role"] == "system"), None)
    said = [
        (items(asked["content"]), answered["content"]) for asked, answered in zip(talk[:-1:2], talk[1::2], strict=True)
    ]
    return items(talk[-1]["content"]), said, system


def prompt_of(name: str, prompt: str) -> Prompt:
    """A golden prompt, built by the runtime."""
    message, history, system = conversation_of(name, prompt)
    family = family_of(name)
    builder = PromptBuilder(family, tokenizer_of(name))
    turns = parse_history(history, load)
    text = family.default_system if system is None else system
    return builder.chat(parse_message(message, (), load), history=turns, system=text, window=10**6)


def greedy(name):
    """Options of the recorded answers: 12 likeliest tokens, and an end is passed over."""
    family = family_of(name)
    ends = [*family.end_ids, family.turn_start]
    return {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 12, "logprobs": 0, "banned_ids": ends}


def prefilled(backend, bundle, name, prompt, cuts):
    """Logits [T, V] of all tokens of a golden prompt, computed in calls that end at `cuts`."""
    return prefill(backend, bundle, prompt_of(name, prompt), cuts)


def prefill(backend, bundle, built, cuts=()):
    """Logits [T, V] of all tokens of a prompt, computed in calls that end at `cuts`."""
    features = {number: backend.encode(picture) for number, picture in enumerate(built.pictures)}
    cache = backend.new_cache(1, len(built.ids))
    cache.reset(built.positions)
    rows = []
    bounds = [0, *cuts, len(built.ids)]
    for start, end in itertools.pairwise(bounds):
        placed = []
        for span in built.spans:
            low, high = max(span.start, start), min(span.start + span.length, end)
            if low < high:
                first = span.first + low - span.start
                placed.append(Placed(features[span.picture], low - start, first, high - low))
        embeds = bundle.embedding[built.ids[start:end]][None].astype(np.float32)
        wanted = np.arange(end - start)[None]
        rotary = built.positions.rows(start, end - start)
        rows.append(backend.decode(cache, embeds, rotary, np.array([start]), wanted, placed)[0])
    return np.concatenate(rows)


BYTES = json.dumps({char: rank for rank, char in enumerate(byte_alphabet())}).encode()
"""A vocab.json without merges: a token is a byte, in the order of the alphabet."""


def scripted_engine(folder: Path, name: str, *answers: str, options: dict[str, Any] | None = None, **changes: Any):
    """An engine of a family over scripted answers, its backend, and a function that encodes with control tokens."""
    config = config_of(name, first_id=256, **changes)
    layers = 3 if name == "qwen3_vl" else 0
    model = ModelInfo(8, 4, 1, 1, 2 * sum(config.mrope_section), 300, 4096, layers)
    bundle = write_bundle(
        folder, model=model, family=name, config=config, generation=GREEDY, vocabulary=("vocab.json", BYTES)
    )
    family = open_family(bundle.manifest)
    tokenizer = open_tokenizer(family, bundle.file("vocab.json"), 300)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, allowed_special="all")

    backend = ScriptedBackend(*map(encode, answers), model=model, family=family)
    return QwenVLEngine(bundle, backend=backend, **(options or {})), backend, tokenizer
