"""Where ONNX Runtime would run a graph's nodes on a GPU (its fallback_cpu_capability.cc and transform_memcpy.cc).

CUDA has kernels for all operators in KERNELS. Some of their inputs and outputs lie on the host. A node of the CUDA
provider whose inputs are all small, and one of which another kernel left on the host, is given to the CPU instead.
Where a value is then needed on the other side, a copy is put in between; a session
with copies cannot be captured as a CUDA graph. So ONNX Runtime decides; this repeats it, since it decides only where a
GPU is.
"""

from __future__ import annotations

import onnx

# ONNX Runtime's docs/OperatorKernels.md, CUDA provider, for the types in our decoders. Not GatherND, although it is
# there: it copies from the host's stack at every call, and a replayed graph would read that stack again.
KERNELS = set(
    "Add Cast Concat Constant Expand Gather GatherElements Gemm GroupQueryAttention Log MatMulNBits Max Mul Reshape "
    "RMSNormalization RotaryEmbedding Shape Sigmoid Split Sub Unsqueeze".split()
)
HOST_INPUTS = {"Expand": {1}, "GroupQueryAttention": {6}, "Reshape": {1}, "Unsqueeze": {1}}
HOST_OUTPUTS = {"Shape"}
SMALL = 100


class Placement:
    """on_cpu: nodes given to the CPU. copies: values that would be copied between the two."""

    def __init__(self, graph: onnx.GraphProto):
        self.graph = graph
        fixed = {t.name: t for t in graph.initializer}
        constants = {node.output[0] for node in graph.node if node.op_type == "Constant"}
        self._movable = constants | {n for n, t in fixed.items() if size(t) <= SMALL}
        self._anywhere = constants | set(fixed)
        self._inputs = {value.name for value in graph.input}
        self._host: set[str] = set()
        self.on_cpu: list[onnx.NodeProto] = []
        for node in graph.node:  # in topological order
            self._place(node)
        self.copies = self._copies()

    def _place(self, node: onnx.NodeProto) -> None:
        if node.op_type in HOST_OUTPUTS:
            self._host.update(node.output)
            return
        if node.op_type not in KERNELS or self._goes_to_cpu(node):
            self.on_cpu.append(node)
            self._host.update(node.output)

    def _goes_to_cpu(self, node: onnx.NodeProto) -> bool:
        names = [name for name in node.input if name]
        if not self._host.intersection(names):
            return False
        for index, name in enumerate(node.input):
            if not name or name in self._movable or name in self._inputs:
                continue
            if name not in self._host or index in HOST_INPUTS.get(node.op_type, ()):
                return False
        return True

    def _copies(self) -> set[str]:
        cpu = {id(node) for node in self.on_cpu}
        wanted: dict[bool, set[str]] = {True: set(), False: set()}
        for node in self.graph.node:
            for index, name in enumerate(node.input):
                on_host = id(node) in cpu or index in HOST_INPUTS.get(node.op_type, ())
                wanted[on_host].add(name)
        there = {n for node in self.graph.node for n in node.output} - self._host - self._anywhere
        both = wanted[True] & wanted[False] & self._inputs
        return (wanted[True] & there) | (wanted[False] & self._host) - self._anywhere | both


def size(tensor: onnx.TensorProto) -> int:
    """Elements."""
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count
