"""The decoder's roles: which tensors of a Qwen-VL checkpoint play them."""

from __future__ import annotations

from qwenvl_edge_export.families.qwen_vl.config import QwenVLConfig
from qwenvl_edge_export.graphs.roles import Decoder, DecoderLayer, InputGroup, LinearRole, stored


def decoder_of(config: QwenVLConfig) -> Decoder:
    """Dimensions and roles; as many key heads as heads, a bias on qkv alone, an output layer of its own."""
    hidden, vocab = config.hidden_size, config.vocab_size
    return Decoder(
        hidden_size=hidden,
        heads=config.num_heads,
        kv_heads=config.num_heads,
        head_dim=config.head_dim,
        vocab_size=vocab,
        norm_eps=config.norm_eps,
        embedding=stored("transformer.wte.weight", vocab, hidden),
        layers=tuple(_layer(config, f"transformer.h.{i}") for i in range(config.num_layers)),
        final_norm=stored("transformer.ln_f.weight", hidden),
        head=LinearRole(stored("lm_head.weight", vocab, hidden)),
        scales_queries=config.use_logn_attn,
    )


def _layer(config: QwenVLConfig, name: str) -> DecoderLayer:
    hidden, inner = config.hidden_size, config.mlp_width
    qkv = LinearRole(
        stored(f"{name}.attn.c_attn.weight", 3 * hidden, hidden), stored(f"{name}.attn.c_attn.bias", 3 * hidden)
    )
    out = LinearRole(stored(f"{name}.attn.c_proj.weight", hidden, hidden))
    # SiLU sits on w2.
    up, gate = (LinearRole(stored(f"{name}.mlp.{part}.weight", inner, hidden)) for part in ("w1", "w2"))
    down = LinearRole(stored(f"{name}.mlp.c_proj.weight", hidden, inner))
    return DecoderLayer(
        attention_norm=stored(f"{name}.ln_1.weight", hidden),
        qkv=qkv,
        out=out,
        mlp_norm=stored(f"{name}.ln_2.weight", hidden),
        up=up,
        gate=gate,
        down=down,
        groups=(
            InputGroup((qkv.weight,), "block.attn.c_attn"),
            InputGroup((out.weight,), "block.attn.c_proj"),
            InputGroup((up.weight, gate.weight), "block.mlp.w1"),
            InputGroup((down.weight,), "block.mlp.c_proj"),
        ),
    )
