"""Qwen-VL in PyTorch: a picture side (reference_vision.py) and a Qwen decoder (arXiv 2308.12966).

This is the reference that every exported graph is compared with. Module names equal the checkpoint's tensor names, so
`model.load_state_dict(tensors)` is all the loading there is. Nothing here knows about text: token ids and pictures in,
logits out. Shapes: B batch, T tokens, C = tokens in cache, N pictures, Q queries per picture, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenvl_edge.bundle.contract import PIXEL_VALUES
from qwenvl_edge.inputs.prompt import Prompt
from qwenvl_edge_export.families.base import (
    ImageFeatures,
    PictureInputs,
    ReferenceLayer,
    ReferenceVision,
    text_mask,
    text_places,
)
from qwenvl_edge_export.families.qwen_vl.config import QwenVLConfig
from qwenvl_edge_export.families.qwen_vl.reference_vision import VisionTransformer
from qwenvl_edge_export.families.streaming import streamed
from qwenvl_edge_export.graphs.roles import Tensors

Cache: TypeAlias = list[tuple[Tensor, Tensor]]  # for each layer: keys after rotary embedding, values, [B, heads, C, D]


def ntk_alpha(length: int, seq_length: int) -> float:
    """Dynamic NTK: how far the rotary base is stretched for a prompt of `length` tokens (1 up to `seq_length`)."""
    return max(2.0 ** math.ceil(math.log2(length / seq_length) + 1) - 1, 1.0)


def prompt_alpha(config: QwenVLConfig, length: int) -> float:
    """The dynamic NTK factor of a prompt of `length` tokens; 1 where the model has none."""
    return ntk_alpha(length, config.seq_length) if config.use_dynamic_ntk else 1.0


def rotary_tables(positions: Tensor, config: QwenVLConfig, alpha: float) -> tuple[Tensor, Tensor]:
    """Positions [..., T] -> cos and sin [..., T, D], the two halves equal (NeoX layout)."""
    dim = config.head_dim
    base = config.rope_base * alpha ** (dim / (dim - 2))
    inv_freq = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angles = positions[..., None].float() * inv_freq
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def call_context(config: QwenVLConfig, places: Tensor, alpha: float) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Inputs of all layers for tokens at `places` [T] of their text: rotary tables, and log-n scale [T, 1]."""
    q_scale = torch.ones(len(places))
    if config.use_logn_attn:
        q_scale = ((places + 1).float().log() / math.log(config.seq_length)).clamp(min=1.0)
    return rotary_tables(places, config, alpha), q_scale[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [..., D] in fp32."""
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class RMSNorm(nn.Module):
    """Normalises in fp32 and casts back before the weight is applied, as the published code does."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class Attention(nn.Module):
    """Causal multi-head attention over cache + new tokens."""

    def __init__(self, config: QwenVLConfig):
        super().__init__()
        self.heads = config.num_heads
        self.c_attn = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], q_scale: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[B, T, H] -> [B, T, H] and this layer's cache; q_scale [T, 1], mask [B, 1, T, C + T] (true = attend)."""
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.c_attn(x).chunk(3, dim=-1))
        q, k = rotate(q, *rope) * q_scale, rotate(k, *rope)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.c_proj(out.transpose(1, 2).flatten(2)), (k, v)


class MLP(nn.Module):
    """Gated linear unit; SiLU sits on w2."""

    def __init__(self, config: QwenVLConfig):
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.mlp_width, bias=False)
        self.w2 = nn.Linear(config.hidden_size, config.mlp_width, bias=False)
        self.c_proj = nn.Linear(config.mlp_width, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H] -> [B, T, H]."""
        return self.c_proj(self.w1(x) * F.silu(self.w2(x)))


class Block(nn.Module):
    """Pre-norm decoder layer."""

    def __init__(self, config: QwenVLConfig):
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = Attention(config)
        self.ln_2 = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], q_scale: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[B, T, H] -> [B, T, H] and this layer's cache."""
        out, cache = self.attn(self.ln_1(x), rope, q_scale, mask, past)
        x = x + out
        return x + self.mlp(self.ln_2(x)), cache


class Transformer(nn.Module):
    """Token embeddings, the layers, the last norm, and the picture side under the name `visual`."""

    def __init__(self, config: QwenVLConfig):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.norm_eps)
        self.visual = VisionTransformer(config.vision)


class QwenVLNetwork(nn.Module):
    """The whole model. `encode_images` + `embed` + `decode` are the three stages that the bundle has too."""

    def __init__(self, config: QwenVLConfig):
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @classmethod
    def load(cls, config: QwenVLConfig, tensors: Tensors, dtype: torch.dtype = torch.float32) -> QwenVLNetwork:
        """The network with a checkpoint's `tensors` in `dtype`, ready for inference."""
        with torch.device("meta"):
            network = cls(config)
        network.load_state_dict({name: tensors(name).to(dtype) for name in network.state_dict()}, assign=True)
        return network.requires_grad_(False).eval()

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """[N, 3, S, S] -> image features [N, Q, H]."""
        return self.transformer.visual(pixel_values)

    def embed(self, input_ids: Tensor, features: Tensor | None = None) -> Tensor:
        """Token ids [B, T] -> [B, T, H]; the Q positions after the i-th image-start id take features[i]."""
        hidden = self.transformer.wte(input_ids)
        if features is None:
            return hidden
        hidden = hidden.clone()
        starts = (input_ids == self.config.vision.image_start_id).nonzero()
        if len(starts) != len(features):
            raise ValueError(f"{len(starts)} image spans in the prompt, features of {len(features)} pictures given")
        for (row, start), picture in zip(starts.tolist(), features, strict=True):
            hidden[row, start + 1 : start + 1 + len(picture)] = picture
        return hidden

    def decode(
        self,
        inputs_embeds: Tensor,
        cache: Cache | None = None,
        *,
        alpha: float | None = None,
        padding: Tensor | None = None,
        last: int | None = None,
    ) -> tuple[Tensor, Cache]:
        """Logits [B, T or last, V] of new tokens [B, T, H] that follow `cache`, and the longer cache.

        alpha: dynamic NTK factor; by default that of a prompt of T tokens. A cache must be continued with its own.
        padding: [B, C + T], false where a row has padding; positions count it, as in the published code.
        last: compute logits for this many last positions only.
        """
        config = self.config
        past = cache[0][0].shape[2] if cache else 0
        new = inputs_embeds.shape[1]
        if alpha is None:
            alpha = prompt_alpha(config, new)
        places = torch.arange(past, past + new)
        rope, q_scale = call_context(config, places, alpha)
        mask = places[:, None] >= torch.arange(past + new)
        mask = mask if padding is None else mask & padding[:, None, None, :]
        x, present = inputs_embeds, []
        for i, block in enumerate(self.transformer.h):
            x, kv = block(x, rope, q_scale.to(x.dtype), mask, cache[i] if cache else None)
            present.append(kv)
        x = self.transformer.ln_f(x if last is None else x[:, -last:])
        return self.lm_head(x), present

    def forward(self, input_ids: Tensor, pixel_values: Tensor | None = None) -> Tensor:
        """Token ids [B, T] and pictures [N, 3, S, S] -> logits [B, T, V]."""
        features = None if pixel_values is None else self.encode_images(pixel_values)
        return self.decode(self.embed(input_ids, features))[0]

    @torch.no_grad()
    def generate(self, inputs_embeds: Tensor, max_new_tokens: int, stop_ids: frozenset[int] = frozenset()) -> list[int]:
        """Greedy continuation of one prompt [1, T, H]; the plain loop that the runtime's engine is compared with."""
        length = inputs_embeds.shape[1]
        alpha = prompt_alpha(self.config, length)
        tokens: list[int] = []
        cache: Cache | None = None
        while len(tokens) < max_new_tokens:
            logits, cache = self.decode(inputs_embeds, cache, alpha=alpha, last=1)
            tokens.append(int(logits[0, -1].argmax()))
            if tokens[-1] in stop_ids:
                break
            inputs_embeds = self.embed(torch.tensor([tokens[-1:]]))
        return tokens


class QwenVLLayer(ReferenceLayer):
    """Decoder layer `index` with weights that `tensors` reads; its modules are called as in the checkpoint's layer."""

    def __init__(self, config: QwenVLConfig, index: int, tensors: Tensors):
        super().__init__()
        self._config = config
        with torch.device("meta"):
            self.block = Block(config)
        state = {name: tensors(f"transformer.h.{index}.{name}") for name in self.block.state_dict()}
        self.block.load_state_dict(state, assign=True)
        self.requires_grad_(False).eval()

    def forward(self, rows: Tensor, prompt: Prompt, answers: Sequence[int] = ()) -> Tensor:
        """See ReferenceLayer."""
        alpha = prompt_alpha(self._config, len(prompt.ids))
        rope, q_scale = call_context(self._config, text_places(len(rows), prompt, answers), alpha)
        return self.block(rows[None], rope, q_scale, text_mask(len(rows), prompt, answers), None)[0][0]


class QwenVLVision(ReferenceVision):
    """The picture side with weights that `tensors` reads; its modules are called as in the checkpoint."""

    def __init__(self, config: QwenVLConfig, tensors: Tensors):
        super().__init__()
        with torch.device("meta"):
            self.transformer = nn.ModuleDict({"visual": VisionTransformer(config.vision)})
        streamed(self, tensors)

    def forward(self, picture: PictureInputs) -> ImageFeatures:
        """See ReferenceVision."""
        return ImageFeatures(self.transformer["visual"](torch.from_numpy(picture.arrays[PIXEL_VALUES]))[0])


def expected_shapes(config: QwenVLConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this configuration has."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in QwenVLNetwork(config).state_dict().items()}
