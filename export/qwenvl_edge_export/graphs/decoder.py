"""decoder.onnx: embeddings in, logits of the wanted rows out, keys and values written into the cache.

    inputs_embeds [B,T,H] -> rows [B*T,H] -> num_layers x { x += out(attention(norm(x))); x += mlp(norm(x)) }
                          -> logits_indices' rows [B*K,H] -> final norm -> head -> logits [B,K,V]

In models with deepstack layers each of the first ones is followed by x += deepstack[layer], the host's rows.

Everything but attention works on rows [M, H], so that a linear layer is one Gemm over the weight as it is stored.
Inside, values have the precision's float type, as a float cache has (float16 in the native dialect); embeddings, rotary
rows and logits are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qwenvl_edge.bundle.contract import (
    DEEPSTACK,
    INPUTS_EMBEDS,
    LOGITS,
    LOGITS_INDICES,
    ROPE_COS,
    ROPE_SIN,
    STANDARD,
    past_name,
    present_of,
)
from qwenvl_edge_export.graphs.attention import OPSETS, CachedAttention, StepInputs, cache_tensors, has_narrow_cache
from qwenvl_edge_export.graphs.builder import FLOAT, INT64, GraphBuilder
from qwenvl_edge_export.graphs.linear import Linear, Norm
from qwenvl_edge_export.graphs.roles import Decoder, DecoderLayer, Weight
from qwenvl_edge_export.graphs.weight_layout import WeightLayout


def build_decoder(decoder: Decoder, layout: WeightLayout, dialect: str, *, int8_cache: bool = False) -> ir.Model:
    """The decoder graph in one dialect, over the weights of `layout`; only "standard" has an int8 cache."""
    g = GraphBuilder("decoder", layout, OPSETS[dialect])
    return _DecoderGraph(g, decoder, dialect, int8_cache).build()


class _DecoderGraph:
    def __init__(self, g: GraphBuilder, decoder: Decoder, dialect: str, int8_cache: bool):
        self.g = g
        self.decoder = decoder
        self.embeds = g.input(INPUTS_EMBEDS, FLOAT, ["B", "T", decoder.hidden_size])
        rope_cos, rope_sin = (g.input(name, FLOAT, ["B", "T", decoder.head_dim // 2]) for name in (ROPE_COS, ROPE_SIN))
        self.deepstack = self._deepstack_rows()
        self.wanted = g.input(LOGITS_INDICES, INT64, ["B", "K"])
        stored = ir.DataType.FLOAT16 if has_narrow_cache(decoder, dialect) else g.dtype
        self.cache = cache_tensors(decoder, stored, int8=int8_cache)
        self.past = [
            [g.input(past_name(i, part), *described) for part, described in self.cache.items()]
            for i in range(len(decoder.layers))
        ]
        step = StepInputs(
            rope_cos,
            rope_sin,
            tokens=g.op("Shape", self.embeds, start=1, end=2),
            capacity=g.op("Shape", self.past[0][0], start=2, end=3),
        )
        self.linear = Linear(g, dialect)
        self.attention = CachedAttention(g, decoder, dialect, step, int8_cache=int8_cache)
        # [B, T] of this call, to give rows their batch back without a second dimension of unknown size.
        self.batch_tokens = g.op("Shape", self.embeds, start=0, end=2)

    def build(self) -> ir.Model:
        g, decoder = self.g, self.decoder
        x = g.cast(g.reshape(self.embeds, -1, decoder.hidden_size), FLOAT, g.dtype)
        presents = []
        for i, (layer, past) in enumerate(zip(decoder.layers, self.past, strict=True)):
            x, present = self._layer(x, layer, past)
            presents.append(present)
            if i < len(self.deepstack):
                added = g.op("Add", self._batched(x, decoder.hidden_size), self.deepstack[i])
                x = g.reshape(added, -1, decoder.hidden_size)
        g.output(g.cast(self._logits(x), g.dtype, FLOAT), LOGITS, FLOAT, ["B", "K", decoder.vocab_size])
        for i, present in enumerate(presents):
            for value, (part, described) in zip(present, self.cache.items(), strict=True):
                g.output(value, present_of(past_name(i, part)), *described)
        return g.build()

    def _layer(self, x: ir.Value, layer: DecoderLayer, past: Sequence[ir.Value]) -> tuple[ir.Value, Sequence[ir.Value]]:
        """Rows [M, H] and the layer's cache -> rows [M, H], the cache with this call's tokens."""
        linear = self.linear
        qkv = linear(x, layer.qkv, norm=self._norm(layer.attention_norm))
        out, present = self._attend(qkv, past, layer)
        x = linear(out, layer.out, residual=x)
        y = linear(x, layer.up, norm=self._norm(layer.mlp_norm), gate=layer.gate)
        return linear(y, layer.down, residual=x), present

    def _attend(
        self, qkv: ir.Value, past: Sequence[ir.Value], layer: DecoderLayer
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        """Rows [M, q_width + 2 * kv_width] and the layer's cache -> rows [M, q_width], the cache."""
        if self.attention.is_native:
            return self.attention.of_rows(qkv, past, layer)
        q, k, v = self._split(self._batched(qkv, layer.qkv.outputs))
        out, present = self.attention(q, k, v, past, layer)
        return self.g.reshape(out, -1, self.decoder.q_width), present

    def _deepstack_rows(self) -> list[ir.Value]:
        """For each deepstack layer [1, B, T, H], or [1, 1, 1, H]; their dimensions have names of their own."""
        g, layers = self.g, self.decoder.deepstack_layers
        if not layers:
            return []
        rows = g.input(DEEPSTACK, FLOAT, [layers, "DB", "DT", self.decoder.hidden_size])
        return g.ops("Split", layers, g.cast(rows, FLOAT, g.dtype), axis=0, num_outputs=layers)

    def _split(self, qkv: ir.Value) -> list[ir.Value]:
        """[B, T, q_width + 2 * kv_width] -> queries, keys, values."""
        g, decoder = self.g, self.decoder
        if decoder.kv_heads == decoder.heads:
            return g.ops("Split", 3, qkv, axis=2, num_outputs=3)
        return g.ops("Split", 3, qkv, g.const([decoder.q_width, decoder.kv_width, decoder.kv_width]), axis=2)

    def _logits(self, x: ir.Value) -> ir.Value:
        """Rows [M, H] -> logits [B, K, V] of the wanted tokens."""
        g, decoder = self.g, self.decoder
        rows = g.reshape(self._pick(x), -1, decoder.hidden_size)
        rows = self.linear(rows, decoder.head, norm=self._norm(decoder.final_norm))
        shape = g.op("Concat", g.op("Shape", self.wanted), g.const([decoder.vocab_size]), axis=0)
        return g.op("Reshape", rows, shape, allowzero=1)

    def _pick(self, x: ir.Value) -> ir.Value:
        """Rows [M, H] -> those of the wanted tokens, [B, K, H].

        ONNX Runtime's GatherND on a GPU copies from the host's stack, which a replayed CUDA graph would read again.
        """
        g, hidden = self.g, self.decoder.hidden_size
        batched, indices = self._batched(x, hidden), g.op("Unsqueeze", self.wanted, g.const([2]))
        if self.attention.dialect == STANDARD:
            return g.op("GatherND", batched, indices, batch_dims=1)
        shape = g.op("Concat", g.op("Shape", self.wanted), g.const([hidden]), axis=0)
        return g.op("GatherElements", batched, g.op("Expand", indices, shape), axis=1)

    def _batched(self, rows: ir.Value, width: int) -> ir.Value:
        g = self.g
        return g.op("Reshape", rows, g.op("Concat", self.batch_tokens, g.const([width]), axis=0))

    def _norm(self, weight: Weight) -> Norm:
        return Norm(weight, self.decoder.norm_eps)
