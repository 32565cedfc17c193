"""vision.onnx: N pictures of one size, or the frame pairs of one clip, in; features of their tokens out.

    pixel_values [N,P,C] -> patches [N*P,W] (+ positions) -> depth x { x += out(attention(norm(x))); x += mlp(norm(x)) }
                         -> merger: 2 x 2 patches [N*P/4,4W] -> features [N,P/4,H]
    deepstack: the outputs of some blocks go through mergers of their own -> [L,N,P/4,H]

All that depends on a picture's size comes from the host: rotary rows, places in windows, rows of the position table.
Rows, norms, activations and rotary embeddings are float32 at every precision (linear.py, WideLinear).

Attention over a whole picture is Attention in the "standard" dialect and com.microsoft.MultiHeadAttention, which goes
through the keys in blocks instead of writing all scores, in the "onnxruntime" one. Windows are gathered, padded to
their full size, into a batch; keys in the padding are masked, and nobody reads its rows. In the "native" dialect one
operator of the native core does all of it, rotary embedding and windows included, and another a whole layer.
"""

from __future__ import annotations

import onnx_ir as ir

from qwenvl_edge.bundle.contract import (
    DEEPSTACK_FEATURES,
    IMAGE_FEATURES,
    NATIVE,
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
from qwenvl_edge_export.graphs.tower import GELU, TowerLayer
from qwenvl_edge_export.graphs.weight_layout import WeightLayout

OPSET = 23
VISION_EPS = 1e-6
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
        self.layer = TowerLayer(g, WideLinear(g), VISION_EPS, native=dialect == NATIVE)
        self.pixels = g.input(PIXEL_VALUES, FLOAT, ["N", "P", config.patch_values])
        self.pictures = g.op("Shape", self.pixels, start=0, end=1)
        self.sizes = g.op("Shape", self.pixels, start=0, end=2)
        self.cos, self.sin = (g.input(name, FLOAT, ["P", config.head_dim // 2]) for name in (PATCH_COS, PATCH_SIN))
        self.windows = _Windows(g, config, self.pictures) if config.window_size else None
        if dialect != NATIVE:
            each = g.op("Concat", self.pictures, g.const([1, 1]), axis=0)
            self.cos, self.sin = (g.op("Expand", table, each) for table in (self.cos, self.sin))
            if self.windows is not None:
                self.windows.mask_padding()

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
        g, layer = self.g, self.layer
        qkv = layer(x, block.qkv, norm=block.attention_norm)
        out = self._attention(self._shaped(qkv, 3 * self.config.width), windowed=windowed)
        x = layer(g.reshape(out, -1, self.config.width), block.out, residual=x)
        activation = self.variant.activation if block.gate is None else None
        y = layer(x, block.up, norm=block.mlp_norm, activation=activation, gate=block.gate)
        return layer(y, block.down, residual=x)

    def _attention(self, qkv: ir.Value, *, windowed: bool) -> ir.Value:
        """qkv [N, P, 3 W] -> [N, P, W]."""
        g, heads = self.g, self.config.heads
        if self.dialect == NATIVE:
            windows = self.windows.tables if windowed and self.windows is not None else ()
            return self.layer.attention(qkv, self.cos, self.sin, *windows, heads=heads)
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
        g, layer, config = self.g, self.layer, self.config
        after = merger.norm.weight.shape != (config.width,)
        x = g.reshape(x if after else layer.norm(x, merger.norm), -1, config.merged_width)
        y = layer(x, merger.first, norm=merger.norm if after else None, activation=GELU)
        return layer(y, merger.second)

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

    tables: the patch at each place [W * G], and which places hold one.
    mask: bool [N * Wn, 1, G, G], the keys that are patches, once `mask_padding` made it.
    """

    def __init__(self, g: GraphBuilder, config: VisionConfig, pictures: ir.Value):
        self.g = g
        self.width, self.patches = config.width, config.window_patches
        self.pictures = pictures
        gather = g.input(WINDOW_GATHER, INT64, ["WG"])
        keys = g.input(WINDOW_KEYS, ir.DataType.BOOL, ["Wn", 1, 1, self.patches])
        self.tables = (gather, keys)
        self._back = g.input(WINDOW_BACK, INT64, ["P"])
        self.mask: ir.Value | None = None

    def mask_padding(self) -> None:
        """Make the mask."""
        g = self.g
        shape = g.op("Concat", self.pictures, g.const([1, 1, self.patches, 1]), axis=0)
        keys = g.op("Expand", g.op("Unsqueeze", self.tables[1], g.const([0])), shape)
        self.mask = g.reshape(keys, -1, 1, *[self.patches] * 2)

    def gather(self, x: ir.Value) -> ir.Value:
        """[N, P, W] -> [N * Wn, G, W]."""
        g = self.g
        return g.reshape(g.op("Gather", x, self.tables[0], axis=1), -1, self.patches, self.width)

    def scatter(self, x: ir.Value) -> ir.Value:
        """[N * Wn, G, W] -> [N, P, W]."""
        g = self.g
        by_picture = g.op("Reshape", x, g.op("Concat", self.pictures, g.const([-1, self.width]), axis=0))
        return g.op("Gather", by_picture, self._back, axis=1)
