"""The picture side of a small Qwen3-VL for training: one picture size a call, parameters with the published names."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenvl_edge.families.vision_tables import interpolation, rotary_tables


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding over halves; cos and sin are of the half size."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def patches_of(pictures: np.ndarray, side: int, merge: int) -> Tensor:
    """[N, H, W, 3] uint8 -> [N, P, 3 * side * side] float, token by token, normalised to -1..1."""
    count, height, width, _ = pictures.shape
    rows, columns = height // side // merge, width // side // merge
    x = torch.from_numpy(np.ascontiguousarray(pictures)).view(count, rows, merge, side, columns, merge, side, 3)
    x = x.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(count, rows * columns * merge**2, -1)
    return x.float() / 127.5 - 1


class _PatchEmbed(nn.Module):
    def __init__(self, config: dict[str, Any]):
        super().__init__()
        kernel = (config["temporal_patch_size"], config["patch_size"], config["patch_size"])
        self.proj = nn.Conv3d(3, config["hidden_size"], kernel, stride=kernel)

    def forward(self, patches: Tensor) -> Tensor:
        """A picture is a clip of equal frames, so the kernel's frames are added up."""
        return F.linear(patches, self.proj.weight.sum(2).flatten(1), self.proj.bias)


class _VisionAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).float()
        with torch.autocast("cpu", enabled=False):  # with heads this few, float32 is the faster one
            mixed = F.scaled_dot_product_attention(rotated(q, *rope), rotated(k, *rope), v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.linear_fc1 = nn.Linear(width, inner)
        self.linear_fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))


class _Block(nn.Module):
    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width = config["hidden_size"]
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = _VisionAttention(width, config["num_heads"])
        self.mlp = _Mlp(width, config["intermediate_size"])

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attn(self.norm1(x), rope)
        return x + self.mlp(self.norm2(x))


class _Merger(nn.Module):
    def __init__(self, config: dict[str, Any], *, after: bool):
        super().__init__()
        self.merged = config["hidden_size"] * config["spatial_merge_size"] ** 2
        self.norm = nn.LayerNorm(self.merged if after else config["hidden_size"], eps=1e-6)
        self.linear_fc1 = nn.Linear(self.merged, self.merged)
        self.linear_fc2 = nn.Linear(self.merged, config["out_hidden_size"])

    def forward(self, x: Tensor) -> Tensor:
        """[N, P, W] -> [N, tokens, H]."""
        count = x.shape[0]
        shaped = (count, -1, self.merged)
        x = self.norm(x.reshape(shaped)) if len(self.norm.weight) == self.merged else self.norm(x).reshape(shaped)
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))


class Tower(nn.Module):
    """The picture side."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.config = config
        self.deep: list[int] = config["deepstack_visual_indexes"]
        self.patch_embed = _PatchEmbed(config)
        self.pos_embed = nn.Embedding(config["num_position_embeddings"], config["hidden_size"])
        self.blocks = nn.ModuleList([_Block(config) for _ in range(config["depth"])])
        self.merger = _Merger(config, after=False)
        self.deepstack_merger_list = nn.ModuleList([_Merger(config, after=True) for _ in self.deep])

    def forward(self, pictures: np.ndarray, *, deep: bool = True) -> Tensor:
        """[N, H, W, 3] uint8 of one size -> features [1 + deepstack, N, tokens, H]; deep: with deepstack."""
        side, merge = self.config["patch_size"], self.config["spatial_merge_size"]
        grid = pictures.shape[1] // side, pictures.shape[2] // side, merge
        index, weight = interpolation(*grid, math.isqrt(self.pos_embed.num_embeddings))
        head = self.config["hidden_size"] // self.config["num_heads"]
        cos, sin = (torch.from_numpy(table.copy()) for table in rotary_tables(*grid, head))
        places = (self.pos_embed(torch.tensor(index)) * torch.tensor(weight)[..., None]).sum(1)
        x = self.patch_embed(patches_of(pictures, side, merge)).float() + places
        further = []
        for number, block in enumerate(self.blocks):
            x = block(x, (cos, sin))
            if deep and number in self.deep:
                further.append(self.deepstack_merger_list[self.deep.index(number)](x))
        return torch.stack([self.merger(x), *further]).float()
