"""The "onnxruntime" decoder can be captured as a CUDA graph: nothing but shapes is computed on the CPU, no copies."""

from __future__ import annotations

import copy

import onnx
import pytest

from support.bundles import Exports
from support.families import FAMILIES, GOLDEN
from support.gpu_placement import KERNELS, Placement

HOST_INPUT = "total_sequence_length"


@pytest.fixture(scope="module", params=["fp16", "bf16", "int4", *FAMILIES])
def graph(request, tiny_exports, tmp_path_factory):
    """Of Qwen-VL in several precisions, and of the other families in fp16."""
    if request.param in FAMILIES:
        bundle = Exports(GOLDEN / request.param, tmp_path_factory.mktemp(request.param))("fp16", target="gpu")
    else:
        bundle = tiny_exports(request.param, target="gpu")
    return onnx.load(bundle.file("decoder.ort.onnx"), load_external_data=False).graph


def test_every_node_has_a_kernel_on_the_gpu(graph):
    assert {node.op_type for node in graph.node} <= KERNELS


def test_only_shapes_are_computed_on_the_cpu_and_nothing_is_copied(graph):
    placement = Placement(graph)
    assert {node.op_type for node in placement.on_cpu} == {"Concat"}
    assert placement.copies == set()
    readers = [node for node in graph.node if HOST_INPUT in node.input]
    assert {node.op_type for node in readers} == {"GroupQueryAttention"}
    assert all(list(node.input).index(HOST_INPUT) == 6 for node in readers)


def test_lengths_that_the_graph_adds_itself_are_seen_as_a_copy(graph):
    """Tokens of a row as an index + Shape(inputs_embeds): an addition on the CPU, its result needed on the GPU."""
    changed = copy.deepcopy(graph)
    attention = next(node for node in changed.node if node.op_type == "GroupQueryAttention")
    assert attention.input[5] == "last_indices"
    attention.input[5] = "total"
    tokens = onnx.helper.make_node("Shape", ["inputs_embeds"], ["tokens"], start=1, end=2)
    nodes = [tokens, onnx.helper.make_node("Add", ["last_indices", "tokens"], ["total"]), *changed.node]
    del changed.node[:]
    changed.node.extend(nodes)
    placement = Placement(changed)
    assert "Add" in {node.op_type for node in placement.on_cpu}
    assert "total" in placement.copies
