"""The graphs for TensorRT 10.3 to 10.14, whose parser stops at opset 20 and which has no layers for a cache; and for
later ones where the cache is int8, which their own layers do not take.

A decoder layer's rotary embedding, cache update and attention become one op, KVCacheAttention (docs/plugin.md), which
comes from the plugin library; other operators of later opsets are written out in older ones.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qwenvl_edge.backends.tensorrt.library import Library
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import PATCH_COS
from qwenvl_edge.bundle.engines import PLUGIN_OP, TENSORRT
from qwenvl_edge.bundle.manifest import INT8_CACHE
from qwenvl_edge.errors import BackendError
from qwenvl_edge_export.tensorrt.lowering import Lowering, only_user
from qwenvl_edge_export.tensorrt.targets import release

DOMAIN = "qwenvl.edge"
OP_VERSION = "2"
NATIVE_SINCE = (10, 15)  # TensorRT's KVCacheUpdate and RotaryEmbedding layers
_OPSET = 20
_OPSET_OF_BLOCKS = 21  # DequantizeLinear by blocks
_HEAD_DIMS = (64, 72, 80, 96, 104, 128)
_FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def needs_plugin(library: Library, bundle: Bundle) -> bool:
    """Tell if this TensorRT has no cache layers of its own for the bundle's cache.

    Raises:
        BackendError: it has none, and takes no plugin from an ONNX graph.
    """
    int8 = bundle.manifest.precision.kv_cache == INT8_CACHE
    if int8 and library.api != TENSORRT:
        raise BackendError(
            f"the bundle's KV cache is int8, but the cache layers of {library.name} take floats only and its parser no "
            "plugin; export the bundle with --kv-cache float, or build with TensorRT and --plugin FILE."
        )
    return library.api == TENSORRT and (int8 or release(library) < NATIVE_SINCE)


def install_plugin(library: Library, bundle: Bundle, source: Path | None, folder: Path) -> str:
    """Copy the plugin library `source` into a plan's folder and register it; returns its entry in the manifest.

    Raises:
        BackendError: there is none, TensorRT does not load it, or it has no kernels for this model.
    """
    compute, head_dim = bundle.manifest.precision.compute["decoder"], bundle.manifest.model.head_dim
    if source is None:
        int8 = bundle.manifest.precision.kv_cache == INT8_CACHE
        what, instead = (" for an int8 cache", " and a bundle with --kv-cache float") if int8 else ("", "")
        raise BackendError(
            f"{library.name} has no cache layers of its own{what} and needs the plugin; give it with --plugin FILE "
            f"(docs/jetson.md says how to make it), or use TensorRT 10.15 or newer{instead}."
        )
    if compute == "fp32" or head_dim not in _HEAD_DIMS:
        raise BackendError(
            f"the plugin computes in fp16 or bf16 with heads of {', '.join(map(str, _HEAD_DIMS))}, but this decoder is "
            f"{compute} with heads of {head_dim}; export it with --target gpu."
        )
    try:
        shutil.copyfile(source, folder / source.name)
    except OSError as error:
        raise BackendError(f'cannot read the plugin "{source}": {error.strerror}.') from None
    entry = f"{source.name} {OP_VERSION}"
    library.load_plugin(entry, folder)
    return entry


class PluginLowering(Lowering):
    """A graph of a bundle in the operators of opset 20, and the plugin's."""

    def decoder(self, capacity: int) -> bytes:
        """See Lowering.decoder."""
        self._fix_capacity(capacity)
        for node in self._nodes("Attention"):
            self._use_plugin(node)
        for node in self._nodes("RMSNormalization"):
            self._spell_out_norm(node)
        self.model.opset_imports[DOMAIN] = 1
        return self._finish()

    def vision(self) -> bytes:
        """See Lowering.vision."""
        self._widen_norms()
        self._undo_dynamic_quantization()
        for kind, spell_out in (
            ("Attention", self._spell_out_attention),
            ("RotaryEmbedding", self._spell_out_rotary),
            ("RMSNormalization", self._spell_out_norm),
        ):
            for node in self._nodes(kind):
                spell_out(node)
        return self._finish()

    def _finish(self) -> bytes:
        blocks = any("block_size" in node.attributes for node in self._nodes("DequantizeLinear"))
        self.model.opset_imports[""] = _OPSET_OF_BLOCKS if blocks else _OPSET
        return super()._finish()

    def _use_plugin(self, node: ir.Node) -> None:
        """Replace Split, rotary, query scale, TensorScatter, Attention, Transpose and Reshape by one node."""
        model = self._bundle.manifest.model
        updates = self._updates(node)
        rotary = _upstream(_producer(node, 0), "RotaryEmbedding")
        qkv = self._projections(node, rotary)
        _, cos, sin = rotary.inputs[:3]
        past = [update.inputs[0] for update in updates]
        new = ir.node(
            PLUGIN_OP,
            [
                qkv,
                *past[:2],
                cos,
                sin,
                updates[0].inputs[2],
                self._query_scale(node, rotary, qkv),
                *past[2:],
            ],
            {
                "num_heads": model.num_heads,
                "num_kv_heads": model.num_kv_heads,
                "head_dim": model.head_dim,
                "int8_cache": int(len(updates) > 2),
                "plugin_version": OP_VERSION,
            },
            domain=DOMAIN,
            num_outputs=1 + len(updates),
        )
        self.graph.insert_before(node, new)
        end = only_user(only_user(node))
        ir.convenience.replace_all_uses_with(end.outputs[0], new.outputs[0])
        for update, present in zip(updates, new.outputs[1:], strict=True):
            self._take_output(update.outputs[0], present)

    def _projections(self, attention: ir.Node, rotary: ir.Node) -> ir.Value:
        """[B, T, (heads + 2 * kv_heads) * D] as the plugin takes them; queries and keys normalised where they are."""
        split = _upstream(_producer(rotary, 0), "Split")
        if _upstream(_producer(rotary, 0), "Split", "RMSNormalization") is split:
            assert split.inputs[0] is not None
            return split.inputs[0]
        key = _upstream(_producer(self._updates(attention)[0], 1), "RotaryEmbedding")
        return self._before(attention, "Concat", *map(_narrow, (rotary, key)), split.outputs[2], axis=2)

    def _updates(self, attention: ir.Node) -> list[ir.Node]:
        """The cache updates of keys and values, and of their scales where there are some."""
        cached = [_producer(attention, i) for i in (1, 2)]
        updates = [_upstream(node, "TensorScatter") for node in cached]
        if self._bundle.manifest.precision.kv_cache == INT8_CACHE:
            products = [_upstream(node, "Mul") for node in cached]
            updates += [_upstream(_producer(product, 1), "TensorScatter") for product in products]
        return updates

    def _query_scale(self, attention: ir.Node, rotary: ir.Node, qkv: ir.Value | None) -> ir.Value | None:
        """[B, T] factors on the queries: those of the graph, or ones."""
        user = only_user(rotary)
        if user.op_type == "Mul":
            return _producer(user, 1).inputs[0]
        shape = self._before(attention, "Shape", qkv, start=0, end=2)
        return self._before(attention, "ConstantOfShape", shape, value=ir.Tensor(np.ones(1, np.float32)))

    def _take_output(self, old: ir.Value, new: ir.Value) -> None:
        index = next(i for i, value in enumerate(self.graph.outputs) if value is old)
        new.type, new.shape = old.type, old.shape
        self.graph.outputs[index] = new
        new.name, old.name = old.name, f"{old.name}.unused"

    def _spell_out_norm(self, node: ir.Node) -> None:
        """Write out RMSNormalization: x / sqrt(mean(x^2) + eps) in float32, times the weight in the graph's type."""
        x, weight = node.inputs
        assert weight is not None and weight.const_value is not None
        narrow = weight.const_value.dtype
        epsilon = np.float32(node.attributes["epsilon"].as_float())
        wide = self._before(node, "Cast", x, to=ir.DataType.FLOAT)
        axes = self._constant("last_axis", np.array([-1], np.int64))
        mean = self._before(node, "ReduceMean", self._before(node, "Mul", wide, wide), axes, keepdims=1)
        shifted = self._before(node, "Add", mean, self._constant("norm_epsilon", np.asarray(epsilon)))
        unit = self._before(node, "Div", wide, self._before(node, "Sqrt", shifted))
        out = self._before(node, "Mul", self._before(node, "Cast", unit, to=narrow), weight)
        ir.convenience.replace_all_uses_with(node.outputs[0], out)

    def _spell_out_attention(self, node: ir.Node) -> None:
        """Write out Attention without cache: softmax(q k^T / sqrt(D)) v, heads apart; softmax in float32 if asked."""
        heads = node.attributes["q_num_heads"].as_int()
        dim = self._vision_head_dim(node, heads)
        split = self._constant(f"heads_{heads}", np.array([0, 0, heads, dim], np.int64))
        by_head = [self._before(node, "Reshape", x, split) for x in node.inputs[:3]]
        q, k, v = (
            self._before(node, "Transpose", x, perm=perm)
            for x, perm in zip(by_head, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
        )
        scaled = self._before(node, "Mul", q, self._scale(dim))
        scores = self._before(node, "MatMul", scaled, k)
        wide = "softmax_precision" in node.attributes
        if wide:
            scores = self._before(node, "Cast", scores, to=ir.DataType.FLOAT)
        if len(node.inputs) > 3:
            unseen = self._constant("unseen", np.asarray(np.finfo(np.float32).min))
            scores = self._before(node, "Where", node.inputs[3], scores, unseen)
        weights = self._before(node, "Softmax", scores, axis=-1)
        if wide:
            weights = self._before(node, "Cast", weights, to=self._compute)
        out = self._before(node, "Transpose", self._before(node, "MatMul", weights, v), perm=[0, 2, 1, 3])
        joined = self._constant(f"joined_{heads}", np.array([0, 0, heads * dim], np.int64))
        ir.convenience.replace_all_uses_with(node.outputs[0], self._before(node, "Reshape", out, joined))

    def _vision_head_dim(self, attention: ir.Node, heads: int) -> int:
        """Channels of a head: from the rotary table, or in graphs without one from the reshape that follows."""
        for value in self.graph.inputs:
            if value.name == PATCH_COS:
                assert value.shape is not None
                return 2 * int(value.shape[1])  # type: ignore[arg-type]
        shape = only_user(attention).inputs[1]
        assert shape is not None and shape.const_value is not None
        return int(shape.const_value.numpy()[-1]) // heads

    def _spell_out_rotary(self, node: ir.Node) -> None:
        """Write out RotaryEmbedding of x [N, P, heads * D] by tables [N, P, D / 2]: the halves of a head, rotated."""
        x, cos, sin = node.inputs[:3]
        heads = node.attributes["num_heads"].as_int()
        assert cos is not None
        dim = self._vision_head_dim(node, heads)
        apart = self._before(
            node, "Reshape", x, self._constant(f"heads_{heads}", np.array([0, 0, heads, dim], np.int64))
        )
        halves = ir.node("Split", [apart], {"axis": 3, "num_outputs": 2}, num_outputs=2)
        self.graph.insert_before(node, halves)
        a, b = halves.outputs
        axis = self._constant("head_axis", np.array([2], np.int64))
        cos, sin = (self._before(node, "Unsqueeze", table, axis) for table in (cos, sin))
        first = self._before(node, "Sub", self._before(node, "Mul", a, cos), self._before(node, "Mul", b, sin))
        second = self._before(node, "Add", self._before(node, "Mul", b, cos), self._before(node, "Mul", a, sin))
        joined = self._constant(f"joined_{heads}", np.array([0, 0, heads * dim], np.int64))
        out = self._before(node, "Reshape", self._before(node, "Concat", first, second, axis=3), joined)
        ir.convenience.replace_all_uses_with(node.outputs[0], out)

    @property
    def _compute(self) -> ir.DataType:
        """The float type of the vision graph."""
        name = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
        return name[self._bundle.manifest.precision.compute["vision"]]

    def _scale(self, dim: int) -> ir.Value:
        factor = np.asarray(1 / math.sqrt(dim), np.float32).astype(self._compute.numpy())
        return self._constant(f"attention_scale_{dim}", factor)


def _producer(node: ir.Node, index: int) -> ir.Node:
    value = node.inputs[index]
    producer = None if value is None else value.producer()
    assert producer is not None  # the exporter's own graph
    return producer


def _upstream(node: ir.Node, *kinds: str) -> ir.Node:
    """The nearest node of one of these kinds, along first inputs."""
    while node.op_type not in kinds:
        node = _producer(node, 0)
    return node


def _narrow(rotary: ir.Node) -> ir.Value:
    """Return the value that is rotated, before it is widened to float32."""
    widened = _producer(rotary, 0)
    value = widened.inputs[0] if widened.op_type == "Cast" else rotary.inputs[0]
    assert value is not None
    return value
