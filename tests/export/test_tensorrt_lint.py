"""Each form of weights that TensorRT refuses is refused before a build, with the line that exports another."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qwenvl_edge.errors import BackendError
from qwenvl_edge_export.tensorrt.lint import check_graph


def written(path, *, bits, block=0, shape=(256, 8), scale=0.5, zero=0, op="DequantizeLinear", constant=True):
    """A graph with one weight or, for QuantizeLinear, one rounded input."""
    kind = {4: TensorProto.INT4, 8: TensorProto.INT8}[bits]
    weight = helper.make_tensor("weight", kind, shape, np.ones(shape, np.int8).ravel())
    scales = ([shape[0] // block, *shape[1:]] if block else [shape[1]]) if op == "DequantizeLinear" else []
    values = np.full(scales, scale, np.float16)
    attributes = {"axis": 0, "block_size": block} if block else {"axis": 1} if scales else {}
    initializers = [weight, numpy_helper.from_array(values, "scale")]
    initializers.append(helper.make_tensor("zero", kind, scales, np.full(scales, zero, np.int8).ravel()))
    inputs = [] if constant else [helper.make_tensor_value_info("scale", TensorProto.FLOAT16, scales)]
    if op == "QuantizeLinear":
        inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT16, [4, shape[0]]))
    node = helper.make_node(op, ["x" if op == "QuantizeLinear" else "weight", "scale", "zero"], ["y"], **attributes)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT16 if op != "QuantizeLinear" else kind, None)
    kept = [each for each in initializers if constant or each.name != "scale"]
    graph = helper.make_graph([node], "graph", inputs, [output], kept)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


@pytest.mark.parametrize(
    ("form", "match"),
    [
        ({"bits": 8, "block": 128}, r'"decoder.onnx" stores the weight "weight" in blocks of 8-bit .*--precision fp16'),
        ({"bits": 8, "block": 64}, "in blocks of 8-bit integers"),
        ({"bits": 4, "block": 32}, r"4-bit weights in blocks of 32; TensorRT takes 64 and 128: export with --block"),
        ({"bits": 4, "block": 128, "shape": (256, 8, 2)}, r'"weight" by blocks in 3 dimensions; TensorRT takes two'),
        ({"bits": 4, "block": 64, "constant": False}, r'no constant float scales for the blocks of "weight"'),
        ({"bits": 8, "scale": 0.0}, r'a scale that is not above zero and finite at "weight": export the bundle again'),
        ({"bits": 8, "scale": np.nan}, "not above zero and finite"),
        ({"bits": 8, "scale": np.inf}, "not above zero and finite"),
        ({"bits": 8, "scale": -1.0, "op": "QuantizeLinear"}, r'not above zero and finite at "x"'),
        ({"bits": 8, "zero": 3}, r'zero points other than zero at "weight"'),
        ({"bits": 8, "constant": False}, r'computes the scale of "weight", which TensorRT wants constant'),
    ],
)
def test_what_tensorrt_refuses(tmp_path, form, match):
    with pytest.raises(BackendError, match=match):
        check_graph(written(tmp_path / "decoder.onnx", **form))


@pytest.mark.parametrize(
    "form",
    [
        {"bits": 4, "block": 64},
        {"bits": 4, "block": 128},
        {"bits": 8},
        {"bits": 8, "op": "QuantizeLinear"},
    ],
)
def test_what_tensorrt_takes(tmp_path, form):
    check_graph(written(tmp_path / "decoder.onnx", **form))
