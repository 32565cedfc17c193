"""Dimensions of a checkpoint: config.json in the forms that its writers gave it, checked where it enters.

Published Qwen2-VL and Qwen2.5-VL files are flat; those of transformers 4.52 and later have the decoder's keys in
text_config, as Qwen3-VL's always had. transformers 5 writes rope_parameters in place of rope_theta and rope_scaling.
A rope type "default" beside an mrope_section still means M-RoPE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.families.dynamic_vl.variants import QWEN2_VL, QWEN3_VL, VARIANTS, Variant

_ACTIVATIONS = {"quick_gelu": "quick_gelu", "silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
_ROPE_TYPES = {"mrope", "default"}
_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


@dataclass(frozen=True)
class TextConfig:
    """The decoder. head_dim need not be hidden_size / heads. tied: the head's weights are the embedding's."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    vocab_size: int
    max_position_embeddings: int
    norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    tied: bool


@dataclass(frozen=True)
class VisionConfig:
    """The tower. full_blocks: those with attention over the whole picture where others have windows of window_size
    pixels (0: all of them). positions: rows of the learned position table, 0 without one. deepstack: blocks whose
    outputs go to the decoder's first layers, in the layers' order."""

    depth: int
    width: int
    heads: int
    mlp_width: int
    output_width: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    window_size: int = 0
    full_blocks: tuple[int, ...] = ()
    tokens_per_second: float = 0.0
    positions: int = 0
    deepstack: tuple[int, ...] = ()

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def patch_values(self) -> int:
        """Numbers of one patch: channels, frames, pixels."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @property
    def merged_width(self) -> int:
        """Channels of the patches of a token, side by side."""
        return self.width * self.merge_size**2

    @property
    def factor(self) -> int:
        """Side of a token in pixels."""
        return self.patch_size * self.merge_size

    @property
    def window_patches(self) -> int:
        """Patches of a whole window."""
        return (self.window_size // self.patch_size) ** 2

    def windowed(self, block: int) -> bool:
        """Tell if a block's attention is within windows."""
        return bool(self.window_size) and block not in self.full_blocks


@dataclass(frozen=True)
class DynamicVLSource:
    """Configuration of a checkpoint.

    token_ids: of those control tokens whose ids config.json repeats. tie_given: config.json says if the head is tied;
    otherwise the presence of a head decides.
    """

    variant: Variant
    text: TextConfig
    vision: VisionConfig
    token_ids: Mapping[str, int]
    tie_given: bool

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> DynamicVLSource:
        """Read the content of a config.json.

        Raises:
            CheckpointError: a key is missing, or a value describes a model this code does not compute.
        """
        variant = VARIANTS[raw["model_type"]]
        try:
            config = _read(variant, raw)
        except KeyError as missing:
            raise CheckpointError(f"config.json lacks {missing}; is this a whole {variant.title} checkpoint?") from None
        except (TypeError, ValueError) as wrong:
            raise CheckpointError(f"config.json holds a value of the wrong type: {wrong}.") from None
        _check(config, raw)
        return config


def text_section(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The decoder's keys: those of text_config, and where it lacks one or is absent, those of the top."""
    nested = raw.get("text_config")
    if not isinstance(nested, Mapping):
        return raw
    return {**raw, **{key: value for key, value in nested.items() if value is not None}}


def rope_of(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """The decoder's rotary settings with their base as rope_theta."""
    given = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise CheckpointError("config.json: the rotary settings are not an object; download it again.")
    return {"rope_theta": text.get("rope_theta"), **given}


def _read(variant: Variant, raw: Mapping[str, Any]) -> DynamicVLSource:
    text = text_section(raw)
    tied = raw.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    return DynamicVLSource(
        variant=variant,
        text=_read_text(text, tied=bool(tied)),
        vision=_read_vision(variant, raw["vision_config"]),
        token_ids={token: int(raw[key]) for key, token in _TOKENS.items() if raw.get(key) is not None},
        tie_given=tied is not None,
    )


def _read_text(text: Mapping[str, Any], *, tied: bool) -> TextConfig:
    rope = rope_of(text)
    _check_rope(rope)
    hidden, heads = int(text["hidden_size"]), int(text["num_attention_heads"])
    sections = tuple(int(n) for n in rope["mrope_section"])
    if len(sections) != 3:
        raise ValueError(f"mrope_section has {len(sections)} parts instead of 3")
    return TextConfig(
        hidden_size=hidden,
        num_layers=int(text["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or hidden // heads),
        mlp_width=int(text["intermediate_size"]),
        vocab_size=int(text["vocab_size"]),
        max_position_embeddings=int(text["max_position_embeddings"]),
        norm_eps=float(text.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope["rope_theta"]),
        mrope_section=(sections[0], sections[1], sections[2]),
        tied=tied,
    )


def _check_rope(rope: Mapping[str, Any]) -> None:
    """Check that positions are M-RoPE without a stretch."""
    kinds = {rope[key] for key in ("type", "rope_type") if rope.get(key) is not None}
    if "yarn" in kinds:
        raise CheckpointError(
            "config.json asks for YaRN, which stretches positions beyond the trained length and is not supported; "
            "export the checkpoint with its published rope settings."
        )
    if other := kinds - _ROPE_TYPES:
        raise CheckpointError(
            f'config.json asks for rope type "{other.pop()}"; supported is M-RoPE ("mrope" or "default").'
        )
    if "mrope_section" not in rope:
        raise CheckpointError("config.json has no mrope_section in its rotary settings; is this a whole checkpoint?")
    if rope["rope_theta"] is None:
        raise CheckpointError("config.json lacks rope_theta; is this a whole checkpoint?")


def _read_vision(variant: Variant, vision: Mapping[str, Any]) -> VisionConfig:
    if variant is QWEN2_VL:  # "hidden_size" is the output's width there
        width, output = int(vision["embed_dim"]), int(vision["hidden_size"])
        inner = int(width * float(vision["mlp_ratio"]))
    else:
        width, output = int(vision["hidden_size"]), int(vision["out_hidden_size"])
        inner = int(vision["intermediate_size"])
    windows = "window_size" in vision
    return VisionConfig(
        depth=int(vision["depth"]),
        width=width,
        heads=int(vision["num_heads"]),
        mlp_width=inner,
        output_width=output,
        patch_size=int(vision["patch_size"]),
        merge_size=int(vision["spatial_merge_size"]),
        temporal_patch_size=int(vision["temporal_patch_size"]),
        window_size=int(vision["window_size"]) if windows else 0,
        full_blocks=tuple(int(i) for i in vision["fullatt_block_indexes"]) if windows else (),
        tokens_per_second=float(vision["tokens_per_second"]) if windows else 0.0,
        positions=int(vision["num_position_embeddings"]) if variant is QWEN3_VL else 0,
        deepstack=tuple(int(i) for i in vision["deepstack_visual_indexes"]) if variant is QWEN3_VL else (),
    )


def _check(config: DynamicVLSource, raw: Mapping[str, Any]) -> None:
    variant, text, vision = config.variant, config.text, config.vision
    section, given = text_section(raw), raw["vision_config"]
    rope = rope_of(section)
    side = math.isqrt(vision.positions)
    channels = given.get("in_channels", given.get("in_chans", 3))
    rules = [
        (section.get("hidden_act", "silu") == "silu", "hidden_act is not silu"),
        (not section.get("use_sliding_window", False), "use_sliding_window is set"),
        (bool(section.get("attention_bias", variant.qkv_bias)) == variant.qkv_bias, "attention_bias is not the usual"),
        (text.num_heads % text.num_kv_heads == 0, "num_attention_heads is no multiple of num_key_value_heads"),
        (text.head_dim % 2 == 0, "head_dim is odd"),
        (2 * sum(text.mrope_section) == text.head_dim, "mrope_section does not add up to half of head_dim"),
        (bool(rope.get("mrope_interleaved", variant.interleaved)) == variant.interleaved, "mrope_interleaved is other"),
        (channels == 3, "the vision tower's channels are not 3"),
        (
            given.get("hidden_act", _ACTIVATIONS[variant.activation]) == _ACTIVATIONS[variant.activation],
            f"vision_config.hidden_act is not {_ACTIVATIONS[variant.activation]}",
        ),
        (vision.width % vision.heads == 0, "the tower's width is no multiple of its heads"),
        (vision.head_dim % 4 == 0, "the tower's heads are no multiple of 4 wide"),
        (vision.output_width == text.hidden_size, "the tower's output is not as wide as the decoder"),
        (vision.window_size % vision.factor == 0, "window_size is no multiple of a token's side"),
        (all(0 <= i < vision.depth for i in (*vision.full_blocks, *vision.deepstack)), "a block number is too large"),
        (len(set(vision.deepstack)) == len(vision.deepstack), "deepstack_visual_indexes names a block twice"),
        (len(vision.deepstack) <= text.num_layers, "deepstack_visual_indexes has more entries than the decoder layers"),
        (side * side == vision.positions, "num_position_embeddings is not a square number"),
        (max(config.token_ids.values(), default=0) < text.vocab_size, "a token's id is beyond vocab_size"),
    ]
    broken = [text for holds, text in rules if not holds]
    if broken:
        raise CheckpointError(f"config.json is not a {variant.title} configuration: {'; '.join(broken)}.")
