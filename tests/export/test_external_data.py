"""What names data files in a graph, against the ONNX package's own reading of it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qwenvl_edge.bundle.external_data import ExternalTensor, read_graph
from qwenvl_edge.errors import BundleError


def external(name, location, dims, kind=TensorProto.FLOAT, **entries):
    tensor = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def inline(name, shape):
    return onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name)


def graph_of(tensors, nodes=(), name="g"):
    return helper.make_graph(list(nodes), name, [], [], initializer=list(tensors))


@pytest.fixture
def model():
    """External tensors in every place that may hold one, beside inline ones."""
    branch = graph_of([external("in_branch", "b.data", [2, 2], TensorProto.INT8)], name="branch")
    nodes = [
        helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=graph_of([], name="else")),
        helper.make_node("Constant", [], ["c"], value=external("in_attribute", "a.data", [3], TensorProto.INT4)),
    ]
    sparse = onnx.SparseTensorProto(dims=[9], values=external("values", "s.data", [2], offset=64))
    sparse.indices.CopyFrom(external("indices", "s.data", [2], TensorProto.INT64, offset=128))
    graph = graph_of([external("plain", "w.data", [4, 8], offset=4096, length=128), inline("small", (3,))], nodes)
    graph.sparse_initializer.append(sparse)
    function = onnx.FunctionProto(name="f", domain="d")
    value = external("in_function", "f.data", [1], TensorProto.BFLOAT16)
    function.node.append(helper.make_node("Constant", [], ["k"], value=value))
    made = helper.make_model(graph)
    made.functions.append(function)
    return made


def test_every_place_is_found(model, tmp_path):
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    found = {tensor.name: tensor for tensor in read_graph(tmp_path / "m.onnx")}
    assert found == {
        "plain": ExternalTensor("plain", "w.data", 4096, 128, (4, 8), TensorProto.FLOAT),
        "in_branch": ExternalTensor("in_branch", "b.data", 0, None, (2, 2), TensorProto.INT8),
        "in_attribute": ExternalTensor("in_attribute", "a.data", 0, None, (3,), TensorProto.INT4),
        "values": ExternalTensor("values", "s.data", 64, None, (2,), TensorProto.FLOAT),
        "indices": ExternalTensor("indices", "s.data", 128, None, (2,), TensorProto.INT64),
        "in_function": ExternalTensor("in_function", "f.data", 0, None, (1,), TensorProto.BFLOAT16),
    }
    assert [found[name].nbytes for name in ("plain", "in_attribute", "indices", "in_function")] == [128, 2, 16, 2]


@pytest.mark.parametrize("kind", range(TensorProto.INT2 + 1))
def test_sizes_are_those_of_the_onnx_package(kind):
    tensor = ExternalTensor("t", "w.data", 0, None, (5,), kind)
    if kind in (TensorProto.UNDEFINED, TensorProto.STRING):  # their values have no size of their own
        assert tensor.nbytes is None
        return
    bits = {TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.FLOAT4E2M1: 4, TensorProto.INT2: 2}
    bits[TensorProto.UINT2] = 2
    item = bits.get(kind, helper.tensor_dtype_to_np_dtype(kind).itemsize * 8)
    assert tensor.nbytes == (5 * item + 7) // 8


def test_a_graph_without_data_files_names_none(tmp_path):
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph_of([inline("small", (3,))])).SerializeToString())
    assert read_graph(tmp_path / "m.onnx") == []


@given(data=st.data())
def test_any_damage_is_one_sentence(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    whole = helper.make_model(graph_of([external("t", "w.data", [4, 8], offset=4096)])).SerializeToString()
    at = data.draw(st.integers(0, len(whole) - 1))
    kept = whole[at + 1 :] if data.draw(st.booleans()) else b""
    path.write_bytes(whole[:at] + data.draw(st.binary(max_size=3)) + kept)
    try:
        found = read_graph(path)
    except BundleError as error:
        assert "is no ONNX graph" in str(error) and str(path) in str(error)
    else:
        assert all(isinstance(tensor, ExternalTensor) for tensor in found)


def test_an_unreadable_file(tmp_path):
    with pytest.raises(BundleError, match="cannot read"):
        read_graph(tmp_path)
