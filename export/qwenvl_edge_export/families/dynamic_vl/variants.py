"""The three families as data: the form that each part has in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One family.

    name: its model_type in config.json, and in manifests. title: for messages.
    rms_norms: the tower's norms are RMS norms, without biases. activation: of the tower's MLP: "quick_gelu",
    "gelu_tanh", or "silu" on a gate. mlp: names of the MLP's linear layers: up, down, and the gate's.
    merger: names of the merger's norm and its two linear layers. patch_bias: the patches' projection has one.
    qkv_bias: the decoder's projections have one. qk_norm: its queries and keys are normalised. interleaved: the
    sections of M-RoPE are. tools: the chat template knows tools.
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
)
VARIANTS: Mapping[str, Variant] = {variant.name: variant for variant in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL)}
