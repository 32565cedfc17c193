"""Settings of published Qwen2-VL, Qwen2.5-VL and Qwen3-VL checkpoints, with a made-up vocabulary of the published size.

Used by synthetic_checkpoint.py. The vocabulary is bytes, pairs of bytes and triples; token number 256 + k is what merge
number k makes, as in the published one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl_edge.families.vocabulary import byte_alphabet

RANKS = 151_643
_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
    *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
)
_SPECIAL_SHOWN = 14  # tokens from here on show in answers
_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_TOWER_14 = {"depth": 32, "num_heads": 16, "in_chans": 3, "patch_size": 14}
_MERGE = {"spatial_merge_size": 2, "temporal_patch_size": 2}


@dataclass(frozen=True)
class Family:
    """Properties that a family's checkpoints have in common: special tokens in use, positions, generation, pictures."""

    special: int
    theta: float
    positions: int
    rope: Mapping[str, Any]
    generation: Mapping[str, Any]
    pictures: Mapping[str, Any]


_OLD_ROPE = {"type": "mrope", "mrope_section": [16, 24, 24]}
_FAMILIES = {
    "qwen2_vl": Family(
        14,
        1e6,
        32768,
        _OLD_ROPE,
        {"temperature": 0.01, "top_p": 0.001, "top_k": 1, "repetition_penalty": 1.0},
        _CLIP | {"min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14},
    ),
    "qwen2_5_vl": Family(
        22,
        1e6,
        128000,
        _OLD_ROPE,
        {"temperature": 1e-6, "repetition_penalty": 1.05},
        _CLIP | {"min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14},
    ),
    "qwen3_vl": Family(
        26,
        5e6,
        262144,
        {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.0},
        {
            "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216},
            "patch_size": 16,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
    ),
}

# family, hidden, ffn, layers, heads, kv heads, vocabulary rows, tied
PRESETS: Mapping[str, tuple[str, int, int, int, int, int, int, bool]] = {
    "qwen2-vl-2b": ("qwen2_vl", 1536, 8960, 28, 12, 2, 151936, True),
    "qwen2.5-vl-3b": ("qwen2_5_vl", 2048, 11008, 36, 16, 2, 151936, True),
    "qwen2.5-vl-7b": ("qwen2_5_vl", 3584, 18944, 28, 28, 4, 152064, False),
    "qwen3-vl-2b": ("qwen3_vl", 2048, 6144, 28, 16, 8, 151936, True),
    "qwen3-vl-4b": ("qwen3_vl", 2560, 9728, 36, 32, 8, 151936, True),
    "qwen3-vl-8b": ("qwen3_vl", 4096, 12288, 36, 32, 8, 151936, False),
}


def preset(name: str) -> dict[str, Any]:
    """The config.json of a preset, in the published form."""
    kind, hidden, inner, layers, heads, kv_heads, rows, tied = PRESETS[name]
    family = _FAMILIES[kind]
    text = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": rows,
        "max_position_embeddings": family.positions,
        "rms_norm_eps": 1e-6,
        "rope_theta": family.theta,
        "rope_scaling": dict(family.rope),
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
    }
    ids = {token: RANKS + number for number, token in enumerate(_SPECIAL)}
    top = {
        "model_type": kind,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": tied,
    }
    if kind == "qwen2_vl":
        return top | text | {"vision_config": _TOWER_14 | _MERGE | _old_tower(hidden)}
    if kind == "qwen2_5_vl":
        return top | text | {"vision_config": _TOWER_14 | _MERGE | _windowed_tower(hidden)}
    text |= {"head_dim": 128, "attention_bias": False}
    return top | {"text_config": text, "vision_config": _MERGE | _deepstack_tower(hidden, large=name.endswith("8b"))}


def _old_tower(hidden: int) -> dict[str, Any]:
    return {"embed_dim": 1280, "mlp_ratio": 4, "hidden_size": hidden}


def _windowed_tower(hidden: int) -> dict[str, Any]:
    windows = {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2}
    return {"hidden_size": 1280, "intermediate_size": 3420, "hidden_act": "silu", "out_hidden_size": hidden} | windows


def _deepstack_tower(hidden: int, *, large: bool) -> dict[str, Any]:
    depth, width, inner, blocks = (27, 1152, 4304, [8, 16, 24]) if large else (24, 1024, 4096, [5, 11, 17])
    return {
        "depth": depth,
        "hidden_size": width,
        "intermediate_size": inner,
        "deepstack_visual_indexes": blocks,
        "num_heads": 16,
        "in_channels": 3,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "num_position_embeddings": 2304,
        "out_hidden_size": hidden,
    }


def published(name: str, kind: str) -> str:
    """The name that a published file of family `kind` has for a tensor."""
    if kind == "qwen3_vl":
        return name
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def write_settings(folder: Path, name: str, layers: int | None = None) -> None:
    """Write everything but the weights of preset `name` to the new folder `folder`.

    layers: of the decoder, if not the preset's.
    """
    raw = preset(name)
    if layers is not None:
        raw.get("text_config", raw)["num_hidden_layers"] = layers
    family = _FAMILIES[raw["model_type"]]
    ids = {token: RANKS + number for number, token in enumerate(_SPECIAL[: family.special])}
    ends = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    added = {
        str(id_): {"content": token, "special": number < _SPECIAL_SHOWN}
        for number, (token, id_) in enumerate(ids.items())
    }
    contents: dict[str, Any] = {
        "config.json": raw,
        "generation_config.json": {"do_sample": True, "eos_token_id": ends} | family.generation,
        "preprocessor_config.json": {"merge_size": 2, "temporal_patch_size": 2} | family.pictures,
        "tokenizer_config.json": {"added_tokens_decoder": added},
        "vocab.json": dict(_vocabulary()),
    }
    folder.mkdir(parents=True)
    for file, content in contents.items():
        (folder / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    merges = (f"{first} {second}" for first, second in itertools.islice(_merges(), RANKS - len(byte_alphabet())))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


def _vocabulary() -> Iterator[tuple[str, int]]:
    merged = (first + second for first, second in _merges())
    for id_, token in enumerate(itertools.islice(itertools.chain(byte_alphabet(), merged), RANKS)):
        yield token, id_


def _merges() -> Iterator[tuple[str, str]]:
    """Two bytes, then two bytes and a third."""
    letters = list(byte_alphabet())
    yield from itertools.product(letters, repeat=2)
    for first, second, third in itertools.product(letters, repeat=3):
        yield first + second, third
