"""Each form that a release of TensorRT refuses is refused before a build, with the line that exports another."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from qwenvl_edge.bundle.engines import TENSORRT_RTX
from qwenvl_edge.errors import BackendError
from qwenvl_edge_export.tensorrt.lint import check_graph
from support.tensorrt import release

TYPES = {4: TensorProto.INT4, 8: TensorProto.INT8, -4: TensorProto.UINT4, -8: TensorProto.UINT8}
# Of JetPack 6.1 and 6.2, the first with blocks in any dimensions, JetPack 7.0's, the first with the cache's layers, 11.
RELEASES = ["10.3.0.30", "10.7.0.23", "10.13.3.9", "10.15.1.29", "11.1.0.106"]
RTX = "RTX"
EVERY = [*RELEASES, RTX]


def library(version):
    """TensorRT of a version, or TensorRT-RTX."""
    return release("1.7.1.116", TENSORRT_RTX) if version == RTX else release(version)


def graph(*, bits, block=0, shape=(256, 8), scale=0.5, zero=0, op="DequantizeLinear", constant=True, scales=np.float16):
    """A graph with one weight or, for QuantizeLinear, one rounded input; scales: their type."""
    kind = TYPES[bits]
    weight = helper.make_tensor("weight", kind, shape, np.ones(shape, np.int8).ravel())
    many = ([shape[0] // block, *shape[1:]] if block else [shape[1]]) if op == "DequantizeLinear" else []
    values = numpy_helper.from_array(np.full(many, scale, scales), "scale")
    attributes = {"axis": 0, "block_size": block} if block else {"axis": 1} if many else {}
    initializers = [weight, values]
    initializers.append(helper.make_tensor("zero", kind, many, np.full(many, zero, np.int8).ravel()))
    inputs = [] if constant else [helper.make_tensor_value_info("scale", TensorProto.FLOAT16, many)]
    if op == "QuantizeLinear":
        inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT16, [4, shape[0]]))
    node = helper.make_node(op, ["x" if op == "QuantizeLinear" else "weight", "scale", "zero"], ["y"], **attributes)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT16 if op != "QuantizeLinear" else kind, None)
    kept = [each for each in initializers if constant or each.name != "scale"]
    return model([node], inputs, output, kept, opset=21)


def model(nodes, inputs, output, initializers=(), *, opset):
    made = helper.make_graph(nodes, "graph", inputs, [output], initializers)
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)]))


def of_operator(op, *, opset=20, domain=""):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 4])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)
    return model([helper.make_node(op, ["x"], ["y"], domain=domain)], [value], output, opset=opset)


def refusing(made):
    """The libraries of EVERY that refuse a graph, and their messages."""
    found = {}
    for version in EVERY:
        try:
            check_graph(made, "decoder.onnx", library(version))
        except BackendError as error:
            found[version] = str(error)
    return found


@pytest.mark.parametrize(
    ("form", "versions", "match"),
    [
        ({"bits": 8, "block": 128}, EVERY, '"decoder.onnx" stores the weight "weight" in blocks of 8-bit integers'),
        ({"bits": 8, "block": 64}, EVERY, "export with --target gpu and --precision fp16, w8a8 or int4."),
        (
            {"bits": 4, "block": 32},
            EVERY,
            "blocks of 32; TensorRT takes 64 and 128: export with --block-size 128",
        ),
        ({"bits": 4, "block": 128, "shape": (256, 8, 2)}, ["10.3.0.30"], "in 3 dimensions; TensorRT before 10.7"),
        (
            {"bits": 4, "block": 64, "constant": False},
            RELEASES[:2],
            'scale of "weight", which TensorRT before 10.13',
        ),
        ({"bits": 8, "constant": False}, RELEASES[:2], "computes the scale of"),
        ({"bits": 4, "block": 64, "scales": np.float64}, EVERY, 'has scales of DOUBLE for the blocks of "weight"'),
        ({"bits": 8, "scale": 0.0}, EVERY, 'a scale that is not above zero and finite at "weight": export the bundle'),
        ({"bits": 4, "block": 64, "scale": 0.0}, EVERY, "not above zero and finite"),
        ({"bits": 8, "scale": np.nan}, EVERY, "not above zero and finite"),
        ({"bits": 8, "scale": np.inf}, EVERY, "not above zero and finite"),
        ({"bits": 8, "scale": -1.0, "op": "QuantizeLinear"}, EVERY, 'not above zero and finite at "x"'),
        ({"bits": 8, "zero": 3}, EVERY, 'zero points other than zero at "weight"'),
        ({"bits": 4, "block": 64, "zero": 3}, EVERY, 'zero points other than zero at "weight"'),
        ({"bits": -8}, EVERY, 'unsigned integers in "weight", and TensorRT takes signed ones only'),
        ({"bits": -4, "block": 128}, EVERY, "unsigned integers"),
    ],
    ids=str,
)
def test_what_releases_of_tensorrt_refuse(form, versions, match):
    found = refusing(graph(**form))
    assert list(found) == versions
    assert all(match in message for message in found.values())


@pytest.mark.parametrize(
    "form",
    [
        {"bits": 4, "block": 64},
        {"bits": 4, "block": 128},
        {"bits": 4, "block": 128, "scales": np.float32},
        {"bits": 8},
        {"bits": 8, "op": "QuantizeLinear"},
    ],
    ids=str,
)
def test_what_all_of_them_take(form):
    assert refusing(graph(**form)) == {}


@pytest.mark.parametrize(
    ("op", "refused"),
    [
        ("Attention", RELEASES[:3]),
        ("RMSNormalization", RELEASES[:3]),
        ("RotaryEmbedding", RELEASES[:3]),
        ("TensorScatter", RELEASES[:3]),
        ("DynamicQuantizeLinear", EVERY),
        ("MatMulInteger", EVERY),
        ("Softmax", []),
    ],
)
def test_operators_by_release(op, refused):
    found = refusing(of_operator(op))
    assert list(found) == refused
    assert all(f"has the operator {op}, which" in message for message in found.values())


def test_attention_came_before_the_caches_layers():
    check_graph(of_operator("Attention"), "vision.onnx", library("10.14.1.48"))
    with pytest.raises(BackendError, match=r'"vision.onnx" .* RotaryEmbedding, which TensorRT knows from 10.15 on'):
        check_graph(of_operator("RotaryEmbedding"), "vision.onnx", library("10.14.1.48"))


def test_an_operator_of_another_domain_is_a_plugins():
    assert refusing(of_operator("Attention", domain="qwenvl.edge")) == {}


@pytest.mark.parametrize(("opset", "refused"), [(21, []), (22, RELEASES[:3]), (24, RELEASES[:3]), (25, RELEASES[:4])])
def test_opsets_by_release(opset, refused):
    found = refusing(of_operator("Softmax", opset=opset))
    assert list(found) == refused
    assert all(f"is of opset {opset}, but TensorRT 1" in message for message in found.values())
