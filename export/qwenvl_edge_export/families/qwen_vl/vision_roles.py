"""The picture side's roles: which tensors of a Qwen-VL checkpoint play them, and what is computed of them at export.

Both position tables are interpolated to the picture's grid, and the resampler's queries, the same for every picture,
are stored already projected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from qwenvl_edge_export.families.qwen_vl.config import QwenVLConfig, VisionConfig
from qwenvl_edge_export.families.qwen_vl.reference_vision import VISION_EPS, resize_positions
from qwenvl_edge_export.graphs.roles import InputGroup, LinearRole, NormRole, Role, Tensors, Weight, stored

_VISUAL = "transformer.visual"
_POOL = f"{_VISUAL}.attn_pool"


@dataclass(frozen=True)
class VisionBlock:
    """One ViT block. qkv: rows of all queries, all keys, all values."""

    attention_norm: NormRole
    qkv: LinearRole
    out: LinearRole
    mlp_norm: NormRole
    up: LinearRole
    down: LinearRole

    def __iter__(self) -> Iterator[Role]:
        yield from (self.attention_norm, self.qkv, self.out, self.mlp_norm, self.up, self.down)


@dataclass(frozen=True)
class Resampler:
    """Q learned queries [1, Q, H], projected, that read keys and values once; `widen` where the ViT is narrower."""

    widen: LinearRole | None
    norm: NormRole
    key_positions: Weight
    keys: LinearRole
    values: LinearRole
    queries: Weight
    out: LinearRole

    def __iter__(self) -> Iterator[Role]:
        yield from () if self.widen is None else (self.widen,)
        yield from (self.norm, self.key_positions, self.keys, self.values, self.queries, self.out)


@dataclass(frozen=True)
class Vision:
    """The vision graph's weights; iteration yields them in the order in which they are stored."""

    patches: Weight
    positions: Weight
    pre_norm: NormRole
    blocks: tuple[VisionBlock, ...]
    resampler: Resampler
    post_norm: NormRole
    projection: LinearRole
    groups: tuple[InputGroup, ...]

    def __iter__(self) -> Iterator[Role]:
        yield from (self.patches, self.positions, self.pre_norm)
        for block in self.blocks:
            yield from block
        yield from self.resampler
        yield from (self.post_norm, self.projection)


def vision_of(config: QwenVLConfig) -> Vision:
    """The roles that follow from a configuration."""
    vision = config.vision
    width, dim, side = vision.width, vision.output_dim, vision.patch_size
    positions = Weight(
        f"{_VISUAL}.positional_embedding.resized",
        (vision.grid**2, width),
        lambda tensors: resize_positions(tensors(f"{_VISUAL}.positional_embedding").float(), vision.grid),
    )
    blocks = tuple(_block(vision, f"{_VISUAL}.transformer.resblocks.{i}") for i in range(vision.layers))
    resampler = _resampler(vision)
    # proj is stored [in, out], the other way round than linear layers.
    proj = f"{_VISUAL}.proj"
    projection = LinearRole(Weight(f"{proj}.transposed", (dim, dim), lambda tensors: tensors(proj).T))
    return Vision(
        patches=stored(f"{_VISUAL}.conv1.weight", width, 3, side, side),
        positions=positions,
        pre_norm=_norm(f"{_VISUAL}.ln_pre", width),
        blocks=blocks,
        resampler=resampler,
        post_norm=_norm(f"{_VISUAL}.ln_post", dim),
        projection=projection,
        groups=(
            *(group for i, block in enumerate(blocks) for group in _block_groups(i, block)),
            *_resampler_groups(resampler),
            InputGroup((projection.weight,), f"{_VISUAL}.ln_post", _normed),
        ),
    )


def _norm(name: str, width: int) -> NormRole:
    return NormRole(stored(f"{name}.weight", width), stored(f"{name}.bias", width))


def _linear(name: str, outputs: int, inputs: int) -> LinearRole:
    return LinearRole(stored(f"{name}.weight", outputs, inputs), stored(f"{name}.bias", outputs))


def _block(config: VisionConfig, name: str) -> VisionBlock:
    width, inner, in_proj = config.width, config.mlp_width, f"{name}.attn.in_proj"
    return VisionBlock(
        attention_norm=_norm(f"{name}.ln_1", width),
        qkv=LinearRole(
            _deinterleaved(config, f"{in_proj}.weight", (3 * width, width)),
            _deinterleaved(config, f"{in_proj}.bias", (3 * width,)),
        ),
        out=_linear(f"{name}.attn.out_proj", width, width),
        mlp_norm=_norm(f"{name}.ln_2", width),
        up=_linear(f"{name}.mlp.c_fc", inner, width),
        down=_linear(f"{name}.mlp.c_proj", width, inner),
    )


def _deinterleaved(config: VisionConfig, name: str, shape: tuple[int, ...]) -> Weight:
    """in_proj with rows [q|k|v] of head 0, of head 1, ... reordered to all q, all k, all v."""

    def read(tensors: Tensors) -> Tensor:
        by_head = tensors(name).view(config.heads, 3, config.head_dim, *shape[1:])
        return by_head.transpose(0, 1).reshape(shape)

    return Weight(f"{name}.qkv", shape, read)


def _block_groups(index: int, block: VisionBlock) -> Iterator[InputGroup]:
    name = f"{_VISUAL}.transformer.resblocks.{index}"
    modules = ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    for module, role in zip(modules, (block.qkv, block.out, block.up, block.down), strict=True):
        yield InputGroup((role.weight,), f"{name}.{module}")


def _resampler(config: VisionConfig) -> Resampler:
    dim = config.output_dim
    narrower = config.width != dim
    return Resampler(
        widen=LinearRole(stored(f"{_POOL}.kv_proj.weight", dim, config.width)) if narrower else None,
        norm=_norm(f"{_POOL}.ln_kv", dim),
        key_positions=Weight(
            f"{_POOL}.pos_embed.resized",
            (config.grid**2, dim),
            lambda tensors: resize_positions(tensors(f"{_POOL}.pos_embed").float(), config.grid),
        ),
        keys=_in_proj(dim, 1),
        values=_in_proj(dim, 2),
        queries=Weight(f"{_POOL}.query.projected", (1, config.n_queries, dim), _projected_queries),
        out=_linear(f"{_POOL}.attn.out_proj", dim, dim),
    )


def _in_proj(dim: int, block: int) -> LinearRole:
    """Block 0 (q), 1 (k) or 2 (v) of the resampler's in_proj."""
    weight, bias = (
        Weight(f"{name}.{block}", shape, lambda tensors, name=name: tensors(name).chunk(3)[block])  # type: ignore[misc]
        for name, shape in ((f"{_POOL}.attn.in_proj_weight", (dim, dim)), (f"{_POOL}.attn.in_proj_bias", (dim,)))
    )
    return LinearRole(weight, bias)


def _projected_queries(tensors: Tensors) -> Tensor:
    """q_proj(ln_q(query) + pos_embed), [1, Q, H] float32."""
    query, positions = (tensors(f"{_POOL}.{name}").float() for name in ("query", "pos_embed"))
    scale, shift = (tensors(f"{_POOL}.ln_q.{part}").float() for part in ("weight", "bias"))
    normed = F.layer_norm(query, query.shape[1:], scale, shift, VISION_EPS)
    weight, bias = (tensors(f"{_POOL}.attn.in_proj_{part}").chunk(3)[0].float() for part in ("weight", "bias"))
    return F.linear(normed + positions, weight, bias)[None]


def _resampler_groups(resampler: Resampler) -> Iterator[InputGroup]:
    if resampler.widen is not None:
        yield InputGroup((resampler.widen.weight,), f"{_POOL}.kv_proj")
    attention = f"{_POOL}.attn"
    yield InputGroup((resampler.keys.weight,), attention, lambda _, q, k, v: k)
    yield InputGroup((resampler.values.weight,), attention, lambda _, q, k, v: v)
    yield InputGroup((resampler.out.weight,), attention, _attended)


def _attended(attention: nn.MultiheadAttention, *inputs: Tensor) -> Tensor:
    """The inputs [N, Q, H] of out_proj, which MultiheadAttention applies without calling it."""
    assert attention.in_proj_weight is not None
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, weight, bias).reshape(len(x), -1, attention.num_heads, attention.head_dim).transpose(1, 2)
        for x, weight, bias in zip(inputs, weights, biases, strict=True)
    )
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
