"""A small Qwen3-VL for training: parameters have the published names, so that its state is a checkpoint.

Pictures of any sizes in the tower, packed conversations in the decoder. transformers' own modules compute the same
(tests/repository/test_talk.py) and take longer for models this small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenvl_edge.families.mrope import interleaved_axes
from tools.nano.loop import bfloat16_products
from tools.nano.model import sincos_positions
from tools.nano.talk import tower
from tools.nano.talk.fusing import fused
from tools.nano.talk.guiding import Teacher
from tools.nano.talk.packing import Packed, softmax
from tools.nano.talk.talker import Talker
from tools.nano.talk.tower import Tower, rotated
from tools.nano.talk.words import SPECIAL

MIN_PIXELS, MAX_PIXELS = 40_960, 65_536  # of a picture after resizing: 40 to 64 tokens


def config_dict(ranks: int) -> dict[str, Any]:
    """config.json of a model with a vocabulary of `ranks` BPE tokens."""
    ids = {token: ranks + number for number, token in enumerate(SPECIAL)}
    text = {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": -(-(ranks + len(SPECIAL)) // 64) * 64,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [12, 10, 10], "rope_type": "default"},
        "hidden_act": "silu",
        "attention_bias": False,
        "model_type": "qwen3_vl_text",
    }
    vision = {
        "depth": 6,
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_heads": 3,
        "deepstack_visual_indexes": [1, 3, 4],
        "in_channels": 3,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "num_position_embeddings": 256,
        "out_hidden_size": 256,
        "model_type": "qwen3_vl",
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "text_config": text,
        "vision_config": vision,
    }


class _Norm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), 1e-6)


class _Attention(nn.Module):
    def __init__(self, config: dict[str, Any]):
        super().__init__()
        hidden, self.dim = config["hidden_size"], config["head_dim"]
        heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
        self.q_proj = nn.Linear(hidden, heads * self.dim, bias=False)
        self.k_proj = nn.Linear(hidden, groups * self.dim, bias=False)
        self.v_proj = nn.Linear(hidden, groups * self.dim, bias=False)
        self.o_proj = nn.Linear(heads * self.dim, hidden, bias=False)
        self.q_norm, self.k_norm = _Norm(self.dim), _Norm(self.dim)

    def heads_of(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [T, heads, D] of x [T, H]."""
        q, k, v = (each(x).unflatten(-1, (-1, self.dim)) for each in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (rotated(each, cos, sin).to(v.dtype) for each in (self.q_norm(q), self.k_norm(k)))
        return q, k, v


class _GatedMlp(nn.Module):
    def __init__(self, config: dict[str, Any]):
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Layer(nn.Module):
    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.input_layernorm = _Norm(config["hidden_size"])
        self.post_attention_layernorm = _Norm(config["hidden_size"])
        self.self_attn = _Attention(config)
        self.mlp = _GatedMlp(config)


def ask(layer: _Layer, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A layer up to its attention: queries, keys and values [T, heads, D] of states [T, H]."""
    return layer.self_attn.heads_of(layer.input_layernorm(hidden), cos, sin)


def answer(layer: _Layer, hidden: Tensor, mixed: Tensor) -> Tensor:
    """The rest of the layer: states [T, H] from those before it and mixed values [T, heads * D]."""
    hidden = hidden + layer.self_attn.o_proj(mixed)
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


class Decoder(nn.Module):
    """The language side. ask, answer, softmax: what its layers compute, as it is or compiled."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.config = config
        self.ask, self.answer, self.softmax = ask, answer, softmax
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList([_Layer(config) for _ in range(config["num_hidden_layers"])])
        self.norm = _Norm(config["hidden_size"])

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, 1, D / 2] of positions [3, T]."""
        half = self.config["head_dim"] // 2
        axes = torch.from_numpy(interleaved_axes(self.config["rope_scaling"]["mrope_section"]))
        powers = torch.arange(half, dtype=torch.float32) / half
        angles = positions[axes].T.float() * self.config["rope_theta"] ** -powers
        return angles.cos()[:, None], angles.sin()[:, None]

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        packed: Packed,
        places: Tensor,
        features: Tensor,
        guides: Sequence[Teacher] = (),
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """States [T, H], the guides' loss and figures.

        packed: the tokens that each token sees. places: of the pictures' tokens [n]. features: [1 + deepstack, n, H].
        """
        hidden = self.embed_tokens(ids).index_copy(0, places, features[0])
        cos, sin = self.rope(positions)
        guided, seen = hidden.new_zeros(()), {}
        for number, layer in enumerate(self.layers):
            q, k, v = self.ask(layer, hidden, cos, sin)
            for guide in guides:
                if guide.layer == number:
                    part = guide.loss(q, k, hidden)
                    seen[guide.name] = float((-part.detach()).exp())
                    guided = guided + part
            hidden = self.answer(layer, hidden, packed.attend(q, k, v, self.softmax))
            if number + 1 < len(features):
                hidden = hidden.index_add(0, places, features[number + 1])
        return self.norm(hidden), guided, seen


class _Inner(nn.Module):
    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.visual = Tower(config["vision_config"])
        self.language_model = Decoder(config["text_config"])


class Qwen3VL(Talker):
    """The whole model; `state_dict` has the names of a published checkpoint."""

    precision = staticmethod(bfloat16_products)

    def __init__(self, config: dict[str, Any], seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.config = config
        self.width = config["text_config"]["hidden_size"]
        self.model = _Inner(config)
        text = config["text_config"]
        self.lm_head = nn.Linear(text["hidden_size"], text["vocab_size"], bias=False)
        self._start()

    @property
    def tower(self) -> nn.Module:
        """See Talker."""
        return self.model.visual

    @property
    def speaker(self) -> nn.Module:
        """See Talker."""
        return nn.ModuleList([self.model.language_model, self.lm_head])

    def seen(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """See Talker."""
        features: Tensor = self.model.visual(pictures, deep=False)
        return features[0]

    def encode(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """See Talker; the first features and those of deepstack."""
        features: Tensor = self.model.visual(pictures)
        return features

    def decode(
        self,
        ids: Tensor,
        positions: Tensor,
        packed: Packed,
        places: Tensor,
        features: Tensor,
        guides: Sequence[Teacher] = (),
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """See Talker."""
        found: tuple[Tensor, Tensor, dict[str, float]] = self.model.language_model(
            ids, positions, packed, places, features, guides
        )
        return found

    def published(self) -> Mapping[str, Tensor]:
        """See Talker."""
        return self.state_dict()

    def fuse(self) -> None:
        """See Talker."""
        decoder = self.model.language_model
        decoder.ask, decoder.answer = fused(ask), fused(answer)
        decoder.softmax = fused(softmax, (0, 3, 4))
        self.model.visual.ask, self.model.visual.answer = fused(tower.ask), fused(tower.answer)

    def _start(self) -> None:
        """Words as strong as picture features; outputs to the residual stream small (tower) or zero (decoder)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                continue
            std = 0.8 / math.sqrt(parameter[0].numel())
            if "embed_tokens" in name:
                std = 0.5
            elif "lm_head" in name:
                std = 0.005
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                std = 0.0
            elif ".blocks." in name and name.endswith(("attn.proj.weight", "linear_fc2.weight")):
                std *= 0.3
            elif "deepstack" in name and name.endswith("linear_fc2.weight"):
                std = 0.0
            nn.init.normal_(parameter, std=std)
        table = self.model.visual.pos_embed.weight  # attention finds neighbours from the first step on
        table.data.copy_(0.7 * sincos_positions(math.isqrt(len(table)), table.shape[1], spacing=0.5))
