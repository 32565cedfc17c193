"""The picture side of Qwen-VL in PyTorch: a ViT and a one-layer cross-attention resampler (arXiv 2308.12966).

Module names equal the checkpoint's tensor names. Shapes: N pictures, P patches, Q queries per picture, H hidden size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenvl_edge_export.families.qwen_vl.config import VisionConfig

VISION_EPS = 1e-6


def resize_positions(table: Tensor, side: int) -> Tensor:
    """Bicubic resampling of a square position table [s*s, width] to [side*side, width]."""
    old = math.isqrt(table.shape[0])
    if old == side:
        return table
    grid = table.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)


class VisionAttention(nn.Module):
    """Self-attention whose projection is interleaved by head: rows [q|k|v] of head 0, then of head 1, ..."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.heads = config.heads
        self.in_proj = nn.Linear(config.width, 3 * config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, P, width] -> [N, P, width]."""
        qkv = self.in_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
        return self.out_proj(out.transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    """Two linear layers around the exact (erf) GELU."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.width, config.mlp_width)
        self.c_proj = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, P, width] -> [N, P, width]."""
        return self.c_proj(F.gelu(self.c_fc(x)))


class VisionBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, eps=VISION_EPS)
        self.attn = VisionAttention(config)
        self.ln_2 = nn.LayerNorm(config.width, eps=VISION_EPS)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """[N, P, width] -> [N, P, width]."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Resampler(nn.Module):
    """The position-aware adapter: Q learned queries read the patches once; positions go to queries and keys only."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        dim = config.output_dim
        self.grid = config.grid
        self.query = nn.Parameter(torch.empty(config.n_queries, dim))
        self.pos_embed = nn.Parameter(torch.empty(config.n_queries, dim), requires_grad=False)
        self.kv_proj = nn.Linear(config.width, dim, bias=False) if config.width != dim else nn.Identity()
        self.attn = nn.MultiheadAttention(dim, config.resampler_heads, batch_first=True)
        self.ln_q = nn.LayerNorm(dim, eps=VISION_EPS)
        self.ln_kv = nn.LayerNorm(dim, eps=VISION_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[N, P, width] -> [N, Q, H]."""
        values = self.ln_kv(self.kv_proj(x))
        keys = values + resize_positions(self.pos_embed, self.grid)
        queries = (self.ln_q(self.query) + self.pos_embed).expand(len(x), -1, -1)
        return self.attn(queries, keys, values, need_weights=False)[0]


class VisionTransformer(nn.Module):
    """Picture to features. There is no class token and no norm after the last block; ln_post follows the resampler."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.grid = config.grid
        self.conv1 = nn.Conv2d(3, config.width, config.patch_size, config.patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.empty(256, config.width))
        self.ln_pre = nn.LayerNorm(config.width, eps=VISION_EPS)
        blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.layers))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.attn_pool = Resampler(config)
        self.ln_post = nn.LayerNorm(config.output_dim, eps=VISION_EPS)
        self.proj = nn.Parameter(torch.empty(config.output_dim, config.output_dim))

    def encode_patches(self, pixel_values: Tensor) -> Tensor:
        """[N, 3, S, S] -> [N, P, width], what the resampler reads."""
        x: Tensor = self.conv1(pixel_values).flatten(2).transpose(1, 2)
        x = self.ln_pre(x + resize_positions(self.positional_embedding, self.grid))
        for block in self.transformer["resblocks"].children():
            x = block(x)
        return x

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[N, 3, S, S] -> image features [N, Q, H]."""
        return self.ln_post(self.attn_pool(self.encode_patches(pixel_values))) @ self.proj
