"""Sessions of ONNX Runtime that know the native core's operators."""

import onnx
import onnxruntime as ort
from onnx import helper

from qwenvl_edge import _core

OWN = "qwenvl_edge"  # their domain


def session_of(graph: onnx.GraphProto, threads: int = 1) -> ort.InferenceSession:
    """A session of a graph with operators of the core; what ONNX Runtime logs of their errors is not shown."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(_core.__file__)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(OWN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
