"""vision.onnx: pictures in, image features out.

    pixel_values [N,3,S,S] -> patches [N,P,W] + positions -> ln_pre -> layers x { x += attn(ln_1); x += mlp(ln_2) }
                           -> resampler: Q learned queries read the patches once [N,Q,H] -> ln_post -> proj

Everything that depends on the checkpoint alone is computed at export: both position tables are interpolated to the
picture's grid, and the resampler's queries, the same for every picture, are stored already projected.

attn is Attention in the "standard" dialect, com.microsoft.MultiHeadAttention, which goes through the keys in blocks
instead of writing all scores, in the "onnxruntime" one.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl_edge.bundle.contract import IMAGE_FEATURES, PIXEL_VALUES, STANDARD
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.qwen_vl.reference import VISION_EPS, resize_positions
from qwenvl_edge_export.graphs.builder import FLOAT, MICROSOFT, GraphBuilder
from qwenvl_edge_export.graphs.data_file import Matrix, WeightFile
from qwenvl_edge_export.graphs.linear import Linear
from qwenvl_edge_export.options import FP32, GraphPrecision
from qwenvl_edge_export.quantization.formats import Given, nothing_given

OPSET = 23
_VISUAL = "transformer.visual"
_POOL = f"{_VISUAL}.attn_pool"


def build_vision(
    checkpoint: Checkpoint,
    weights: WeightFile,
    precision: GraphPrecision = FP32,
    given: Given = nothing_given,
    dialect: str = STANDARD,
) -> ir.Model:
    """The picture side of `checkpoint` as one graph, over the tensors of `weights`; pictures and features float32.

    `given` yields the scales of linear layers' inputs where these are quantized with fixed ones.
    """
    return _Vision(checkpoint, weights, precision, given, dialect).build()


class _Vision:
    """Like the decoder, everything but attention works on rows [M, width] with M = N * P."""

    def __init__(
        self, checkpoint: Checkpoint, weights: WeightFile, precision: GraphPrecision, given: Given, dialect: str
    ):
        self.dialect = dialect
        self.checkpoint = checkpoint
        self.config = checkpoint.config.vision
        self.weights = weights
        self.g = GraphBuilder("vision", weights, OPSET, precision.dtype)
        self.linear = Linear(self.g, precision, standard=True, given=given)
        self.patches = self.config.grid**2

    def build(self) -> ir.Model:
        g, config = self.g, self.config
        pixels = g.input(PIXEL_VALUES, FLOAT, ["N", 3, config.image_size, config.image_size])
        x = self._embed(g.cast(pixels, FLOAT, g.dtype))
        for i in range(config.layers):
            x = self._block(x, f"{_VISUAL}.transformer.resblocks.{i}")
        x = self._norm(self._resample(x), f"{_VISUAL}.ln_post")
        # proj is stored [in, out], the other way round than linear layers.
        dim = config.output_dim
        x = self.linear(x, Matrix(f"{_VISUAL}.proj.transposed", (dim, dim), lambda: self._tensor("proj").T))
        features = g.cast(g.reshape(x, -1, config.n_queries, dim), g.dtype, FLOAT)
        g.output(features, IMAGE_FEATURES, FLOAT, ["N", config.n_queries, dim])
        return g.build()

    def _embed(self, pixels: ir.Value) -> ir.Value:
        """[N, 3, S, S] -> rows [N * P, W] after ln_pre."""
        g, config = self.g, self.config
        width = config.width
        stride = [config.patch_size] * 2
        x = g.op("Conv", pixels, g.weight(f"{_VISUAL}.conv1.weight"), kernel_shape=stride, strides=stride)
        x = g.op("Transpose", g.reshape(x, 0, width, self.patches), perm=[0, 2, 1])
        positions = self._table(
            f"{_VISUAL}.positional_embedding.resized",
            (self.patches, width),
            lambda: resize_positions(self._tensor("positional_embedding").float(), config.grid),
        )
        return self._norm(g.reshape(g.op("Add", x, positions), -1, width), f"{_VISUAL}.ln_pre")

    def _block(self, x: ir.Value, name: str) -> ir.Value:
        """One ViT block on rows [M, W]."""
        g, config = self.g, self.config
        width, heads = config.width, config.heads
        y = self._norm(x, f"{name}.ln_1")
        weight, bias = (self._deinterleaved(f"{name}.attn.in_proj.{part}") for part in ("weight", "bias"))
        qkv = self.linear(y, weight, self._table(bias.name, bias.shape, bias.read))
        q, k, v = g.ops("Split", 3, g.reshape(qkv, -1, self.patches, 3 * width), axis=2, num_outputs=3)
        out = self._attend(q, k, v, heads)
        x = g.op("Add", x, self._linear(g.reshape(out, -1, width), f"{name}.attn.out_proj"))
        y = g.op("Gelu", self._linear(self._norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc"))
        return g.op("Add", x, self._linear(y, f"{name}.mlp.c_proj"))

    def _attend(self, q: ir.Value, k: ir.Value, v: ir.Value, heads: int) -> ir.Value:
        """q [N, T, W] reads k and v [N, P, W]."""
        if self.dialect == STANDARD:
            return self.g.op("Attention", q, k, v, q_num_heads=heads, kv_num_heads=heads)
        return self.g.op("MultiHeadAttention", q, k, v, domain=MICROSOFT, num_heads=heads)

    def _deinterleaved(self, name: str) -> Matrix:
        """in_proj with rows [q|k|v] of head 0, of head 1, ... reordered to all q, all k, all v."""
        shape = self.checkpoint.shape(name)

        def read() -> Tensor:
            by_head = self.checkpoint.tensor(name).view(self.config.heads, 3, self.config.head_dim, *shape[1:])
            return by_head.transpose(0, 1).reshape(shape)

        return Matrix(f"{name}.qkv", shape, read)

    def _resample(self, x: ir.Value) -> ir.Value:
        """Patches as rows [N * P, W] -> rows [N * Q, H]."""
        g, config = self.g, self.config
        dim, heads = config.output_dim, config.resampler_heads
        if config.width != dim:
            x = self.linear(x, g.weights.matrix(f"{_POOL}.kv_proj.weight"))
        values = self._norm(x, f"{_POOL}.ln_kv")
        key_positions = self._table(
            f"{_POOL}.pos_embed.resized",
            (self.patches, dim),
            lambda: resize_positions(self._tensor("attn_pool.pos_embed").float(), config.grid),
        )
        keys = g.op("Add", g.reshape(values, -1, self.patches, dim), key_positions)
        k = g.reshape(self._in_proj(g.reshape(keys, -1, dim), 1), -1, self.patches, dim)
        v = g.reshape(self._in_proj(values, 2), -1, self.patches, dim)
        queries = self._table(f"{_POOL}.query.projected", (1, config.n_queries, dim), self._projected_queries)
        pictures = g.op("Shape", k, start=0, end=1)
        q = g.op("Expand", queries, g.op("Concat", pictures, g.const([1, 1]), axis=0))
        out = self._attend(q, k, v, heads)
        return self._linear(g.reshape(out, -1, dim), f"{_POOL}.attn.out_proj")

    def _in_proj(self, rows: ir.Value, block: int) -> ir.Value:
        """Block 0 (q), 1 (k) or 2 (v) of the resampler's in_proj on rows [M, H]."""
        dim = self.config.output_dim
        weight = Matrix(f"{_POOL}.attn.in_proj_weight.{block}", (dim, dim), lambda: self._block_of("weight", block))
        bias = self._table(f"{_POOL}.attn.in_proj_bias.{block}", (dim,), lambda: self._block_of("bias", block))
        return self.linear(rows, weight, bias)

    def _projected_queries(self) -> Tensor:
        """q_proj(ln_q(query) + pos_embed), [1, Q, H] float32."""
        dim = self.config.output_dim
        scale, shift = (self._tensor(f"attn_pool.ln_q.{part}").float() for part in ("weight", "bias"))
        query = F.layer_norm(self._tensor("attn_pool.query").float(), (dim,), scale, shift, VISION_EPS)
        query = query + self._tensor("attn_pool.pos_embed").float()
        return F.linear(query, self._block_of("weight", 0).float(), self._block_of("bias", 0).float())[None]

    def _block_of(self, part: str, block: int) -> Tensor:
        return self._tensor(f"attn_pool.attn.in_proj_{part}").chunk(3)[block]

    def _tensor(self, name: str) -> Tensor:
        return self.checkpoint.tensor(f"{_VISUAL}.{name}")

    def _table(self, name: str, shape: tuple[int, ...], read: Callable[[], torch.Tensor]) -> ir.Value:
        return self.g.table(self.weights.computed(name, shape, read, self.g.dtype))

    def _norm(self, x: ir.Value, name: str) -> ir.Value:
        g = self.g
        parts = (g.weight(f"{name}.{part}") for part in ("weight", "bias"))
        return g.op("LayerNormalization", x, *parts, axis=-1, epsilon=VISION_EPS)

    def _linear(self, x: ir.Value, name: str) -> ir.Value:
        g = self.g
        return self.linear(x, g.weights.matrix(f"{name}.weight"), g.weight(f"{name}.bias"))
