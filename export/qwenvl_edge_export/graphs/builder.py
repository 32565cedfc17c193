"""A small functional layer over onnx_ir: operators as calls, weights by name, constants inline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qwenvl_edge_export.graphs.roles import Weight
from qwenvl_edge_export.graphs.stored import Slot
from qwenvl_edge_export.graphs.weight_layout import WeightLayout

MICROSOFT = "com.microsoft"
OWN = "qwenvl_edge"  # operators of the runtime's native core
FLOAT = ir.DataType.FLOAT
INT64 = ir.DataType.INT64
_IR_VERSION = 10


class GraphBuilder:
    """Collects inputs, nodes, weights and outputs of one graph over the data file of `layout`.

    It computes in the layout's float type, `dtype`.
    """

    def __init__(self, name: str, layout: WeightLayout, opset: int):
        self.name = name
        self.layout = layout
        self.opset = opset
        self.dtype = layout.dtype
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """A graph input; strings in `shape` are symbolic dimensions."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
        """Make `value` a graph output under `name`."""
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self._outputs.append(value)

    def ops(
        self, op_type: str, count: int, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> list[ir.Value]:
        """Add a node with `count` outputs; None stands for an optional input that is absent."""
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]  # TensorRT's parser takes an empty name at the end for a tensor that is missing
        node = ir.node(
            op_type, inputs, attributes, domain=domain, num_outputs=count, name=f"{op_type}_{len(self._nodes)}"
        )
        for i, value in enumerate(node.outputs):
            value.name = f"{node.name}.{i}"
        self._nodes.append(node)
        return list(node.outputs)

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Add a node with one output."""
        return self.ops(op_type, 1, *inputs, domain=domain, **attributes)[0]

    def const(self, value: float | Sequence[int]) -> ir.Value:
        """A small constant: float32 scalar, or int64 vector."""
        array = np.array(value, np.float32 if isinstance(value, float) else np.int64)
        text = "_".join(map(str, np.atleast_1d(array)))
        return self.initializer(ir.Tensor(array, name=f"const_{array.dtype}_{text}"))

    def weight(self, weight: Weight) -> ir.Value:
        """A weight that is stored as floats: in the graph's type, or in float32 if it is wide."""
        return self.initializer(self.layout.tensor(weight.name))

    def slot(self, slot: Slot) -> ir.Value:
        """A tensor of the data file."""
        return self.initializer(self.layout.tensor(slot.name))

    def cast(self, x: ir.Value, source: ir.DataType, target: ir.DataType) -> ir.Value:
        """`x` of type `source` as `target`."""
        return x if source == target else self.op("Cast", x, to=target)

    def reshape(self, x: ir.Value, *shape: int) -> ir.Value:
        """`x` with a new shape; 0 keeps a dimension and one may be -1."""
        return self.op("Reshape", x, self.const(list(shape)))

    def build(self) -> ir.Model:
        """The finished model."""
        domains = {node.domain for node in self._nodes}
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": self.opset} | {domain: 1 for domain in (MICROSOFT, OWN) if domain in domains},
            name=self.name,
        )
        return ir.Model(graph, ir_version=_IR_VERSION, producer_name="qwenvl-edge")

    def initializer(self, tensor: ir.Tensor[Any] | ir.ExternalTensor) -> ir.Value:
        """A named tensor as a value; one of that name is added once."""
        assert tensor.name is not None  # every tensor made in this package is named
        if tensor.name not in self._initializers:
            value = ir.Value(
                name=tensor.name,
                type=ir.TensorType(tensor.dtype),
                shape=tensor.shape,
                const_value=tensor,
            )
            self._initializers[tensor.name] = value
        return self._initializers[tensor.name]
