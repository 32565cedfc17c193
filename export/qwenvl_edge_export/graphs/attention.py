"""Attention over the fixed-capacity KV cache, the one place in the decoder that differs between targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qwenvl_edge.bundle.contract import (
    LAST_INDICES,
    NATIVE,
    NATIVE_ATTENTION,
    ONNXRUNTIME,
    QUERY_SCALE,
    STANDARD,
    TOTAL_LENGTH,
    WRITE_INDICES,
)
from qwenvl_edge_export.graphs.builder import FLOAT, INT64, MICROSOFT, OWN, GraphBuilder
from qwenvl_edge_export.graphs.roles import Decoder, DecoderLayer, Weight

OPSETS = {STANDARD: 24, ONNXRUNTIME: 23, NATIVE: 23}
LEVELS = 127.0
"""An int8 cache holds -127 .. 127, as the plugin's does (docs/plugin.md)."""
_LANES = 16
"""The native core's attention takes heads of a multiple of this."""


def has_narrow_cache(decoder: Decoder, dialect: str) -> bool:
    """True if a dialect has the native core's attention, whose cache is float16 beside a float32 decoder."""
    return dialect == NATIVE and decoder.head_dim % _LANES == 0


def cache_tensors(
    decoder: Decoder, dtype: ir.DataType, *, int8: bool
) -> dict[str, tuple[ir.DataType, list[int | str]]]:
    """One layer's cache, part by part: type and shape. An int8 cache has a scale for each token of each head."""
    rows: list[int | str] = ["B", decoder.kv_heads, "C"]
    parts = dict.fromkeys(("key", "value"), (ir.DataType.INT8 if int8 else dtype, [*rows, decoder.head_dim]))
    return parts | (dict.fromkeys(("key_scale", "value_scale"), (FLOAT, rows)) if int8 else {})


@dataclass(frozen=True)
class StepInputs:
    """Inputs of a call that every layer's attention reads: shapes as in the graph contract."""

    rope_cos: ir.Value
    rope_sin: ir.Value
    tokens: ir.Value  # T, int64 [1]
    capacity: ir.Value  # C, int64 [1]


class CachedAttention:
    """Rotary embedding (in float32), cache update and causal attention, in one of three forms.

        q [B,T,heads*D] --norm--rotary-- x scale -.
        k [B,T,kv*D] ----norm--rotary--> write --+--> attention [B,T,heads*D]
        v [B,T,kv*D] ------------------> write --'
                               past -------^ '--> present

    Norms of queries and keys, and the scale of the queries, are there where the decoder has them.
    Each head of the cache serves heads / kv_heads queries.

    "standard": RotaryEmbedding, TensorScatter and Attention of opset 24. The causal rule is an explicit mask, key row c
    is seen by token t if c <= write_index + t: what is_causal means beside a static cache changed between versions.
    With an int8 cache, new keys and values are quantized and written, and the whole cache is widened to attend to it.
    "onnxruntime": com.microsoft.GroupQueryAttention, whose cost follows the tokens in use instead of the capacity. Its
    quantized cache has one scale per tensor or channel, fixed before the first token, so here the cache is float.
    "native": the native core's operator for all of it, norms included, over a float16 cache; where heads are of another
    size than it takes, as "onnxruntime".
    """

    def __init__(self, g: GraphBuilder, decoder: Decoder, dialect: str, step: StepInputs, *, int8_cache: bool = False):
        self.g = g
        self.decoder = decoder
        self.dialect = dialect
        self.step = step
        self.int8_cache = int8_cache
        self.is_native = has_narrow_cache(decoder, dialect)
        scale = g.input(QUERY_SCALE, FLOAT, ["B", "T"]) if decoder.scales_queries else None
        self._scale = scale
        self._q_scale = None if scale is None or self.is_native else self._unsqueeze(scale, 2)
        if dialect == STANDARD:
            self._first = g.input(WRITE_INDICES, INT64, ["B"])
            self._valid = g.op("Add", self._first, step.tokens)
            self._mask = self._causal_mask()
        else:
            # Both from the host: of a GPU's shapes they would be copied, which forbids to capture a CUDA graph.
            self._last = g.input(LAST_INDICES, ir.DataType.INT32, ["B"])
            self._total = g.input(TOTAL_LENGTH, ir.DataType.INT32, [1])

    def __call__(
        self, q: ir.Value, k: ir.Value, v: ir.Value, past: Sequence[ir.Value], layer: DecoderLayer
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        """Attend in `layer`.

        q [B, T, heads * D], k, v [B, T, kv_heads * D] and past as `cache_tensors` says -> attention [B, T, heads * D]
        and present as past.
        """
        g, heads, kv_heads = self.g, self.decoder.heads, self.decoder.kv_heads
        q, k = self._norm(q, heads, layer.q_norm), self._norm(k, kv_heads, layer.k_norm)
        q, k = (self._rotate(g.cast(x, g.dtype, FLOAT), n) for x, n in ((q, heads), (k, kv_heads)))
        if self._q_scale is not None:
            q = g.op("Mul", q, self._q_scale)
        q = g.cast(q, FLOAT, g.dtype)
        if self.int8_cache:  # quantized from float32
            v = g.cast(v, g.dtype, FLOAT)
        else:
            k = g.cast(k, FLOAT, g.dtype)
        attend = self._standard if self.dialect == STANDARD else self._onnxruntime
        return attend(q, k, v, past)

    def of_rows(
        self, qkv: ir.Value, past: Sequence[ir.Value], layer: DecoderLayer
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        """Attend in `layer` natively: rows [B * T, (heads + 2 kv_heads) * D] -> [B * T, heads * D], and present."""
        g, decoder, step = self.g, self.decoder, self.step
        norms = (None if weight is None else g.weight(weight) for weight in (layer.q_norm, layer.k_norm))
        inputs = (qkv, step.rope_cos, step.rope_sin, self._last, *past, self._scale, *norms)
        out, *present = g.ops(
            NATIVE_ATTENTION,
            3,
            *inputs,
            domain=OWN,
            num_heads=decoder.heads,
            kv_num_heads=decoder.kv_heads,
            epsilon=float(decoder.norm_eps),
        )
        return out, present

    def _standard(
        self, q: ir.Value, k: ir.Value, v: ir.Value, past: Sequence[ir.Value]
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        g, heads, kv_heads, dim = self.g, self.decoder.heads, self.decoder.kv_heads, self.decoder.head_dim
        q, k, v = (
            g.op("Transpose", g.reshape(x, 0, 0, n, dim), perm=[0, 2, 1, 3])
            for x, n in ((q, heads), (k, kv_heads), (v, kv_heads))
        )
        new = [k, v]
        if self.int8_cache:
            (k, k_scale), (v, v_scale) = self._quantize(k), self._quantize(v)
            new = [k, v, k_scale, v_scale]
        present = [
            g.op("TensorScatter", old, rows, self._first, axis=2, mode="linear")
            for old, rows in zip(past, new, strict=True)
        ]
        key, value = present[:2]
        if self.int8_cache:
            key, value = (self._widen(*pair) for pair in zip(present[:2], present[2:], strict=True))
        out = g.op("Attention", q, key, value, self._mask, None, None, self._valid)
        return g.reshape(g.op("Transpose", out, perm=[0, 2, 1, 3]), 0, 0, heads * dim), present

    def _quantize(self, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """x [B, kv_heads, T, D] float32 -> int8 alike, scales [B, kv_heads, T]: max |x| / 127, halves to even."""
        g = self.g
        largest = g.op("ReduceMax", g.op("Abs", x), g.const([3]), keepdims=0)
        scale = g.op("Div", largest, g.const(LEVELS))
        divisor = g.op("Where", g.op("Greater", scale, g.const(0.0)), scale, g.const(1.0))
        whole = g.op("Round", g.op("Div", x, self._unsqueeze(divisor, 3)))
        return g.op("Cast", whole, to=ir.DataType.INT8), scale

    def _widen(self, integers: ir.Value, scale: ir.Value) -> ir.Value:
        """int8 [B, kv_heads, C, D] and scales [B, kv_heads, C] -> floats of the graph's type."""
        g = self.g
        wide = g.op("Mul", g.op("Cast", integers, to=FLOAT), self._unsqueeze(scale, 3))
        return g.cast(wide, FLOAT, g.dtype)

    def _onnxruntime(
        self, q: ir.Value, k: ir.Value, v: ir.Value, past: Sequence[ir.Value]
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        out, *present = self.g.ops(
            "GroupQueryAttention",
            3,
            q,
            k,
            v,
            *past,
            self._last,
            self._total,
            domain=MICROSOFT,
            num_heads=self.decoder.heads,
            kv_num_heads=self.decoder.kv_heads,
        )
        return out, present

    def _norm(self, x: ir.Value, heads: int, weight: Weight | None) -> ir.Value:
        """x [B, T, heads * D], each head normalised where there is a weight."""
        if weight is None:
            return x
        g, dim = self.g, self.decoder.head_dim
        apart, epsilon = g.reshape(x, 0, 0, heads, dim), self.decoder.norm_eps
        normed = g.op("RMSNormalization", apart, g.weight(weight), axis=-1, epsilon=epsilon)
        return g.reshape(normed, 0, 0, heads * dim)

    def _rotate(self, x: ir.Value, heads: int) -> ir.Value:
        step = self.step
        return self.g.op("RotaryEmbedding", x, step.rope_cos, step.rope_sin, num_heads=heads)

    def _causal_mask(self) -> ir.Value:
        """Mask of the cache rows that each token sees: bool [B, 1, T, C]."""
        g, step = self.g, self.step
        limit = g.op("Add", self._unsqueeze(self._first, 1, 2, 3), self._unsqueeze(self._range(step.tokens), 1))
        return g.op("LessOrEqual", self._range(step.capacity), limit)

    def _range(self, count: ir.Value) -> ir.Value:
        g = self.g
        zero, one = (g.op("Constant", value_int=i) for i in (0, 1))
        return g.op("Range", zero, g.op("Squeeze", count), one)

    def _unsqueeze(self, x: ir.Value, *axes: int) -> ir.Value:
        return self.g.op("Unsqueeze", x, self.g.const(list(axes)))
