"""The decoder's roles: which tensors play them."""

from __future__ import annotations

from qwenvl_edge_export.families.dynamic_vl.config import DynamicVLSource
from qwenvl_edge_export.families.dynamic_vl.tensors import EMBEDDING, HEAD, TEXT, Shapes
from qwenvl_edge_export.graphs.roles import Decoder, DecoderLayer, InputGroup, LinearRole, Weight, joined, stored


def decoder_of(config: DynamicVLSource, shapes: Shapes) -> Decoder:
    """Dimensions and roles; a tied head reads the embedding's tensor."""
    text, embedding = config.text, stored(EMBEDDING, *shapes[EMBEDDING])
    head = stored(EMBEDDING, *shapes[EMBEDDING], called=HEAD) if text.tied else stored(HEAD, *shapes[HEAD])
    return Decoder(
        hidden_size=text.hidden_size,
        heads=text.num_heads,
        kv_heads=text.num_kv_heads,
        head_dim=text.head_dim,
        vocab_size=text.vocab_size,
        norm_eps=text.norm_eps,
        embedding=embedding,
        layers=tuple(_layer(config, shapes, f"{TEXT}.layers.{i}") for i in range(text.num_layers)),
        final_norm=stored(f"{TEXT}.norm.weight", text.hidden_size),
        head=LinearRole(head),
        deepstack_layers=len(config.vision.deepstack),
    )


def _layer(config: DynamicVLSource, shapes: Shapes, name: str) -> DecoderLayer:
    def tensor(part: str) -> Weight:
        return stored(f"{name}.{part}", *shapes[f"{name}.{part}"])

    def projections(kind: str) -> Weight:
        return joined(f"{name}.self_attn.qkv_proj.{kind}", [tensor(f"self_attn.{part}_proj.{kind}") for part in "qkv"])

    variant = config.variant
    qkv = LinearRole(projections("weight"), projections("bias") if variant.qkv_bias else None)
    out, up, gate, down = (
        LinearRole(tensor(f"{part}.weight"))
        for part in ("self_attn.o_proj", "mlp.up_proj", "mlp.gate_proj", "mlp.down_proj")
    )
    return DecoderLayer(
        attention_norm=tensor("input_layernorm.weight"),
        qkv=qkv,
        out=out,
        mlp_norm=tensor("post_attention_layernorm.weight"),
        up=up,
        gate=gate,
        down=down,
        groups=(
            InputGroup((qkv.weight,), "self_attn.q_proj"),
            InputGroup((out.weight,), "self_attn.o_proj"),
            InputGroup((up.weight, gate.weight), "mlp.up_proj"),
            InputGroup((down.weight,), "mlp.down_proj"),
        ),
        q_norm=tensor("self_attn.q_norm.weight") if variant.qk_norm else None,
        k_norm=tensor("self_attn.k_norm.weight") if variant.qk_norm else None,
    )
