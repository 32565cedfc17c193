"""Names and shapes of a checkpoint's tensors.

Files have two naming schemes: the published one, which transformers 5 writes again, and that of transformers 4.52 to
4.57. Here tensors have the names of transformers' modules, so that the reference network takes them as they are;
`canonical` finds these names for a file's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from qwenvl_edge_export.families.dynamic_vl.config import DynamicVLSource, TextConfig, VisionConfig
from qwenvl_edge_export.families.dynamic_vl.variants import Variant

TEXT, VISUAL = "model.language_model", "model.visual"
EMBEDDING, HEAD = f"{TEXT}.embed_tokens.weight", "lm_head.weight"
Shapes = dict[str, tuple[int, ...]]

_OLD_TOWER = re.compile(r"^visual\.")
_OLD_DECODER = re.compile(r"^model\.(?!language_model\.|visual\.)")


def canonical(name: str) -> str:
    """The name that a tensor of a file has here."""
    return _OLD_DECODER.sub(f"{TEXT}.", _OLD_TOWER.sub(f"{VISUAL}.", name))


def tensor_shapes(config: DynamicVLSource) -> Shapes:
    """Name and shape of every tensor; a tied head has none of its own."""
    text = config.text
    shapes: Shapes = {EMBEDDING: (text.vocab_size, text.hidden_size)}
    for i in range(text.num_layers):
        shapes.update(_layer(config.variant, text, f"{TEXT}.layers.{i}"))
    shapes[f"{TEXT}.norm.weight"] = (text.hidden_size,)
    if not text.tied:
        shapes[HEAD] = (text.vocab_size, text.hidden_size)
    shapes.update(_tower(config.variant, config.vision))
    return shapes


def _layer(variant: Variant, text: TextConfig, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = text.hidden_size, text.mlp_width
    heads = {"q_proj": text.num_heads, "k_proj": text.num_kv_heads, "v_proj": text.num_kv_heads}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield f"{name}.{norm}.weight", (hidden,)
    for part, count in heads.items():
        yield f"{name}.self_attn.{part}.weight", (count * text.head_dim, hidden)
        if variant.qkv_bias:
            yield f"{name}.self_attn.{part}.bias", (count * text.head_dim,)
    yield f"{name}.self_attn.o_proj.weight", (hidden, text.num_heads * text.head_dim)
    if variant.qk_norm:
        for norm in ("q_norm", "k_norm"):
            yield f"{name}.self_attn.{norm}.weight", (text.head_dim,)
    for part in ("gate_proj", "up_proj"):
        yield f"{name}.mlp.{part}.weight", (inner, hidden)
    yield f"{name}.mlp.down_proj.weight", (hidden, inner)


def _tower(variant: Variant, vision: VisionConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, side = vision.width, vision.patch_size
    yield f"{VISUAL}.patch_embed.proj.weight", (width, 3, vision.temporal_patch_size, side, side)
    if variant.patch_bias:
        yield f"{VISUAL}.patch_embed.proj.bias", (width,)
    if vision.positions:
        yield f"{VISUAL}.pos_embed.weight", (vision.positions, width)
    for i in range(vision.depth):
        yield from _block(variant, vision, f"{VISUAL}.blocks.{i}")
    yield from _merger(variant, vision, f"{VISUAL}.merger", width)
    for i in range(len(vision.deepstack)):
        yield from _merger(variant, vision, f"{VISUAL}.deepstack_merger_list.{i}", vision.merged_width)


def _block(variant: Variant, vision: VisionConfig, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner = vision.width, vision.mlp_width
    up, down, *gate = variant.mlp
    for norm in ("norm1", "norm2"):
        yield from _norm(variant, f"{name}.{norm}", width)
    yield from _linear(f"{name}.attn.qkv", 3 * width, width)
    yield from _linear(f"{name}.attn.proj", width, width)
    for part in (up, *gate):
        yield from _linear(f"{name}.mlp.{part}", inner, width)
    yield from _linear(f"{name}.mlp.{down}", width, inner)


def _merger(
    variant: Variant, vision: VisionConfig, name: str, norm_width: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    norm, first, second = variant.merger
    yield from _norm(variant, f"{name}.{norm}", norm_width)
    yield from _linear(f"{name}.{first}", vision.merged_width, vision.merged_width)
    yield from _linear(f"{name}.{second}", vision.output_width, vision.merged_width)


def _norm(variant: Variant, name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    if not variant.rms_norms:
        yield f"{name}.bias", (width,)


def _linear(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)
