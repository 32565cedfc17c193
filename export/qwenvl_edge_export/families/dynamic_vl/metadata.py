"""Entries of a bundle's manifest from a checkpoint: dimensions, the family's configuration, generation defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qwenvl_edge.bundle.manifest import GenerationDefaults, ModelInfo, Workspace
from qwenvl_edge.errors import CheckpointError
from qwenvl_edge.families.dynamic_config import DynamicVLConfig
from qwenvl_edge_export.families.dynamic_vl.config import DynamicVLSource
from qwenvl_edge_export.families.dynamic_vl.processor import Processor
from qwenvl_edge_export.families.dynamic_vl.variants import QWEN3_VL
from qwenvl_edge_export.families.dynamic_vl.vocabulary import Vocabulary
from qwenvl_edge_export.families.generation import sampling_defaults

_CONTEXT = 8192
_THINK = "<think>"
_MAX_NEW_TOKENS = 512


def model_info(config: DynamicVLSource) -> ModelInfo:
    """The dimensions that the runtime needs."""
    text = config.text
    return ModelInfo(
        hidden_size=text.hidden_size,
        num_layers=text.num_layers,
        num_heads=text.num_heads,
        num_kv_heads=text.num_kv_heads,
        head_dim=text.head_dim,
        vocab_size=text.vocab_size,
        max_position_embeddings=text.max_position_embeddings,
        deepstack_layers=len(config.vision.deepstack),
    )


def bundled(config: DynamicVLSource, processor: Processor, vocabulary: Vocabulary) -> DynamicVLConfig:
    """The configuration that the runtime's module of the family reads.

    Raises:
        CheckpointError: the vocabulary lacks a token, or has it elsewhere than config.json says.
    """
    vision, added = config.vision, vocabulary.added
    special = {token.text: token.id for token in added}
    _check_tokens(config, special, len(vocabulary.ranks))
    return DynamicVLConfig(
        patch_size=vision.patch_size,
        merge_size=vision.merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        vision_head_dim=vision.head_dim,
        window_size=vision.window_size,
        position_side=math.isqrt(vision.positions),
        min_pixels=processor.min_pixels,
        max_pixels=processor.max_pixels,
        video_min_pixels=processor.video_min_pixels,
        video_max_pixels=processor.video_max_pixels,
        image_mean=processor.mean,
        image_std=processor.std,
        rope_theta=config.text.rope_theta,
        mrope_section=config.text.mrope_section,
        mrope_interleaved=config.variant.interleaved,
        tokens_per_second=vision.tokens_per_second,
        special_tokens=special,
        not_special=tuple(token.text for token in added if not token.special),
        used_rows=max(special.values()) + 1,
        thinking=thinks(vocabulary.template),
        tools=config.variant.tools,
        trained_length=min(config.text.max_position_embeddings, _CONTEXT),
    )


def thinks(template: str) -> bool:
    """Tell if the generation prompt of a chat template opens the reasoning: its last words are <think>."""
    prompt = template.rpartition("add_generation_prompt")[2]
    return _THINK in prompt


def _check_tokens(config: DynamicVLSource, special: Mapping[str, int], ranks: int) -> None:
    for token, id_ in config.token_ids.items():
        if special.get(token) != id_:
            raise CheckpointError(
                f"config.json gives {token} the id {id_}, but the tokenizer's files {special.get(token)}; copy both "
                "from one checkpoint."
            )
    for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"):
        if token not in special:
            raise CheckpointError(f"the tokenizer's files lack the token {token}; copy them from the published ones.")
    if min(special.values()) < ranks or len(set(special.values())) < len(special):
        raise CheckpointError(
            f"an added token has the id of one of the {ranks:,} ranks, or of another; the files are damaged."
        )
    if max(special.values()) >= config.text.vocab_size:
        raise CheckpointError(
            f"the tokenizer has tokens up to {max(special.values())}, but vocab_size is {config.text.vocab_size}."
        )


def generation_defaults(raw: Mapping[str, Any], window: int) -> GenerationDefaults:
    """The settings that a bundle keeps of a generation_config.json's content; `window`: tokens of a history.

    Raises:
        CheckpointError: a value has the wrong type, or is out of range.
    """
    sampling = sampling_defaults(raw, max_new_tokens=_MAX_NEW_TOKENS)
    return GenerationDefaults(chat_format="chatml", **sampling, max_window_size=window)


def workspace(config: DynamicVLSource, max_pixels: int, *, vision_ort: bool) -> Workspace:
    """Intermediate values that are alive at once in float32, for a token, and for a picture of `max_pixels`.

    The picture's are measured, see docs/decisions/large-pictures.md. vision_ort: whether attention over a whole picture
    keeps no scores.
    """
    text, vision = config.text, config.vision
    patches, width = max_pixels // vision.patch_size**2, vision.width
    inner = 2 if config.variant is QWEN3_VL else 4  # an activation of several operators keeps its inputs
    attention = patches * (16 if vision.window_size else 14) * width
    block = patches * (width + inner * vision.mlp_width)
    plain = max(block, attention)
    widest = plain if vision_ort else max(block, attention + vision.heads * patches**2)
    q_width, kv_width = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    return Workspace(
        token_bytes=4
        * max(2 * text.hidden_size + 3 * text.mlp_width, 2 * text.hidden_size + 3 * q_width + 4 * kv_width),
        picture_bytes=4 * widest,
        score_bytes=4 * (widest - plain),
    )
