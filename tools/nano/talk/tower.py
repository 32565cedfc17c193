"""The picture side of a small Qwen3-VL for training: parameters with the published names.

Patches of all pictures lie one after the other; only attention goes picture by picture.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenvl_edge.families.vision_tables import interpolation, rotary_tables

UNIT = 256  # the number of patches is rounded up to it: see batches.UNIT


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

    def heads_of(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of patches [n, W], in float32: with heads this few, attention is faster in it."""
        q, k, v = self.qkv(x).float().unflatten(-1, (3, self.heads, -1)).unbind(1)
        return rotated(q, cos, sin), rotated(k, cos, sin), v


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


def ask(block: _Block, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A block up to its attention: queries, keys and values [n, heads, D] of patches [n, W]."""
    return block.attn.heads_of(block.norm1(x), cos, sin)


def answer(block: _Block, x: Tensor, mixed: Tensor) -> Tensor:
    """The rest of the block: patches [n, W] from those before it and mixed values [n, W]."""
    x = x + block.attn.proj(mixed)
    return x + block.mlp(block.norm2(x))


def attend(q: Tensor, k: Tensor, v: Tensor, counts: Sequence[tuple[int, int]]) -> Tensor:
    """Mixed values [n, heads * D] of patches [n, heads, D]; counts: pictures of one size, and the patches of each."""
    sizes = [pictures * patches for pictures, patches in counts]
    sizes.append(len(q) - sum(sizes))
    *parts, padding = zip(*(each.split(sizes) for each in (q, k, v)), strict=True)
    mixed = []
    for (pictures, _), part in zip(counts, parts, strict=True):
        with torch.autocast("cpu", enabled=False):
            found = F.scaled_dot_product_attention(*(x.unflatten(0, (pictures, -1)).transpose(1, 2) for x in part))
        mixed.append(found.transpose(1, 2).flatten(2).flatten(0, 1))
    return torch.cat([*mixed, padding[2].flatten(1)])


class _Merger(nn.Module):
    def __init__(self, config: dict[str, Any], *, after: bool):
        super().__init__()
        self.merged = config["hidden_size"] * config["spatial_merge_size"] ** 2
        self.norm = nn.LayerNorm(self.merged if after else config["hidden_size"], eps=1e-6)
        self.linear_fc1 = nn.Linear(self.merged, self.merged)
        self.linear_fc2 = nn.Linear(self.merged, config["out_hidden_size"])

    def forward(self, x: Tensor) -> Tensor:
        """Patches [n, W] -> tokens [n / 4, H]."""
        shaped = (-1, self.merged)
        x = self.norm(x.reshape(shaped)) if len(self.norm.weight) == self.merged else self.norm(x).reshape(shaped)
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))


class Tower(nn.Module):
    """The picture side. ask, answer: what its blocks compute, as it is or compiled."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.config = config
        self.ask, self.answer = ask, answer
        self.deep: list[int] = config["deepstack_visual_indexes"]
        self.patch_embed = _PatchEmbed(config)
        self.pos_embed = nn.Embedding(config["num_position_embeddings"], config["hidden_size"])
        self.blocks = nn.ModuleList([_Block(config) for _ in range(config["depth"])])
        self.merger = _Merger(config, after=False)
        self.deepstack_merger_list = nn.ModuleList([_Merger(config, after=True) for _ in self.deep])

    def forward(self, pictures: Sequence[np.ndarray], *, deep: bool = True) -> Tensor:
        """Pictures [H, W, 3] uint8 -> features [1 + deepstack, tokens, H] in their order; deep: with deepstack."""
        alike = [np.stack(list(each)) for _, each in itertools.groupby(pictures, np.shape)]
        begun = [self._begun(each) for each in alike]
        counts = [(len(each), len(x) // len(each)) for each, (x, *_) in zip(alike, begun, strict=True)]
        x, places, cos, sin = (_padded(torch.cat(each)) for each in zip(*begun, strict=True))
        x = self.patch_embed(x).float() + places
        further = []
        for number, block in enumerate(self.blocks):
            q, k, v = self.ask(block, x, cos, sin)
            x = self.answer(block, x, attend(q, k, v, counts))
            if deep and number in self.deep:
                further.append(self.deepstack_merger_list[self.deep.index(number)](x))
        tokens = sum(pictures * patches for pictures, patches in counts) // self.config["spatial_merge_size"] ** 2
        return torch.stack([self.merger(x), *further])[:, :tokens].float()

    def _begun(self, pictures: np.ndarray) -> tuple[Tensor, ...]:
        """Patches of pictures [N, H, W, 3], what is added for their places, cosines and sines, each [N * P, ...]."""
        side, merge = self.config["patch_size"], self.config["spatial_merge_size"]
        grid = pictures.shape[1] // side, pictures.shape[2] // side, merge
        index, weight = interpolation(*grid, math.isqrt(self.pos_embed.num_embeddings))
        places = (self.pos_embed(torch.tensor(index)) * torch.tensor(weight)[..., None]).sum(1)
        head = self.config["hidden_size"] // self.config["num_heads"]
        tables = (np.tile(table, (len(pictures), 1))[:, None] for table in rotary_tables(*grid, head))
        patches = patches_of(pictures, side, merge).flatten(0, 1)
        return patches, places.repeat(len(pictures), 1), *(torch.from_numpy(table) for table in tables)


def _padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, -len(x) % UNIT))
