"""decoder.onnx: embeddings in, logits of the wanted rows out, keys and values written into the cache.

    inputs_embeds [B,T,H] -> rows [B*T,H] -> num_layers x { x += c_proj(attention(ln_1)); x += mlp(ln_2) }
                          -> logits_indices' rows [B*K,H] -> ln_f -> lm_head -> logits [B,K,V]

Everything but attention works on rows [M, H], so that a linear layer is one Gemm over the weight as it is stored.
Inside, values have the precision's float type, as a float cache has; embeddings, rotary tables and logits are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qwenvl_edge.bundle.contract import (
    DECODER_DATA,
    INPUTS_EMBEDS,
    LOGITS,
    LOGITS_INDICES,
    NATIVE,
    ONNXRUNTIME,
    POSITION_IDS,
    ROPE_COS,
    ROPE_SIN,
    STANDARD,
    WRITE_INDICES,
    past_name,
    present_of,
)
from qwenvl_edge.bundle.manifest import INT8_CACHE
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.qwen_vl.config import QwenVLConfig
from qwenvl_edge_export.graphs.attention import OPSETS, CachedAttention, StepInputs, cache_tensors
from qwenvl_edge_export.graphs.builder import FLOAT, INT64, GraphBuilder
from qwenvl_edge_export.graphs.data_file import WeightFile
from qwenvl_edge_export.graphs.linear import Linear
from qwenvl_edge_export.options import FP32, GraphPrecision
from qwenvl_edge_export.quantization.formats import Given, nothing_given


def build_decoders(
    checkpoint: Checkpoint, precision: GraphPrecision, given: Given = nothing_given
) -> tuple[dict[str, ir.Model], WeightFile]:
    """The decoder graph in every dialect that this precision has, and the weights that they share.

    Where weights lie depends on `given` only if the scales of inputs are among it.
    """
    weights = WeightFile(DECODER_DATA, checkpoint)
    # The native core multiplies float32 by blocks.
    native = precision.compute == "fp32" and precision.has_blocks
    dialects = (STANDARD, ONNXRUNTIME, *((NATIVE,) if native else ()))
    models = {dialect: build_decoder(checkpoint.config, weights, dialect, precision, given) for dialect in dialects}
    return models, weights


def build_decoder(
    config: QwenVLConfig,
    weights: WeightFile,
    dialect: str,
    precision: GraphPrecision = FP32,
    given: Given = nothing_given,
) -> ir.Model:
    """The decoder graph in one dialect, over the tensors of `weights`.

    `given` yields linear weights that are quantized already, and the scales of inputs where those are fixed.
    """
    g = GraphBuilder("decoder", weights, OPSETS[dialect], precision.dtype)
    hidden, vocab = config.hidden_size, config.vocab_size
    embeds = g.input(INPUTS_EMBEDS, FLOAT, ["B", "T", hidden])
    positions = g.input(POSITION_IDS, INT64, ["B", "T"])
    write_indices = g.input(WRITE_INDICES, INT64, ["B"])
    rope_cos = g.input(ROPE_COS, FLOAT, ["C", config.head_dim // 2])
    rope_sin = g.input(ROPE_SIN, FLOAT, ["C", config.head_dim // 2])
    wanted = g.input(LOGITS_INDICES, INT64, ["B", "K"])
    int8_cache = dialect == STANDARD and precision.cache == INT8_CACHE
    cache = cache_tensors(config, g.dtype, int8=int8_cache)
    past = [
        [g.input(past_name(i, part), *described) for part, described in cache.items()] for i in range(config.num_layers)
    ]
    step = StepInputs(
        positions,
        write_indices,
        rope_cos,
        rope_sin,
        tokens=g.op("Shape", embeds, start=1, end=2),
        capacity=g.op("Shape", past[0][0], start=2, end=3),
    )
    linear = Linear(g, precision, standard=dialect == STANDARD, own=dialect == NATIVE, given=given)
    attention = CachedAttention(g, config, dialect, step, int8_cache=int8_cache)
    decoder = _Decoder(g, config, attention, linear, embeds)

    x = g.cast(g.reshape(embeds, -1, hidden), FLOAT, g.dtype)
    presents = []
    for i in range(config.num_layers):
        x, present = decoder.layer(x, i, past[i])
        presents.append(present)
    g.output(g.cast(decoder.logits(x, wanted), g.dtype, FLOAT), LOGITS, FLOAT, ["B", "K", vocab])
    for i, present in enumerate(presents):
        for value, (part, described) in zip(present, cache.items(), strict=True):
            g.output(value, present_of(past_name(i, part)), *described)
    return g.build()


class _Decoder:
    """The layers, as functions of rows [M, H] with M = B * T."""

    def __init__(
        self, g: GraphBuilder, config: QwenVLConfig, attention: CachedAttention, linear: Linear, embeds: ir.Value
    ):
        self.g = g
        self.config = config
        self.attention = attention
        self.linear = linear
        # [B, T] of this call, to give rows their batch back without a second dimension of unknown size.
        self.batch_tokens = g.op("Shape", embeds, start=0, end=2)

    def layer(self, x: ir.Value, i: int, past: Sequence[ir.Value]) -> tuple[ir.Value, Sequence[ir.Value]]:
        """Layer `i` on rows [M, H] and its cache -> rows [M, H], the cache with this call's tokens."""
        g, name, hidden = self.g, f"transformer.h.{i}", self.config.hidden_size
        qkv = self._linear(self._norm(x, f"{name}.ln_1"), f"{name}.attn.c_attn", bias=True)
        q, k, v = g.ops("Split", 3, self._batched(qkv, 3 * hidden), axis=2, num_outputs=3)
        out, present = self.attention(q, k, v, past)
        x = g.op("Add", x, self._linear(g.reshape(out, -1, hidden), f"{name}.attn.c_proj"))
        y = self._norm(x, f"{name}.ln_2")
        up, gate = self._linear(y, f"{name}.mlp.w1"), self._linear(y, f"{name}.mlp.w2")
        gate = g.op("Mul", gate, g.op("Sigmoid", gate))
        return g.op("Add", x, self._linear(g.op("Mul", up, gate), f"{name}.mlp.c_proj")), present

    def logits(self, x: ir.Value, wanted: ir.Value) -> ir.Value:
        """Rows [M, H] and wanted tokens [B, K] -> logits [B, K, V]."""
        g = self.g
        rows = g.reshape(self._pick(x, wanted), -1, self.config.hidden_size)
        rows = self._linear(self._norm(rows, "transformer.ln_f"), "lm_head")
        shape = g.op("Concat", g.op("Shape", wanted), g.const([self.config.vocab_size]), axis=0)
        return g.op("Reshape", rows, shape, allowzero=1)

    def _pick(self, x: ir.Value, wanted: ir.Value) -> ir.Value:
        """Rows [M, H] and wanted tokens [B, K] -> [B, K, H].

        ONNX Runtime's GatherND on a GPU copies from the host's stack, which a replayed CUDA graph would read again.
        """
        g, hidden = self.g, self.config.hidden_size
        batched, indices = self._batched(x, hidden), g.op("Unsqueeze", wanted, g.const([2]))
        if self.attention.dialect == STANDARD:
            return g.op("GatherND", batched, indices, batch_dims=1)
        shape = g.op("Concat", g.op("Shape", wanted), g.const([hidden]), axis=0)
        return g.op("GatherElements", batched, g.op("Expand", indices, shape), axis=1)

    def _batched(self, rows: ir.Value, width: int) -> ir.Value:
        g = self.g
        return g.op("Reshape", rows, g.op("Concat", self.batch_tokens, g.const([width]), axis=0))

    def _norm(self, x: ir.Value, name: str) -> ir.Value:
        return self.g.op("RMSNormalization", x, self.g.weight(f"{name}.weight"), axis=-1, epsilon=self.config.norm_eps)

    def _linear(self, x: ir.Value, name: str, *, bias: bool = False) -> ir.Value:
        g = self.g
        return self.linear(x, g.weights.matrix(f"{name}.weight"), g.weight(f"{name}.bias") if bias else None)
