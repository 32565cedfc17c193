"""The dimensions of a Qwen-VL checkpoint: what config.json says, checked where it enters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl_edge.errors import CheckpointError


@dataclass(frozen=True)
class VisionConfig:
    """ViT and resampler. `queries` is a constructor default in the published code (256), not a key of its config."""

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
        try:
            config = _read(raw)
        except KeyError as missing:
            raise CheckpointError(f"config.json lacks {missing}; is this a Qwen-VL v1 checkpoint?") from None
        except (TypeError, ValueError) as wrong:
            raise CheckpointError(f"config.json holds a value of the wrong type: {wrong}.") from None
        _check(config, raw)
        return config

    @classmethod
    def from_json(cls, path: str | Path) -> QwenVLConfig:
        """Read `path`, a config.json.

        Raises:
            CheckpointError: the file is absent, not JSON, or not a Qwen-VL configuration.
        """
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {path}: {error}.") from None
        if not isinstance(raw, dict):
            raise CheckpointError(f"{path} is not a JSON object; give a Qwen-VL checkpoint's config.json.")
        return cls.from_dict(raw)


def _read(raw: Mapping[str, Any]) -> QwenVLConfig:
    visual = raw["visual"]
    vision = VisionConfig(
        width=int(visual["width"]),
        layers=int(visual["layers"]),
        heads=int(visual["heads"]),
        mlp_ratio=float(visual["mlp_ratio"]),
        patch_size=int(visual["patch_size"]),
        image_size=int(visual["image_size"]),
        output_dim=int(visual["output_dim"]),
        image_start_id=int(visual["image_start_id"]),
        n_queries=int(visual.get("n_queries", 256)),
    )
    return QwenVLConfig(
        hidden_size=int(raw["hidden_size"]),
        num_layers=int(raw["num_hidden_layers"]),
        num_heads=int(raw["num_attention_heads"]),
        head_dim=int(raw["kv_channels"]),
        intermediate_size=int(raw["intermediate_size"]),
        vocab_size=int(raw["vocab_size"]),
        seq_length=int(raw["seq_length"]),
        max_position_embeddings=int(raw.get("max_position_embeddings", raw["seq_length"])),
        rope_base=float(raw.get("rotary_emb_base", 10000)),
        norm_eps=float(raw.get("layer_norm_epsilon", 1e-6)),
        use_dynamic_ntk=bool(raw.get("use_dynamic_ntk", True)),
        use_logn_attn=bool(raw.get("use_logn_attn", True)),
        vision=vision,
    )


def _check(config: QwenVLConfig, raw: Mapping[str, Any]) -> None:
    vision = config.vision
    side = round(vision.n_queries**0.5)
    rules = [
        (raw.get("model_type", "qwen") == "qwen", f'model_type is "{raw.get("model_type")}", not "qwen"'),
        (raw.get("rotary_pct", 1.0) == 1.0, "rotary_pct is not 1.0"),
        (raw.get("no_bias", True) is True, "no_bias is not true"),
        (raw.get("tie_word_embeddings", False) is False, "tie_word_embeddings is not false"),
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
