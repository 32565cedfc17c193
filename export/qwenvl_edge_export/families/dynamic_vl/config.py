"""Dimensions of a checkpoint: config.json in the forms that its writers gave it, checked where it enters.

Published Qwen2-VL and Qwen2.5-VL files are flat; those of transformers 4.52 and later have the decoder's keys in
text_config, as Qwen3-VL's always had. transformers 5 writes rope_parameters in place of rope_theta and rope_scaling.
A rope type "default" beside an mrope_section still means M-RoPE. Sections that transformers wrote may lack the values
that its classes have by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.listing import shortened
from qwenvl_edge_export.families.config_values import ConfigValues
from qwenvl_edge_export.families.dynamic_vl.variants import QWEN2_5_VL, QWEN2_VL, QWEN3_VL, VARIANTS, Variant

_ACTIVATIONS = {"quick_gelu": "quick_gelu", "silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
_ROPE_TYPES = {"mrope", "default"}
_TIE = "tie_word_embeddings"
_TOWER_THETA = 10000.0
_MOST_WIDTH, _MOST_LAYERS, _MOST_PIXELS = 1 << 17, 1000, 1 << 14
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
    outputs go to the decoder's first layers, the first block's to the first layer; in the order of their mergers."""

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
        top = ConfigValues(raw)
        variant = VARIANTS[top.text("model_type")]
        text = ConfigValues(text_section(raw, variant))
        config = _read(variant, top, text)
        _check(config, top, text)
        return config


def text_section(raw: Mapping[str, Any], variant: Variant) -> Mapping[str, Any]:
    """The decoder's keys: those of text_config, and where it lacks one or is absent, those of the top.

    A file without text_config has every key but that of the norms' epsilon.
    """
    nested = raw.get("text_config")
    if nested is None:
        return {"rms_norm_eps": variant.text_defaults["rms_norm_eps"]} | _given(raw)
    if not isinstance(nested, Mapping):
        raise CheckpointError("config.json: text_config is not an object; download it again.")
    kv_heads = "num_key_value_heads"
    defaults = dict(variant.text_defaults)
    if kv_heads in nested and nested[kv_heads] is None:  # as many as other heads
        del defaults[kv_heads]
    return defaults | _given(raw) | _given(nested)


def _given(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if value is not None}


def _vision_section(top: ConfigValues, variant: Variant) -> ConfigValues:
    """The tower's keys."""
    given = top.section("vision_config")
    return ConfigValues({**variant.vision_defaults, **_given(given.raw)}, given.where, given.path)


def _rope_of(text: ConfigValues) -> ConfigValues:
    """The decoder's rotary settings, which must be M-RoPE without a stretch, with their base as rope_theta."""
    name = "rope_parameters" if text.has("rope_parameters") else "rope_scaling"
    rope = text.section(name)
    kinds = {rope.text(key) for key in ("type", "rope_type") if rope.has(key)}
    if "yarn" in kinds:
        raise CheckpointError(
            "config.json asks for YaRN, which stretches positions beyond the trained length and is not supported; "
            "export the checkpoint with its published rope settings."
        )
    if other := kinds - _ROPE_TYPES:
        raise CheckpointError(
            f'config.json asks for rope type "{shortened(other.pop())}"; supported is M-RoPE ("mrope" or "default").'
        )
    theta = {} if rope.has("rope_theta") else {"rope_theta": text.raw.get("rope_theta")}
    return ConfigValues({**rope.raw, **theta}, rope.where, rope.path)


def _read(variant: Variant, top: ConfigValues, text: ConfigValues) -> DynamicVLSource:
    tied = top.flag(_TIE) if top.has(_TIE) else None
    if tied is None and text.has(_TIE) and not text.flag(_TIE):  # a section that says true may only repeat a default
        tied = False
    return DynamicVLSource(
        variant=variant,
        text=_read_text(text, tied=bool(tied)),
        vision=_read_vision(variant, _vision_section(top, variant)),
        token_ids={token: top.whole(key, least=0) for key, token in _TOKENS.items() if top.has(key)},
        tie_given=tied is not None,
    )


def _read_text(text: ConfigValues, *, tied: bool) -> TextConfig:
    rope = _rope_of(text)
    hidden, heads = text.whole("hidden_size", most=_MOST_WIDTH), text.whole("num_attention_heads", most=_MOST_WIDTH)
    sections = rope.wholes("mrope_section")
    if len(sections) != 3:
        raise CheckpointError(f"config.json: {rope.path}mrope_section has {len(sections)} parts instead of 3.")
    return TextConfig(
        hidden_size=hidden,
        num_layers=text.whole("num_hidden_layers", most=_MOST_LAYERS),
        num_heads=heads,
        num_kv_heads=text.whole("num_key_value_heads", heads, most=_MOST_WIDTH),
        head_dim=text.whole("head_dim", max(hidden // heads, 1), most=_MOST_WIDTH),
        mlp_width=text.whole("intermediate_size", most=8 * _MOST_WIDTH),
        vocab_size=text.whole("vocab_size"),
        max_position_embeddings=text.whole("max_position_embeddings"),
        norm_eps=text.number("rms_norm_eps", most=1),
        rope_theta=rope.number("rope_theta"),
        mrope_section=(sections[0], sections[1], sections[2]),
        tied=tied,
    )


def _read_vision(variant: Variant, vision: ConfigValues) -> VisionConfig:
    if variant is QWEN2_VL:  # "hidden_size" is the output's width there
        width, output = vision.whole("embed_dim", most=_MOST_WIDTH), vision.whole("hidden_size", most=_MOST_WIDTH)
        inner = int(width * vision.number("mlp_ratio", most=64))
    else:
        width, output = vision.whole("hidden_size", most=_MOST_WIDTH), vision.whole("out_hidden_size", most=_MOST_WIDTH)
        inner = vision.whole("intermediate_size", most=8 * _MOST_WIDTH)
    windows, table = variant is QWEN2_5_VL, variant is QWEN3_VL
    patch, merge = (vision.whole(key, most=_MOST_PIXELS) for key in ("patch_size", "spatial_merge_size"))
    window = vision.whole("window_size", most=_MOST_PIXELS) // merge // patch if windows else 0
    if windows and not window:
        raise CheckpointError(
            f"config.json: vision_config.window_size is {vision.raw['window_size']}, less than a token's side, "
            f"{merge * patch} pixels."
        )
    return VisionConfig(
        depth=vision.whole("depth", most=_MOST_LAYERS),
        width=width,
        heads=vision.whole("num_heads", most=_MOST_WIDTH),
        mlp_width=inner,
        output_width=output,
        patch_size=patch,
        merge_size=merge,
        temporal_patch_size=vision.whole("temporal_patch_size", most=_MOST_PIXELS),
        window_size=window * merge * patch,  # whole tokens, as the published code cuts it
        full_blocks=vision.wholes("fullatt_block_indexes") if windows else (),
        tokens_per_second=vision.number("tokens_per_second") if windows else 0.0,
        positions=vision.whole("num_position_embeddings") if table else 0,
        deepstack=vision.wholes("deepstack_visual_indexes") if table else (),
    )


def _check(config: DynamicVLSource, top: ConfigValues, section: ConfigValues) -> None:
    variant, text, vision = config.variant, config.text, config.vision
    given, rope = _vision_section(top, variant), _rope_of(section)
    tower_rope = given.section("rope_parameters") if given.has("rope_parameters") else ConfigValues({})
    kinds = section.raw.get("layer_types") or []
    side = math.isqrt(vision.positions)
    channels = given.whole("in_channels", given.whole("in_chans", 3))
    rules = [
        (section.text("hidden_act", "silu") == "silu", "hidden_act is not silu"),
        (section.whole("num_experts", 0, least=0) == 0, "it is a mixture of experts (num_experts)"),
        (not section.flag("use_sliding_window", False), "use_sliding_window is set"),
        (all(kind == "full_attention" for kind in kinds), "layer_types names other than full_attention"),
        (section.flag("attention_bias", variant.qkv_bias) == variant.qkv_bias, "attention_bias is not the usual"),
        (text.num_heads % text.num_kv_heads == 0, "num_attention_heads is no multiple of num_key_value_heads"),
        (text.head_dim % 2 == 0, "head_dim is odd"),
        (2 * sum(text.mrope_section) == text.head_dim, "mrope_section does not add up to half of head_dim"),
        (rope.flag("mrope_interleaved", variant.interleaved) == variant.interleaved, "mrope_interleaved is other"),
        (channels == 3, "the vision tower's channels are not 3"),
        (
            given.text("hidden_act", _ACTIVATIONS[variant.activation]) == _ACTIVATIONS[variant.activation],
            f"vision_config.hidden_act is not {_ACTIVATIONS[variant.activation]}",
        ),
        (vision.width % vision.heads == 0, "the tower's width is no multiple of its heads"),
        (vision.head_dim % 4 == 0, "the tower's heads are no multiple of 4 wide"),
        (vision.output_width == text.hidden_size, "the tower's output is not as wide as the decoder"),
        (
            tower_rope.number("rope_theta", _TOWER_THETA) == _TOWER_THETA,
            f"vision_config.rope_parameters.rope_theta is not {_TOWER_THETA:g}",
        ),
        (all(0 <= i < vision.depth for i in (*vision.full_blocks, *vision.deepstack)), "a block number is too large"),
        (len(set(vision.deepstack)) == len(vision.deepstack), "deepstack_visual_indexes names a block twice"),
        (len(vision.deepstack) <= text.num_layers, "deepstack_visual_indexes has more entries than the decoder layers"),
        (side * side == vision.positions, "num_position_embeddings is not a square number"),
        (max(config.token_ids.values(), default=0) < text.vocab_size, "a token's id is beyond vocab_size"),
    ]
    broken = [text for holds, text in rules if not holds]
    if broken:
        raise CheckpointError(f"config.json is not a {variant.title} configuration: {'; '.join(broken)}.")
