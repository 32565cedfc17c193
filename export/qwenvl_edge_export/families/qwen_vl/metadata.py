"""Entries of a bundle's manifest from a checkpoint: dimensions, the family's configuration, generation defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

from qwenvl_edge.bundle.manifest import FamilyInfo, GenerationDefaults, ModelInfo, Workspace
from qwenvl_edge.errors import CheckpointError
from qwenvl_edge.families.qwen_vl import QwenVLBundleConfig, QwenVLFamily
from qwenvl_edge_export.families.config_values import ConfigValues, shown
from qwenvl_edge_export.families.generation import GENERATION_FILE, sampling_defaults
from qwenvl_edge_export.families.qwen_vl.config import QwenVLConfig

Added: TypeAlias = tuple[tuple[str, int], ...]
"""Texts and ids of the tokens that a fine-tune added."""
_CHAT_FORMATS = ("chatml", "raw")
_MAX_NEW_TOKENS, _MAX_WINDOW_SIZE = 512, 6144  # the published files'


def model_info(config: QwenVLConfig) -> ModelInfo:
    """The dimensions that the runtime needs."""
    return ModelInfo(
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
    )


def family_info(config: QwenVLConfig, added: Added = ()) -> FamilyInfo:
    """The family with the configuration that the runtime's module of it reads."""
    return FamilyInfo(
        QwenVLFamily.name,
        dataclasses.asdict(_bundled(config, added)) | {"added_tokens": [list(token) for token in added]},
    )


def family_of(config: QwenVLConfig, added: Added = ()) -> QwenVLFamily:
    """The runtime's family for a checkpoint. Raises BundleError if its special tokens cannot be where they should."""
    return QwenVLFamily(_bundled(config, added), config.head_dim)


def _bundled(config: QwenVLConfig, added: Added) -> QwenVLBundleConfig:
    return QwenVLBundleConfig(
        image_start_id=config.vision.image_start_id,
        image_tokens=config.vision.n_queries,
        image_size=config.vision.image_size,
        seq_length=config.seq_length,
        rope_base=config.rope_base,
        use_dynamic_ntk=config.use_dynamic_ntk,
        use_logn_attn=config.use_logn_attn,
        added_tokens=added,
    )


def workspace(config: QwenVLConfig, *, vision_ort: bool) -> Workspace:
    """Intermediate values that are alive at once in float32, at the widest place of a decoder and of a ViT layer.

    vision_ort: whether the picture side goes through MultiHeadAttention, which keeps no scores.
    """
    vision = config.vision
    patches, width = vision.grid**2, vision.width
    if vision_ort:
        # x and q, k, v, once as one tensor, once apart, once by head; the MLP's rows find no room in half of them.
        attention = patches * 10 * width
        block = patches * (6 * width + 2 * vision.mlp_width)
        pool = patches * 5 * vision.output_dim
    else:
        attention = patches * 7 * width + vision.heads * patches**2
        block = patches * (width + 2 * vision.mlp_width)
        pool = patches * 5 * vision.output_dim + vision.resampler_heads * patches * vision.n_queries
    return Workspace(
        token_bytes=4 * max(2 * config.hidden_size + 3 * config.mlp_width, 8 * config.hidden_size),
        picture_bytes=4 * max(block, attention, pool),
    )


def generation_defaults(raw: Mapping[str, Any]) -> GenerationDefaults:
    """The generation settings that a bundle keeps, from a generation_config.json's content; other keys are left out.

    Raises:
        CheckpointError: chat_format is missing or unknown, or a value is of another type or out of range.
    """
    if not raw:
        raise CheckpointError(
            f"the checkpoint lacks {GENERATION_FILE}, which names its chat format; copy the published one, or give "
            "--chat-format chatml (a model trained on conversations) or raw (a base model)."
        )
    if raw.get("chat_format") not in _CHAT_FORMATS:
        given = f"is {shown(raw['chat_format'])}" if "chat_format" in raw else "is missing"
        raise CheckpointError(
            f'generation_config.json: chat_format {given}; it must be "chatml" (a model trained on conversations) or '
            '"raw" (a base model); --chat-format sets it.'
        )
    return GenerationDefaults(
        chat_format=raw["chat_format"],
        **sampling_defaults(raw, max_new_tokens=_MAX_NEW_TOKENS),
        max_window_size=ConfigValues(raw, GENERATION_FILE).whole("max_window_size", _MAX_WINDOW_SIZE),
    )
