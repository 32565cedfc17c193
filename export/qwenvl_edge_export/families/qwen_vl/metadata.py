"""What a bundle's manifest takes over from a checkpoint: dimensions, generation defaults, versions of the tools."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

from qwenvl_edge.bundle.manifest import GenerationDefaults, ModelInfo, Workspace
from qwenvl_edge.bundle.records import read_record
from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.families.qwen_vl.config import QwenVLConfig

_PACKAGES = ("torch", "onnx-ir", "numpy", "safetensors", "onnxruntime")
_CHAT_FORMATS = ("chatml", "raw")
_GENERATION_DEFAULTS = {
    "do_sample": True,
    "top_p": 1.0,
    "top_k": 0,
    "temperature": 1.0,
    "repetition_penalty": 1.0,
    "max_new_tokens": 512,
    "max_window_size": 6144,
}


def model_info(config: QwenVLConfig) -> ModelInfo:
    """The dimensions that the runtime needs."""
    return ModelInfo(
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        seq_length=config.seq_length,
        max_position_embeddings=config.max_position_embeddings,
        rope_base=config.rope_base,
        use_dynamic_ntk=config.use_dynamic_ntk,
        use_logn_attn=config.use_logn_attn,
        image_size=config.vision.image_size,
        image_tokens=config.vision.n_queries,
        image_start_id=config.vision.image_start_id,
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
        CheckpointError: chat_format is missing or unknown, or a value has the wrong type.
    """
    if raw.get("chat_format") not in _CHAT_FORMATS:
        raise CheckpointError(
            f'generation_config.json: chat_format is {raw.get("chat_format")!r}; it must be "chatml" or "raw".'
        )
    fields = [field.name for field in dataclasses.fields(GenerationDefaults)]
    known = {name: raw[name] for name in fields if raw.get(name) is not None}
    return read_record(GenerationDefaults, _GENERATION_DEFAULTS | known, "generation_config.json", CheckpointError)


def exporter_name() -> str:
    """This exporter with its version."""
    return f"qwenvl-edge {_version('qwenvl-edge')}"


def tool_versions() -> dict[str, str]:
    """Versions of Python and of the packages that made the bundle."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
