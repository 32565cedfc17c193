"""vision.onnx: pictures in, image features out.

    pixel_values [N,3,S,S] -> patches [N,P,W] + positions -> ln_pre -> layers x { x += attn(ln_1); x += mlp(ln_2) }
                           -> resampler: Q learned queries read the patches once [N,Q,H] -> ln_post -> proj

Everything that depends on the checkpoint alone is computed at export (vision_roles.py).

attn is Attention in the "standard" dialect, com.microsoft.MultiHeadAttention, which goes through the keys in blocks
instead of writing all scores, in the "onnxruntime" one. In the "native" one the ViT's is an operator of the native
core, and so is a whole layer; the resampler, whose queries are its own, keeps MultiHeadAttention.
"""

from __future__ import annotations

import onnx_ir as ir

from qwenvl_edge.bundle.contract import IMAGE_FEATURES, NATIVE, PIXEL_VALUES, STANDARD
from qwenvl_edge_export.families.qwen_vl.config import VisionConfig
from qwenvl_edge_export.families.qwen_vl.reference_vision import VISION_EPS
from qwenvl_edge_export.families.qwen_vl.vision_roles import Vision, VisionBlock
from qwenvl_edge_export.graphs.builder import FLOAT, MICROSOFT, GraphBuilder
from qwenvl_edge_export.graphs.linear import Linear
from qwenvl_edge_export.graphs.tower import GELU, TowerLayer
from qwenvl_edge_export.graphs.weight_layout import WeightLayout

OPSET = 23


def build_vision(config: VisionConfig, roles: Vision, layout: WeightLayout, dialect: str = STANDARD) -> ir.Model:
    """The picture side as one graph over the weights of `layout`; pictures and features float32."""
    return _VisionGraph(config, roles, layout, dialect).build()


class _VisionGraph:
    """Like the decoder, everything but attention works on rows [M, width] with M = N * P."""

    def __init__(self, config: VisionConfig, roles: Vision, layout: WeightLayout, dialect: str):
        self.config = config
        self.roles = roles
        self.dialect = dialect
        self.g = GraphBuilder("vision", layout, OPSET)
        self.layer = TowerLayer(self.g, Linear(self.g, STANDARD), VISION_EPS, native=dialect == NATIVE)
        self.patches = config.grid**2

    def build(self) -> ir.Model:
        g, config, roles = self.g, self.config, self.roles
        pixels = g.input(PIXEL_VALUES, FLOAT, ["N", 3, config.image_size, config.image_size])
        x = self._embed(g.cast(pixels, FLOAT, g.dtype))
        for block in roles.blocks:
            x = self._block(x, block)
        x = self.layer(self._resample(x), roles.projection, norm=roles.post_norm)
        features = g.cast(g.reshape(x, -1, config.n_queries, config.output_dim), g.dtype, FLOAT)
        g.output(features, IMAGE_FEATURES, FLOAT, ["N", config.n_queries, config.output_dim])
        return g.build()

    def _embed(self, pixels: ir.Value) -> ir.Value:
        """[N, 3, S, S] -> rows [N * P, W] after ln_pre."""
        g, width = self.g, self.config.width
        stride = [self.config.patch_size] * 2
        x = g.op("Conv", pixels, g.weight(self.roles.patches), kernel_shape=stride, strides=stride)
        x = g.op("Transpose", g.reshape(x, 0, width, self.patches), perm=[0, 2, 1])
        x = g.op("Add", x, g.weight(self.roles.positions))
        return self.layer.norm(g.reshape(x, -1, width), self.roles.pre_norm)

    def _block(self, x: ir.Value, block: VisionBlock) -> ir.Value:
        """One ViT block on rows [M, W]."""
        g, layer, width, heads = self.g, self.layer, self.config.width, self.config.heads
        qkv = g.reshape(layer(x, block.qkv, norm=block.attention_norm), -1, self.patches, 3 * width)
        if self.dialect == NATIVE:
            out = layer.attention(qkv, heads=heads)
        else:
            q, k, v = g.ops("Split", 3, qkv, axis=2, num_outputs=3)
            out = self._attend(q, k, v, heads)
        x = layer(g.reshape(out, -1, width), block.out, residual=x)
        y = layer(x, block.up, norm=block.mlp_norm, activation=GELU)
        return layer(y, block.down, residual=x)

    def _attend(self, q: ir.Value, k: ir.Value, v: ir.Value, heads: int) -> ir.Value:
        """q [N, T, W] reads k and v [N, P, W]."""
        if self.dialect == STANDARD:
            return self.g.op("Attention", q, k, v, q_num_heads=heads, kv_num_heads=heads)
        return self.g.op("MultiHeadAttention", q, k, v, domain=MICROSOFT, num_heads=heads)

    def _resample(self, x: ir.Value) -> ir.Value:
        """Patches as rows [N * P, W] -> rows [N * Q, H]."""
        g, dim, roles = self.g, self.config.output_dim, self.roles.resampler
        if roles.widen is not None:
            x = self.layer(x, roles.widen)
        values = self.layer.norm(x, roles.norm)
        key_positions = g.weight(roles.key_positions)
        keys = g.op("Add", g.reshape(values, -1, self.patches, dim), key_positions)
        k = g.reshape(self.layer(g.reshape(keys, -1, dim), roles.keys), -1, self.patches, dim)
        v = g.reshape(self.layer(values, roles.values), -1, self.patches, dim)
        queries = g.weight(roles.queries)
        pictures = g.op("Shape", k, start=0, end=1)
        q = g.op("Expand", queries, g.op("Concat", pictures, g.const([1, 1]), axis=0))
        out = self._attend(q, k, v, self.config.resampler_heads)
        return self.layer(g.reshape(out, -1, dim), roles.out)
