"""A calibrated product whose output is split -> one product per part.

TensorRT multiplies 8-bit integers only where a product's weight comes from DequantizeLinear directly. It moves a Split
up to the weight, and then widens the whole weight in memory at every call and multiplies in float16 (seen in the layer
list of TensorRT-RTX 1.7.1). The rows of the weight lie one after the other, so each part is a range of the same file.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir


def split_products(graph: ir.Graph) -> None:
    """Divide every product with row-wise 8-bit weights whose output, perhaps reshaped, is split along its last axis."""
    for split in [node for node in graph if node.op_type == "Split"]:
        reshape = _producer(split.inputs[0], "Reshape")
        gemm = _producer(split.inputs[0] if reshape is None else reshape.inputs[0], "Gemm")
        dense = None if gemm is None else _producer(gemm.inputs[1], "DequantizeLinear")
        if gemm is None or dense is None or "block_size" in dense.attributes or _weight(dense.inputs[0]) is None:
            continue
        start = 0
        for part in split.outputs:
            rows = _rows(split, part, dense)
            product = _part_of(graph, split, gemm, dense, start, rows)
            if reshape is not None:
                product = _insert(graph, split, "Reshape", product, _narrowed(graph, split, reshape, rows))
            ir.convenience.replace_all_uses_with(part, product)
            start += rows
        graph.remove(split, safe=True)


def _part_of(graph: ir.Graph, split: ir.Node, gemm: ir.Node, dense: ir.Node, start: int, rows: int) -> ir.Value:
    """The product with the weight's rows start .. start + rows - 1."""
    parts = [_range(graph, value, start, rows) for value in dense.inputs]
    weight = _insert(graph, split, "DequantizeLinear", *parts, axis=0)
    bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    inputs = [gemm.inputs[0], weight, *([] if bias is None else [_range(graph, bias, start, rows)])]
    return _insert(graph, split, "Gemm", *inputs, transB=1)


def _range(graph: ir.Graph, value: ir.Value | None, start: int, rows: int) -> ir.Value:
    """An initializer over a range of the rows of another one, at the same place in the same file."""
    tensor = _weight(value)
    assert tensor is not None and tensor.offset is not None and tensor.length is not None
    count, *columns = tensor.shape.numpy()
    row_bytes = tensor.length // count
    shape = ir.Shape([rows, *columns])
    name = f"{tensor.name}.rows_{start}_{rows}"
    place = (tensor.offset + start * row_bytes, rows * row_bytes)
    part = ir.ExternalTensor(tensor.location, *place, tensor.dtype, shape=shape, name=name, base_dir=tensor.base_dir)
    return _initializer(graph, part)


def _narrowed(graph: ir.Graph, split: ir.Node, reshape: ir.Node, rows: int) -> ir.Value:
    """The shape of a Reshape with `rows` as its last size."""
    shape = reshape.inputs[1]
    assert shape is not None
    last = _initializer(graph, ir.Tensor(np.array([rows], np.int64), name=f"split_rows_{rows}"))
    if shape.const_value is not None:
        sizes = [*shape.const_value.numpy()[:-1].tolist(), rows]
        name = f"split_shape_{'_'.join(map(str, sizes))}"
        return _initializer(graph, ir.Tensor(np.array(sizes, np.int64), name=name))
    concat = _producer(shape, "Concat")
    assert concat is not None
    return _insert(graph, split, "Concat", *concat.inputs[:-1], last, axis=0)


def _rows(split: ir.Node, part: ir.Value, dense: ir.Node) -> int:
    """Rows of the weight that make one output of the split."""
    weight = _weight(dense.inputs[0])
    assert weight is not None
    if len(split.inputs) > 1 and split.inputs[1] is not None:
        sizes = split.inputs[1].const_value
        assert sizes is not None
        return int(sizes.numpy()[split.outputs.index(part)])
    return math.ceil(weight.shape.numpy()[0] / len(split.outputs))


def _weight(value: ir.Value | None) -> ir.ExternalTensor | None:
    tensor = None if value is None else value.const_value
    return tensor if isinstance(tensor, ir.ExternalTensor) else None


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _insert(graph: ir.Graph, before: ir.Node, op_type: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
    node = ir.node(op_type, inputs, attributes)  # type: ignore[arg-type]
    graph.insert_before(before, node)
    return node.outputs[0]


def _initializer(graph: ir.Graph, tensor: ir.Tensor[Any] | ir.ExternalTensor) -> ir.Value:
    assert tensor.name is not None
    if tensor.name not in graph.initializers:
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[tensor.name]
