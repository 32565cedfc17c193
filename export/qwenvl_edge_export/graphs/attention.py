"""Attention over the fixed-capacity KV cache, the one place in the decoder that differs between targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qwenvl_edge.bundle.contract import NATIVE, ONNXRUNTIME, STANDARD, TOTAL_LENGTH
from qwenvl_edge_export.families.qwen_vl.config import QwenVLConfig
from qwenvl_edge_export.graphs.builder import FLOAT, MICROSOFT, GraphBuilder

OPSETS = {STANDARD: 24, ONNXRUNTIME: 23, NATIVE: 23}
LEVELS = 127.0
"""An int8 cache holds -127 .. 127, as the plugin's does (docs/plugin.md)."""


def cache_tensors(
    config: QwenVLConfig, dtype: ir.DataType, *, int8: bool
) -> dict[str, tuple[ir.DataType, list[int | str]]]:
    """One layer's cache, part by part: type and shape. An int8 cache has a scale beside each token of each head."""
    rows: list[int | str] = ["B", config.num_heads, "C"]
    parts = dict.fromkeys(("key", "value"), (ir.DataType.INT8 if int8 else dtype, [*rows, config.head_dim]))
    return parts | (dict.fromkeys(("key_scale", "value_scale"), (FLOAT, rows)) if int8 else {})


@dataclass(frozen=True)
class StepInputs:
    """What every layer's attention needs to know of a call: shapes as in the graph contract."""

    position_ids: ir.Value
    write_indices: ir.Value
    rope_cos: ir.Value
    rope_sin: ir.Value
    tokens: ir.Value  # T, int64 [1]
    capacity: ir.Value  # C, int64 [1]


class CachedAttention:
    """Rotary embedding (in float32), cache update and causal attention, in one of two forms.

        q [B,T,H] --rotary-- x logn --.
        k [B,T,H] --rotary--> write --+--> attention [B,T,H]
        v [B,T,H] ----------> write --'
                    past --------^ '--> present

    "standard": RotaryEmbedding, TensorScatter and Attention of opset 24. The causal rule is an explicit mask, key row c
    is seen by token t if c <= write_index + t: what is_causal means beside a static cache changed between versions.
    With an int8 cache, new keys and values are quantized and written, and the whole cache is widened to attend to it.
    "onnxruntime", "native": com.microsoft.GroupQueryAttention, whose cost follows the tokens in use instead of the
    capacity. Its quantized cache has one scale a tensor or a channel, fixed before the first token, so here the cache
    is float.
    """

    def __init__(
        self, g: GraphBuilder, config: QwenVLConfig, dialect: str, step: StepInputs, *, int8_cache: bool = False
    ):
        self.g = g
        self.config = config
        self.dialect = dialect
        self.step = step
        self.int8_cache = int8_cache
        self._q_scale = self._logn_scale() if config.use_logn_attn else None
        if dialect == STANDARD:
            self._valid = g.op("Add", step.write_indices, step.tokens)
            self._mask = self._causal_mask()
        else:
            self._seqlens, self._total = self._gqa_lengths()

    def __call__(
        self, q: ir.Value, k: ir.Value, v: ir.Value, past: Sequence[ir.Value]
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        """q, k, v [B, T, heads * D] and past as `cache_tensors` says -> attention [B, T, heads * D], present alike."""
        g = self.g
        q, k = (self._rotate(g.cast(x, g.dtype, FLOAT)) for x in (q, k))
        if self._q_scale is not None:
            q = g.op("Mul", q, self._q_scale)
        q = g.cast(q, FLOAT, g.dtype)
        if self.int8_cache:  # quantized from float32
            v = g.cast(v, g.dtype, FLOAT)
        else:
            k = g.cast(k, FLOAT, g.dtype)
        attend = self._standard if self.dialect == STANDARD else self._onnxruntime
        return attend(q, k, v, past)

    def _standard(
        self, q: ir.Value, k: ir.Value, v: ir.Value, past: Sequence[ir.Value]
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        g, heads, dim = self.g, self.config.num_heads, self.config.head_dim
        q, k, v = (g.op("Transpose", g.reshape(x, 0, 0, heads, dim), perm=[0, 2, 1, 3]) for x in (q, k, v))
        new = [k, v]
        if self.int8_cache:
            (k, k_scale), (v, v_scale) = self._quantize(k), self._quantize(v)
            new = [k, v, k_scale, v_scale]
        present = [
            g.op("TensorScatter", old, rows, self.step.write_indices, axis=2, mode="linear")
            for old, rows in zip(past, new, strict=True)
        ]
        key, value = present[:2]
        if self.int8_cache:
            key, value = (self._widen(*pair) for pair in zip(present[:2], present[2:], strict=True))
        out = g.op("Attention", q, key, value, self._mask, None, None, self._valid)
        return g.reshape(g.op("Transpose", out, perm=[0, 2, 1, 3]), 0, 0, heads * dim), present

    def _quantize(self, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """x [B, heads, T, D] float32 -> int8 of that shape, scales [B, heads, T]: max |x| / 127, halves to even."""
        g = self.g
        largest = g.op("ReduceMax", g.op("Abs", x), g.const([3]), keepdims=0)
        scale = g.op("Div", largest, g.const(LEVELS))
        divisor = g.op("Where", g.op("Greater", scale, g.const(0.0)), scale, g.const(1.0))
        whole = g.op("Round", g.op("Div", x, self._unsqueeze(divisor, 3)))
        return g.op("Cast", whole, to=ir.DataType.INT8), scale

    def _widen(self, integers: ir.Value, scale: ir.Value) -> ir.Value:
        """int8 [B, heads, C, D] and scales [B, heads, C] -> floats of the graph's type."""
        g = self.g
        wide = g.op("Mul", g.op("Cast", integers, to=FLOAT), self._unsqueeze(scale, 3))
        return g.cast(wide, FLOAT, g.dtype)

    def _onnxruntime(
        self, q: ir.Value, k: ir.Value, v: ir.Value, past: Sequence[ir.Value]
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        heads = self.config.num_heads
        out, *present = self.g.ops(
            "GroupQueryAttention",
            3,
            q,
            k,
            v,
            *past,
            self._seqlens,
            self._total,
            domain=MICROSOFT,
            num_heads=heads,
            kv_num_heads=heads,
        )
        return out, present

    def _rotate(self, x: ir.Value) -> ir.Value:
        step, heads = self.step, self.config.num_heads
        return self.g.op("RotaryEmbedding", x, step.rope_cos, step.rope_sin, step.position_ids, num_heads=heads)

    def _logn_scale(self) -> ir.Value:
        """max(1, log(p + 1) / log(seq_length)) as [B, T, 1]."""
        g = self.g
        position = g.op("Add", g.op("Cast", self.step.position_ids, to=ir.DataType.FLOAT), g.const(1.0))
        scale = g.op("Mul", g.op("Log", position), g.const(1.0 / math.log(self.config.seq_length)))
        return g.op("Unsqueeze", g.op("Max", scale, g.const(1.0)), g.const([2]))

    def _causal_mask(self) -> ir.Value:
        """Which cache rows each token sees: bool [B, 1, T, C]."""
        g, step = self.g, self.step
        limit = g.op("Add", self._unsqueeze(step.write_indices, 1, 2, 3), self._unsqueeze(self._range(step.tokens), 1))
        return g.op("LessOrEqual", self._range(step.capacity), limit)

    def _gqa_lengths(self) -> tuple[ir.Value, ir.Value]:
        """Tokens in each row after this call, less one, int32 [B]; the most tokens of any row, int32 [1].

        On a GPU the first is read there and the second on the host. T is taken from the positions, not from a shape,
        which lies on the host: a copy in between would forbid to capture a CUDA graph.
        """
        g, step = self.g, self.step
        first, last = (g.op("Gather", step.position_ids, g.op("Constant", value_int=i), axis=1) for i in (0, -1))
        seqlens = g.op("Add", step.write_indices, g.op("Sub", last, first))
        return g.op("Cast", seqlens, to=ir.DataType.INT32), g.input(TOTAL_LENGTH, ir.DataType.INT32, [1])

    def _range(self, count: ir.Value) -> ir.Value:
        g = self.g
        zero, one = (g.op("Constant", value_int=i) for i in (0, 1))
        return g.op("Range", zero, g.op("Squeeze", count), one)

    def _unsqueeze(self, x: ir.Value, *axes: int) -> ir.Value:
        return self.g.op("Unsqueeze", x, self.g.const(list(axes)))
