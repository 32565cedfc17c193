"""vision.onnx: N pictures of one size, or the frame pairs of one clip, in; features of their tokens out.

    pixel_values [N,P,C] -> patches [N*P,W] (+ positions) -> depth x { x += out(attention(norm(x))); x += mlp(norm(x)) }
                         -> merger: 2 x 2 patches [N*P/4,4W] -> features [N,P/4,H]
    deepstack: the outputs of some blocks go through mergers of their own -> [L,N,P/4,H]

All that depends on a picture's size comes from the host: rotary rows, places in windows, rows of the position table.
Rows, norms, activations and rotary embeddings are float32 at every precision (linear.py, WideLinear).

Attention over a whole picture is Attention in the "standard" dialect and com.microsoft.MultiHeadAttention, which goes
through the keys in blocks instead of writing all scores, in the "onnxruntime" one. Windows are gathered, padded to
their full size, into a batch; keys in the padding are masked, and nobody reads its rows.
"""

from __future__ import annotations

import onnx_ir as ir

from qwenvl_edge.bundle.contract import (
    DEEPSTACK_FEATURES,
    IMAGE_FEATURES,
    PATCH_COS,
    PATCH_SIN,
    PIXEL_VALUES,
    POSITION_INDEX,
    POSITION_WEIGHT,
    STANDARD,
    WINDOW_BACK,
    WINDOW_GATHER,
    WINDOW_KEYS,
)
from qwenvl_edge_export.families.dynamic_vl.config import VisionConfig
from qwenvl_edge_export.families.dynamic_vl.variants import Variant
from qwenvl_edge_export.families.dynamic_vl.vision_roles import Merger, Tower, TowerBlock
from qwenvl_edge_export.graphs.builder import FLOAT, INT64, MICROSOFT, GraphBuilder
from qwenvl_edge_export.graphs.linear import WideLinear
from qwenvl_edge_export.graphs.roles import NormRole
from qwenvl_edge_export.graphs.weight_layout import WeightLayout

OPSET = 23
VISION_EPS = 1e-6
_QUICK = 1.702
_TAPS = 4  # rows of the position table that a patch is interpolated from


def build_vision(
    variant: Variant, config: VisionConfig, roles: Tower, layout: WeightLayout, dialect: str = STANDARD
) -> ir.Model:
    """The picture side as one graph over the weights of `layout`; pictures and features float32."""
    return _VisionGraph(variant, config, roles, layout, dialect).build()


class _VisionGraph:
    """Like the decoder, everything but attention works on rows [M, width] with M = N * P."""

    def __init__(self, variant: Variant, config: VisionConfig, roles: Tower, layout: WeightLayout, dialect: str):
        self.variant = variant
        self.config = config
        self.roles = roles
        self.dialect = dialect
        self.g = g = GraphBuilder("vision", layout, OPSET)
        self.linear = WideLinear(g)
        self.pixels = g.input(PIXEL_VALUES, FLOAT, ["N", "P", config.patch_values])
        self.pictures = g.op("Shape", self.pixels, start=0, end=1)
        self.sizes = g.op("Shape", self.pixels, start=0, end=2)
        tables = (g.input(name, FLOAT, ["P", config.head_dim // 2]) for name in (PATCH_COS, PATCH_SIN))
        each = g.op("Concat", self.pictures, g.const([1, 1]), axis=0)
        self.cos, self.sin = (g.op("Expand", table, each) for table in tables)
        self.windows = _Windows(g, config, self.pictures) if config.window_size else None

    def build(self) -> ir.Model:
        g, config, roles = self.g, self.config, self.roles
        x = self._embed()
        found = {}
        for i, block in enumerate(roles.blocks):
            x = self._block(x, block, windowed=config.windowed(i))
            if i in roles.deepstack:
                found[i] = self._by_picture(self._merge(x, roles.deepstack[i]))
        features = self._by_picture(self._merge(x, roles.merger))
        g.output(features, IMAGE_FEATURES, FLOAT, ["N", "Q", config.output_width])
        if found:
            layers = [g.op("Unsqueeze", found[i], g.const([0])) for i in sorted(found)]
            stacked = g.op("Concat", *layers, axis=0)
            g.output(stacked, DEEPSTACK_FEATURES, FLOAT, [len(layers), "N", "Q", config.output_width])
        return g.build()

    def _embed(self) -> ir.Value:
        """Pixels -> rows [N * P, W]."""
        g, config, roles = self.g, self.config, self.roles
        rows = g.reshape(self.pixels, -1, config.patch_values)
        bias = None if roles.patch_bias is None else g.weight(roles.patch_bias)
        x = g.op("Gemm", rows, g.weight(roles.patches), bias, transB=1)
        if roles.positions is None:
            return x
        by_picture = g.op("Add", self._shaped(x, config.width), self._positions(g.weight(roles.positions)))
        return g.reshape(by_picture, -1, config.width)

    def _positions(self, table: ir.Value) -> ir.Value:
        """[P, W]: for each patch the weighted sum of its rows of the table, one after another to save memory."""
        g = self.g
        index = g.input(POSITION_INDEX, INT64, ["P", _TAPS])
        weight = g.input(POSITION_WEIGHT, FLOAT, ["P", _TAPS])
        places = g.ops("Split", _TAPS, index, axis=1, num_outputs=_TAPS)
        shares = g.ops("Split", _TAPS, weight, axis=1, num_outputs=_TAPS)
        total: ir.Value | None = None
        for place, share in zip(places, shares, strict=True):
            rows = g.op("Gather", table, g.op("Squeeze", place, g.const([1])), axis=0)
            term = g.op("Mul", rows, share)
            total = term if total is None else g.op("Add", total, term)
        assert total is not None  # there are four
        return total

    def _block(self, x: ir.Value, block: TowerBlock, *, windowed: bool) -> ir.Value:
        """One block on rows [M, W]."""
        g = self.g
        qkv = self.linear(self._norm(x, block.attention_norm), block.qkv)
        out = self._attention(self._shaped(qkv, 3 * self.config.width), windowed=windowed)
        x = g.op("Add", x, self.linear(g.reshape(out, -1, self.config.width), block.out))
        return g.op("Add", x, self._mlp(self._norm(x, block.mlp_norm), block))

    def _mlp(self, y: ir.Value, block: TowerBlock) -> ir.Value:
        g, up = self.g, self.linear(y, block.up)
        if block.gate is not None:
            gate = self.linear(y, block.gate)
            up = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
        elif self.variant.activation == "quick_gelu":
            up = g.op("Mul", up, g.op("Sigmoid", g.op("Mul", up, g.const(_QUICK))))
        else:
            up = g.op("Gelu", up, approximate="tanh")
        return self.linear(up, block.down)

    def _attention(self, qkv: ir.Value, *, windowed: bool) -> ir.Value:
        """qkv [N, P, 3 W] -> [N, P, W]."""
        g, heads = self.g, self.config.heads
        q, k, v = g.ops("Split", 3, qkv, axis=2, num_outputs=3)
        q, k = (g.op("RotaryEmbedding", x, self.cos, self.sin, num_heads=heads) for x in (q, k))
        q, k, v = (g.cast(x, FLOAT, g.dtype) for x in (q, k, v))
        if windowed:
            assert self.windows is not None  # the configuration has windows
            q, k, v = (self.windows.gather(x) for x in (q, k, v))
            out = self.windows.scatter(self._attend(q, k, v, self.windows.mask))
        else:
            out = self._attend(q, k, v, None)
        return g.cast(out, g.dtype, FLOAT)

    def _attend(self, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None) -> ir.Value:
        """q, k, v [batch, T, W], mask bool [batch, 1, T, T] of the keys that each query sees; softmax in float32."""
        g, heads = self.g, self.config.heads
        if self.dialect == STANDARD or mask is not None:
            return g.op("Attention", q, k, v, mask, q_num_heads=heads, kv_num_heads=heads, softmax_precision=int(FLOAT))
        return g.op("MultiHeadAttention", q, k, v, domain=MICROSOFT, num_heads=heads)

    def _merge(self, x: ir.Value, merger: Merger) -> ir.Value:
        """Rows [N * P, W] -> [N * P / 4, H]."""
        g, config = self.g, self.config
        after = merger.norm.weight.shape != (config.width,)
        x = g.reshape(x if after else self._norm(x, merger.norm), -1, config.merged_width)
        x = self._norm(x, merger.norm) if after else x
        return self.linear(g.op("Gelu", self.linear(x, merger.first)), merger.second)

    def _norm(self, x: ir.Value, role: NormRole) -> ir.Value:
        g, weight = self.g, self.g.weight(role.weight)
        if role.bias is None:
            return g.op("RMSNormalization", x, weight, axis=-1, epsilon=VISION_EPS)
        return g.op("LayerNormalization", x, weight, g.weight(role.bias), axis=-1, epsilon=VISION_EPS)

    def _shaped(self, rows: ir.Value, width: int) -> ir.Value:
        """Rows [N * P, width] -> [N, P, width]."""
        g = self.g
        return g.op("Reshape", rows, g.op("Concat", self.sizes, g.const([width]), axis=0))

    def _by_picture(self, rows: ir.Value) -> ir.Value:
        """Tokens [N * Q, H] -> [N, Q, H]."""
        g = self.g
        return g.op("Reshape", rows, g.op("Concat", self.pictures, g.const([-1, self.config.output_width]), axis=0))


class _Windows:
    """Windows of at most G patches as a batch: N pictures of Wn windows each.

    mask: bool [N * Wn, 1, G, G], the keys that are patches.
    """

    def __init__(self, g: GraphBuilder, config: VisionConfig, pictures: ir.Value):
        self.g = g
        self.width, self.patches = config.width, config.window_patches
        self.pictures = pictures
        self._gather = g.input(WINDOW_GATHER, INT64, ["WG"])
        keys = g.input(WINDOW_KEYS, ir.DataType.BOOL, ["Wn", 1, 1, self.patches])
        self._back = g.input(WINDOW_BACK, INT64, ["P"])
        shape = g.op("Concat", pictures, g.const([1, 1, self.patches, 1]), axis=0)
        self.mask = g.reshape(g.op("Expand", g.op("Unsqueeze", keys, g.const([0])), shape), -1, 1, *[self.patches] * 2)

    def gather(self, x: ir.Value) -> ir.Value:
        """[N, P, W] -> [N * Wn, G, W]."""
        g = self.g
        return g.reshape(g.op("Gather", x, self._gather, axis=1), -1, self.patches, self.width)

    def scatter(self, x: ir.Value) -> ir.Value:
        """[N * Wn, G, W] -> [N, P, W]."""
        g = self.g
        by_picture = g.op("Reshape", x, g.op("Concat", self.pictures, g.const([-1, self.width]), axis=0))
        return g.op("Gather", by_picture, self._back, axis=1)
