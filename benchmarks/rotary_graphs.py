"""A decoder graph in each form that its rotary inputs can take (rotary_forms.py), changed from the exporter's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qwenvl_edge_export.checkpoint import Checkpoint, expected_shapes
from qwenvl_edge_export.config import QwenVLConfig
from qwenvl_edge_export.graphs.decoder import build_decoders
from qwenvl_edge_export.precision import ExportPrecision
from qwenvl_edge_export.tensorrt.lowering import only_user
from tools.synthetic_checkpoint import preset, random_tensor

NANO = Path(__file__).parent.parent / "models" / "nano"


def write_decoder(
    name: str, folder: Path, precision: str, target: str, layers: int | None = None
) -> tuple[QwenVLConfig, dict[str, Path]]:
    """A model's decoder in the table form: its configuration and its graphs by dialect, over one file of weights.

    name: "nano", or a preset of random weights, cut to so many `layers`.
    """
    checkpoint: Any = Checkpoint.open(NANO) if name == "nano" else RandomCheckpoint(name, layers)
    config = checkpoint.config
    chosen = ExportPrecision.choose(precision, target=target).fitted((config.hidden_size, config.mlp_width))
    models, weights = build_decoders(checkpoint, chosen.decoder)
    weights.write(folder, lambda _: None)
    paths = {dialect: folder / f"{dialect}.table.onnx" for dialect in models}
    for dialect, model in models.items():
        ir.save(model, paths[dialect])
    return config, paths


def in_form(path: Path, form: str) -> Path:
    """A written decoder in another form, beside it."""
    if form in ("table", "again"):
        return path
    model, changed = ir.load(path), path.with_name(path.name.replace(".table.", f".{form}."))
    as_rows(model, fold=form == "folded")
    ir.save(model, changed)
    return changed


class RandomCheckpoint:
    """A preset's tensors, made when they are read."""

    group = None

    def __init__(self, name: str, layers: int | None = None):
        raw = preset(name)
        self.config = QwenVLConfig.from_dict(raw | {"num_hidden_layers": layers or raw["num_hidden_layers"]})
        self._shapes = expected_shapes(self.config)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor."""
        return self._shapes[name]

    def tensor(self, name: str) -> Any:
        """Bfloat16 values."""
        return random_tensor(name, self._shapes[name])

    def integers(self, name: str) -> None:
        """None: no tensor is quantized already."""


def as_rows(model: ir.Model, *, fold: bool = False) -> None:
    """Change a decoder graph in the table form to the rows form, or to the folded one."""
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    cos, sin = inputs["rope_cos"], inputs["rope_sin"]
    assert cos.shape is not None
    for value in (cos, sin):
        value.shape = ir.Shape(["B", "T", cos.shape[-1]])
    for node in graph:
        if node.op_type == "RotaryEmbedding":
            node.resize_inputs(3)
    logn = next((node for node in graph if node.op_type == "Log"), None)
    if logn is not None:
        scale = only_user(only_user(only_user(logn)))  # Log -> Mul -> Max -> Unsqueeze
        scale.replace_input_with(0, _add_input(graph, "query_scale", ir.DataType.FLOAT, ["B", "T"]))
        if fold:
            _fold(graph, scale, cos, sin)
    attention = [node for node in graph if node.op_type == "GroupQueryAttention"]
    if attention:
        last = _add_input(graph, "last_indices", ir.DataType.INT32, ["B"])
        for node in attention:
            node.replace_input_with(5, last)
    RemoveUnusedNodesPass()(model)
    for name in ("position_ids", *(["write_indices"] if attention else [])):
        assert not inputs[name].uses()
        graph.inputs.remove(inputs[name])


def _add_input(graph: ir.Graph, name: str, dtype: ir.DataType, shape: list[str]) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    graph.inputs.append(value)
    return value


def _fold(graph: ir.Graph, scale: ir.Node, cos: ir.Value, sin: ir.Value) -> None:
    """The factor from each layer's queries into a second pair of rows, which their rotary embedding takes."""
    scaled = [ir.node("Mul", [rows, scale.outputs[0]]) for rows in (cos, sin)]
    for user in [user for user, _ in scale.outputs[0].uses() if user not in scaled]:
        query = user.inputs[0]
        assert query is not None and query.producer() is not None
        for i, rows in enumerate(scaled):
            query.producer().replace_input_with(i + 1, rows.outputs[0])  # type: ignore[union-attr]
        ir.convenience.replace_all_uses_with(user.outputs[0], query)
    graph.insert_after(scale, scaled)


def gather_rows(graph: ir.Graph) -> None:
    """Change the rows form so that TensorRT gathers: rows [B * T, D/2] and positions 0 .. B * T - 1 as [B, T]."""
    inputs = {value.name: value for value in graph.inputs}
    cos, sin = inputs["rope_cos"], inputs["rope_sin"]
    assert cos.shape is not None
    first = graph[0]

    def add(op_type: str, *values: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(op_type, values, attributes)
        graph.insert_before(first, node)
        return node.outputs[0]

    def const(value: Any) -> ir.Value:
        return add("Constant", value=ir.tensor(np.array(value, np.int64)))

    flat = const([-1, cos.shape[-1]])
    tables = [add("Reshape", rows, flat) for rows in (cos, sin)]
    shape = add("Shape", cos, start=0, end=2)
    count = add("ReduceProd", shape, keepdims=0)
    positions = add("Reshape", add("Range", const(0), count, const(1)), shape)
    for node in [node for node in graph if node.op_type == "RotaryEmbedding"]:
        node.resize_inputs(4)
        for i, value in enumerate((*tables, positions), 1):
            node.replace_input_with(i, value)
