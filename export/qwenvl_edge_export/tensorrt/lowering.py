"""A bundle's graph -> the form that TensorRT's parser takes and runs well; only rounding may differ.

The bundle's weights are read where they lie. Integers alone are written anew, for the time of the build: TensorRT
knows signed ones only, and the bundle's are unsigned, so each one's top bit is flipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.errors import BackendError
from qwenvl_edge_export.tensorrt.split_products import split_products

SIGNED_NAME = "signed.data"
_ALIGNMENT_BYTES = 4096
_PIECE_BYTES = 16 << 20
_SIGNED = {ir.DataType.UINT4: (ir.DataType.INT4, 0x88), ir.DataType.UINT8: (ir.DataType.INT8, 0x80)}
_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class Lowering:
    """One graph of a bundle, changed step by step; `folder` receives links to the weights and the signed integers."""

    def __init__(self, bundle: Bundle, name: str, folder: Path):
        self.model = ir.load(bundle.file(name))
        self.graph = self.model.graph
        self.name = name
        self.folder = folder
        self._bundle = bundle
        self._link_weights()

    def decoder(self, capacity: int) -> bytes:
        """The decoder as a serialized ONNX model whose external data lies in `folder`, for caches of `capacity`."""
        self._fix_capacity(capacity)
        self._scale_queries()
        return self._finish()

    def vision(self) -> bytes:
        """The same for the vision graph."""
        self._widen_norms()
        self._undo_dynamic_quantization()
        for node in self._nodes("Attention"):
            node.attributes.pop("softmax_precision", None)  # refused by the parser: its kernels have float32 always
        return self._finish()

    def _finish(self) -> bytes:
        split_products(self.graph)
        self._sign_integers()
        RemoveUnusedNodesPass()(self.model)
        return bytes(ir.to_proto(self.model).SerializeToString())

    def _link_weights(self) -> None:
        """Link the data files into the folder: the parser takes external data from the model's own folder only."""
        for value in self.graph.initializers.values():
            if isinstance(tensor := value.const_value, ir.ExternalTensor):
                link = self.folder / tensor.location
                if not link.is_symlink():
                    link.symlink_to(self._bundle.file(str(tensor.location)).resolve())

    def _fix_capacity(self, capacity: int) -> None:
        """Fix the caches' capacity: native cache updates want to know it when the engine is built."""
        for value in (*self.graph.inputs, *self.graph.outputs):
            assert value.shape is not None
            dims = [capacity if isinstance(dim, ir.SymbolicDim) and dim.value == "C" else dim for dim in value.shape]
            value.shape = ir.Shape(dims)

    def _scale_queries(self) -> None:
        """Put attention's factor 1 / sqrt(D) on the queries: the parser would put its root on every cached key."""
        for node in self._nodes("Attention"):
            query, key = node.inputs[0], node.inputs[1]
            assert query is not None and key is not None and key.producer() is not None
            cache = key.producer().inputs[0]  # type: ignore[union-attr]
            assert cache is not None and cache.shape is not None and cache.dtype is not None
            head_dim = cache.shape[3]
            assert isinstance(head_dim, int)
            factor = np.asarray(1 / math.sqrt(head_dim), np.float32).astype(cache.dtype.numpy())
            scale = self._constant(f"attention_scale_{cache.dtype.name}", factor)
            node.replace_input_with(0, self._before(node, "Mul", query, scale))
            node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)

    def _widen_norms(self) -> None:
        """Compute layer norms in float32: the sum of squares overflows in float16 and loses small terms in bfloat16."""
        for node in self._nodes("LayerNormalization"):
            scale = node.inputs[1]
            narrow = None if scale is None or scale.const_value is None else scale.const_value.dtype
            if narrow not in _NARROW:
                continue
            for i, value in enumerate(node.inputs):
                assert value is not None
                node.replace_input_with(i, self._before(node, "Cast", value, to=ir.DataType.FLOAT))
            self._after(node, "Cast", to=narrow)

    def _undo_dynamic_quantization(self) -> None:
        """Replace DynamicQuantizeLinear and MatMulInteger, unknown to the parser, by weights in integers alone.

        x -> quantize -> MatMulInteger -> Cast -> Mul(scales) becomes x -> MatMul(DequantizeLinear(weight)).
        """
        for node in self._nodes("MatMulInteger"):
            quantized, weight = node.inputs[:2]
            assert quantized is not None and quantized.producer() is not None
            x = quantized.producer().inputs[0]  # type: ignore[union-attr]
            sums = only_user(only_user(node))
            scales = sums.inputs[1].producer()  # type: ignore[union-attr]
            assert x is not None and sums.op_type == "Mul" and scales is not None
            x, scale, end = self._in_compute_type(x, scales.inputs[1], sums)
            dense = self._before(sums, "DequantizeLinear", weight, scale, axis=1)
            product = self._before(sums, "MatMul", x, dense)
            ir.convenience.replace_all_uses_with(end.outputs[0], product)

    def _in_compute_type(
        self, x: ir.Value, scale: ir.Value | None, sums: ir.Node
    ) -> tuple[ir.Value, ir.Value, ir.Node]:
        """x, the weight's scale and the last node of the layer, without the casts that dynamic quantization needed."""
        assert scale is not None and scale.const_value is not None
        before = x.producer()
        users = [user for user, _ in sums.outputs[0].uses()]
        if before is None or before.op_type != "Cast" or len(users) != 1 or users[0].op_type != "Cast":
            return x, scale, sums
        narrow = ir.DataType(users[0].attributes["to"].as_int())
        values = scale.const_value.numpy().astype(narrow.numpy())
        assert before.inputs[0] is not None
        return before.inputs[0], self._constant(f"{scale.name}.{narrow.name}", values), users[0]

    def _sign_integers(self) -> None:
        """Turn unsigned integers around a middle into signed ones around zero, in a file of their own."""
        signed: dict[str, ir.Value] = {}
        with (self.folder / SIGNED_NAME).open("wb") as out:
            for node in self._nodes("DequantizeLinear"):
                packed = node.inputs[0]
                tensor = None if packed is None else packed.const_value
                if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype not in _SIGNED:
                    continue
                assert packed is not None and packed.name is not None
                dtype, flip = _SIGNED[tensor.dtype]
                self._check_zero(node, flip)
                if packed.name not in signed:
                    out.write(bytes(-out.tell() % _ALIGNMENT_BYTES))
                    offset = out.tell()
                    for piece in self._bytes(tensor):
                        out.write((piece ^ flip).data)
                    name = f"{packed.name}.signed"
                    flipped = ir.ExternalTensor(
                        SIGNED_NAME, offset, tensor.length, dtype, shape=tensor.shape, name=name, base_dir=self.folder
                    )
                    signed[packed.name] = self._initializer(flipped)
                dense = ir.Node("", "DequantizeLinear", [signed[packed.name], node.inputs[1]], node.attributes.values())
                self.graph.insert_before(node, dense)
                ir.convenience.replace_all_uses_with(node.outputs[0], dense.outputs[0])

    def _check_zero(self, node: ir.Node, middle: int) -> None:
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        tensor = None if zero is None else zero.const_value
        pieces = self._bytes(tensor) if isinstance(tensor, ir.ExternalTensor) else iter(())
        if tensor is None or not all((piece == middle).all() for piece in pieces):
            raise BackendError(
                f'the layer "{node.name}" has integers that are not centred, which TensorRT does not take; '
                "export the bundle with this version."
            )

    def _bytes(self, tensor: ir.ExternalTensor) -> Iterator[npt.NDArray[np.uint8]]:
        assert tensor.offset is not None and tensor.length is not None
        path = self._bundle.file(str(tensor.location))
        for start in range(0, tensor.length, _PIECE_BYTES):
            count = min(_PIECE_BYTES, tensor.length - start)
            yield np.fromfile(path, np.uint8, count, offset=tensor.offset + start)

    def _nodes(self, op_type: str) -> list[ir.Node]:
        return [node for node in self.graph if node.op_type == op_type]

    def _before(self, node: ir.Node, op_type: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        new = ir.node(op_type, inputs, attributes)  # type: ignore[arg-type]
        self.graph.insert_before(node, new)
        return new.outputs[0]

    def _after(self, node: ir.Node, op_type: str, **attributes: object) -> None:
        old = node.outputs[0]
        users = list(old.uses())
        new = ir.node(op_type, [old], attributes)  # type: ignore[arg-type]
        self.graph.insert_after(node, new)
        for user, index in users:
            user.replace_input_with(index, new.outputs[0])

    def _constant(self, name: str, values: npt.NDArray[Any]) -> ir.Value:
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        return self._initializer(ir.Tensor(values, name=name))

    def _initializer(self, tensor: ir.Tensor[Any] | ir.ExternalTensor) -> ir.Value:
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        self.graph.register_initializer(value)
        return value


def only_user(node: ir.Node) -> ir.Node:
    """The one node that reads the first output of `node`."""
    ((user, _),) = node.outputs[0].uses()
    return user
