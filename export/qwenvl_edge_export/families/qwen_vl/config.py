"""The dimensions of a Qwen-VL checkpoint: what config.json says, checked where it enters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.families.config_values import ConfigValues

_MOST_LAYERS, _MOST_WIDTH, _MOST_PIXELS = 512, 1 << 16, 1 << 14


@dataclass(frozen=True)
class VisionConfig:
    """ViT and resampler. `n_queries` is a constructor default in the published code (256), not a key of its config."""

    width: int
    layers: int
    heads: int
    mlp_ratio: float
    patch_size: int
    image_size: int
    output_dim: int
    image_start_id: int
    n_queries: int = 256

    @property
    def head_dim(self) -> int:
        """Channels of one ViT attention head."""
        return self.width // self.heads

    @property
    def mlp_width(self) -> int:
        """Channels between the two linear layers of a ViT block."""
        return int(self.width * self.mlp_ratio)

    @property
    def grid(self) -> int:
        """Patches along one side of the picture."""
        return self.image_size // self.patch_size

    @property
    def resampler_heads(self) -> int:
        """The resampler's attention always has heads of 128 channels."""
        return self.output_dim // 128


@dataclass(frozen=True)
class QwenVLConfig:
    """Decoder dimensions and switches; `vision` holds the picture side."""

    hidden_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    seq_length: int
    max_position_embeddings: int
    rope_base: float
    norm_eps: float
    use_dynamic_ntk: bool
    use_logn_attn: bool
    vision: VisionConfig

    @property
    def mlp_width(self) -> int:
        """w1 and w2 have half of the configured intermediate size each."""
        return self.intermediate_size // 2

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> QwenVLConfig:
        """Read the keys of a published config.json.

        Raises:
            CheckpointError: a key is missing, or a value describes a model this code does not compute.
        """
        values = ConfigValues(raw)
        config = _read(values)
        _check(config, values)
        return config


def _read(values: ConfigValues) -> QwenVLConfig:
    if not values.has("visual"):
        raise CheckpointError("config.json lacks visual, the picture side; a Qwen without pictures is not supported.")
    visual = values.section("visual")
    vision = VisionConfig(
        width=visual.whole("width", most=_MOST_WIDTH),
        layers=visual.whole("layers", least=0, most=_MOST_LAYERS),
        heads=visual.whole("heads", most=_MOST_WIDTH),
        mlp_ratio=visual.number("mlp_ratio", most=64),
        patch_size=visual.whole("patch_size", most=_MOST_PIXELS),
        image_size=visual.whole("image_size", most=_MOST_PIXELS),
        output_dim=visual.whole("output_dim", most=_MOST_WIDTH),
        image_start_id=visual.whole("image_start_id"),
        n_queries=visual.whole("n_queries", 256, most=_MOST_WIDTH),
    )
    seq_length = values.whole("seq_length", least=2)
    return QwenVLConfig(
        hidden_size=values.whole("hidden_size", most=_MOST_WIDTH),
        num_layers=values.whole("num_hidden_layers", most=_MOST_LAYERS),
        num_heads=values.whole("num_attention_heads", most=_MOST_WIDTH),
        head_dim=values.whole("kv_channels", least=4, most=_MOST_WIDTH),
        intermediate_size=values.whole("intermediate_size", least=2, most=8 * _MOST_WIDTH),
        vocab_size=values.whole("vocab_size"),
        seq_length=seq_length,
        max_position_embeddings=values.whole("max_position_embeddings", seq_length),
        rope_base=values.number("rotary_emb_base", 10000),
        norm_eps=values.number("layer_norm_epsilon", 1e-6, most=1),
        use_dynamic_ntk=values.flag("use_dynamic_ntk", True),
        use_logn_attn=values.flag("use_logn_attn", True),
        vision=vision,
    )


def _check(config: QwenVLConfig, values: ConfigValues) -> None:
    vision = config.vision
    side = round(vision.n_queries**0.5)
    rules = [
        (values.text("model_type", "qwen") == "qwen", "model_type is not qwen"),
        (values.number("rotary_pct", 1.0) == 1.0, "rotary_pct is not 1.0"),
        (values.flag("no_bias", True), "no_bias is not true"),
        (not values.flag("tie_word_embeddings", False), "tie_word_embeddings is not false"),
        (config.num_heads * config.head_dim == config.hidden_size, "heads x kv_channels is not hidden_size"),
        (config.head_dim % 2 == 0, "kv_channels is odd"),
        (vision.output_dim == config.hidden_size, "visual.output_dim is not hidden_size"),
        (vision.output_dim % 128 == 0, "visual.output_dim is not a multiple of 128"),
        (vision.width % vision.heads == 0, "visual.width is not a multiple of visual.heads"),
        (vision.image_size % vision.patch_size == 0, "visual.image_size is not a multiple of visual.patch_size"),
        (side * side == vision.n_queries, "visual.n_queries is not a square number"),
    ]
    broken = [text for holds, text in rules if not holds]
    if broken:
        raise CheckpointError(f"config.json is not a Qwen-VL v1 configuration: {'; '.join(broken)}.")
