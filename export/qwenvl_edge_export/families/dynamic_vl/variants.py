"""The three families as data: the form that each part has in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One family.

    name: its model_type in config.json, and in manifests. title: for messages.
    rms_norms: the tower's norms are RMS norms, without biases. activation: of the tower's MLP: "quick_gelu",
    "gelu_tanh", or "silu" on a gate. mlp: names of the MLP's linear layers: up, down, and the gate's.
    merger: names of the merger's norm and its two linear layers. patch_bias: the patches' projection has one.
    qkv_bias: the decoder's projections have one. qk_norm: its queries and keys are normalised. interleaved: the
    sections of M-RoPE are. tools: the chat template knows tools.
    text_defaults, vision_defaults: values of the sections text_config and vision_config that transformers leaves out of
    a file that it writes, because they are those of its classes.
    """

    name: str
    title: str
    rms_norms: bool
    activation: str
    mlp: tuple[str, ...]
    merger: tuple[str, str, str]
    patch_bias: bool
    qkv_bias: bool
    qk_norm: bool
    interleaved: bool
    tools: bool
    text_defaults: Mapping[str, Any]
    vision_defaults: Mapping[str, Any]


_QWEN2_TEXT: dict[str, Any] = {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 29568,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
}
_QWEN2_TOWER: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 3584,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}

QWEN2_VL = Variant(
    name="qwen2_vl",
    title="Qwen2-VL",
    rms_norms=False,
    activation="quick_gelu",
    mlp=("fc1", "fc2"),
    merger=("ln_q", "mlp.0", "mlp.2"),
    patch_bias=False,
    qkv_bias=True,
    qk_norm=False,
    interleaved=False,
    tools=False,
    text_defaults=_QWEN2_TEXT,
    vision_defaults=_QWEN2_TOWER | {"embed_dim": 1280, "mlp_ratio": 4},
)
QWEN2_5_VL = Variant(
    name="qwen2_5_vl",
    title="Qwen2.5-VL",
    rms_norms=True,
    activation="silu",
    mlp=("up_proj", "down_proj", "gate_proj"),
    merger=("ln_q", "mlp.0", "mlp.2"),
    patch_bias=False,
    qkv_bias=True,
    qk_norm=False,
    interleaved=False,
    tools=True,
    text_defaults=_QWEN2_TEXT,
    vision_defaults=_QWEN2_TOWER
    | {
        "intermediate_size": 3420,
        "out_hidden_size": 3584,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 4,
    },
)
QWEN3_VL = Variant(
    name="qwen3_vl",
    title="Qwen3-VL",
    rms_norms=False,
    activation="gelu_tanh",
    mlp=("linear_fc1", "linear_fc2"),
    merger=("norm", "linear_fc1", "linear_fc2"),
    patch_bias=True,
    qkv_bias=False,
    qk_norm=True,
    interleaved=True,
    tools=True,
    text_defaults={
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "intermediate_size": 22016,
        "vocab_size": 151936,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
    },
    vision_defaults={
        "depth": 27,
        "hidden_size": 1152,
        "num_heads": 16,
        "intermediate_size": 4304,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 3584,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    },
)
VARIANTS: Mapping[str, Variant] = {variant.name: variant for variant in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL)}
