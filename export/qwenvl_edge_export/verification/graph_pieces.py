"""A written graph cut into pieces, so that ONNX Runtime holds the weights of one piece at a time.

ONNX Runtime copies some weights into memory of its own: 4- and 8-bit blocks into its kernels' order, and to float32
whatever the "standard" dialect widens before a Gemm, float16 and bfloat16. A piece is a run of the graph's own nodes
over the same bytes of the same file. Cuts lie where the fewest values cross: between layers, not within attention. A
single matrix that is too large, an output layer, is run by some of its rows at a time.

Nodes that only make weights of stored ones (DequantizeLinear, Cast) are a model of their own, which runs once for all
calls of a piece. Left in the piece, ONNX Runtime would fold them when it loads, which took 20 times as long and three
times the memory (1.1 billion parameters in 4 bits, ONNX Runtime 1.32), or run them anew in every call.

bfloat16, which ONNX Runtime's CPU provider does not compute, is widened to float32 in front of its users. So is float16
in a graph that is cut: in a whole one ONNX Runtime keeps float32 between nodes, and a cut would round there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from qwenvl_edge_export.graphs.builder import OWN

Kind = tuple[int, int]
"""Element type, as TensorProto has it, and rank of a value."""

_ROWS_STEP = 128  # so that a slice of 4-bit rows, and of their zero points, begins at a byte
_MAKERS = ("DequantizeLinear", "Cast")
# Folded in a whole session, weights are there as values, in their serialized form and as a tensor for a moment: 3.1
# times the float32 weights were measured (1.1 billion parameters in 4 bits, ONNX Runtime 1.32).
_COPIES_WHEN_FOLDED = 3


@dataclass(frozen=True)
class Piece:
    """Some nodes of a graph, and the names of values that they take from before and give to later ones.

    makers: those of the nodes that make its weights of stored ones; none in a graph that is run whole.
    rows: the parts of its one matrix's rows that are run one after another; their outputs are joined along the last
    axis. Empty where it is run at once.
    """

    nodes: tuple[NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rows: tuple[tuple[int, int], ...] = ()
    makers: tuple[NodeProto, ...] = ()

    @property
    def made(self) -> tuple[str, ...]:
        """Names of the weights that the makers give."""
        return tuple(node.output[0] for node in self.makers)


class CutGraph:
    """The graph in file `path`, whose pieces cost at most about `budget_bytes` of copied weights each."""

    def __init__(self, path: Path, budget_bytes: int):
        self.model = onnx.load(str(path), load_external_data=False)
        self.widened = _widen(self.model, TensorProto.BFLOAT16)
        self._budget = budget_bytes
        self._read()
        if self.cost_bytes > budget_bytes and _widen(self.model, TensorProto.FLOAT16):
            self._read()
        self.pieces = tuple(self._pieces())

    def _read(self) -> None:
        """Take the graph's values and nodes, and what these cost."""
        graph = self.model.graph
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._given = {value.name: value for value in graph.input}
        self.results = {value.name: value for value in graph.output}
        self._nodes = list(graph.node)
        self.cost_bytes = sum(self._cost(node, _COPIES_WHEN_FOLDED) for node in self._nodes)
        self._costs = [self._cost(node, 1) for node in self._nodes]

    def build(self, piece: Piece, kinds: Mapping[str, Kind], rows: tuple[int, int] | None = None) -> ModelProto:
        """A model of one piece, or of some rows of its matrix, that is given the weights which its makers make.

        kinds: of values between pieces.
        """
        values = {name: kinds[name] for name in piece.inputs if name not in self._given}
        values |= {node.output[0]: (self._made_type(node), len(self._stored(node).dims)) for node in piece.makers}
        inputs = [self._given[name] for name in piece.inputs if name in self._given]
        inputs += [helper.make_tensor_value_info(name, kind, [None] * rank) for name, (kind, rank) in values.items()]
        outputs = [self.results.get(name) or ValueInfoProto(name=name) for name in piece.outputs]
        nodes = [node for node in piece.nodes if node.output[0] not in piece.made]
        return self._model(nodes, inputs, outputs, self._sliced(piece, rows))

    def build_makers(self, piece: Piece, rows: tuple[int, int] | None = None) -> ModelProto:
        """A model without inputs that makes the weights of a piece, or some rows of them."""
        outputs = [ValueInfoProto(name=name) for name in piece.made]
        return self._model(piece.makers, [], outputs, self._sliced(piece, rows))

    def _model(
        self,
        nodes: Sequence[NodeProto],
        inputs: Sequence[ValueInfoProto],
        outputs: Sequence[ValueInfoProto],
        rows: Callable[[TensorProto], TensorProto],
    ) -> ModelProto:
        used = {name for node in nodes for name in node.input}
        tensors = [rows(tensor) for name, tensor in self._initializers.items() if name in used]
        graph = helper.make_graph(nodes, self.model.graph.name, inputs, outputs, tensors)
        return helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)

    def _sliced(self, piece: Piece, rows: tuple[int, int] | None) -> Callable[[TensorProto], TensorProto]:
        """Cuts the rows out of the tensors of a piece's matrix; without rows leaves everything as it is."""
        if rows is None:
            return lambda tensor: tensor
        cut = {tensor.name for tensor in self._matrix(piece.nodes)}
        return lambda tensor: _slice(tensor, *rows) if tensor.name in cut else tensor

    def _stored(self, node: NodeProto) -> TensorProto:
        stored: TensorProto = self._initializers[node.input[0]]
        return stored

    def _made_type(self, node: NodeProto) -> int:
        """Element type of the weight that a maker gives: that of the scales, or what it is cast to."""
        if node.op_type == "Cast":
            return int(node.attribute[0].i)
        return int(self._initializers[node.input[1]].data_type)

    def _is_maker(self, node: NodeProto) -> bool:
        return node.op_type in _MAKERS and all(name in self._initializers for name in node.input if name)

    def _cost(self, node: NodeProto, copies: int) -> int:
        """Bytes of memory that a node's weights take; `copies` of those that are widened."""
        if node.domain == OWN:
            return 0  # the native core reads them in the file
        tensors = [self._initializers[name] for name in node.input if name in self._initializers]
        if self._is_maker(node):
            elements: int = math.prod(tensors[0].dims)
            return 4 * copies * elements
        return sum(_copied_bytes(tensor) for tensor in tensors)

    def _pieces(self) -> Iterator[Piece]:
        if self.cost_bytes <= self._budget:
            yield dataclasses.replace(self._piece(0, len(self._nodes)), makers=())
            return
        start = 0
        for first, end in self._large():
            yield from (self._piece(*part) for part in self._cut(start, first))
            yield self._by_rows(first, end)
            start = end
        yield from (self._piece(*part) for part in self._cut(start, len(self._nodes)))

    def _large(self) -> Iterator[tuple[int, int]]:
        """Nodes from the one that makes a matrix beyond the budget to the one that multiplies by it."""
        for i, node in enumerate(self._nodes):
            if self._costs[i] > self._budget:
                users = [j for j, other in enumerate(self._nodes) if set(node.output) & set(other.input)]
                yield i, (users[0] if node.op_type in _MAKERS and len(users) == 1 else i) + 1

    def _cut(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Parts of the nodes from `start` to `stop`, each within the budget."""
        crossing = self._crossing()
        while start < stop:
            total, end, costs = 0, start, [0]
            while end < stop and (end == start or total + self._costs[end] <= self._budget):
                total += self._costs[end]
                costs.append(total)
                end += 1
            if end < stop:  # the latest of the best places in the second half
                places = [place for place in range(start + 1, end + 1) if 2 * costs[place - start] >= total]
                end = min(reversed(places), key=lambda place: crossing[place])
            yield start, end
            start = end

    def _crossing(self) -> list[int]:
        """The number of values that are made before each place between nodes and used after it."""
        last: dict[str, int] = {}
        for i, node in enumerate(self._nodes):
            last.update(dict.fromkeys(node.input, i))
        changes = [0] * (len(self._nodes) + 2)
        for i, node in enumerate(self._nodes):
            for name in node.output:
                if last.get(name, 0) > i:
                    changes[i + 1] += 1
                    changes[last[name] + 1] -= 1
        counts, count = [], 0
        for change in changes:
            count += change
            counts.append(count)
        return counts

    def _piece(self, start: int, end: int) -> Piece:
        nodes = tuple(self._nodes[start:end])
        made = {name for node in nodes for name in node.output}
        later = {name for node in self._nodes[end:] for name in node.input} | set(self.results)
        used = dict.fromkeys(name for node in nodes for name in node.input if name)
        inputs = tuple(name for name in used if name not in made and name not in self._initializers)
        outputs = tuple(name for node in nodes for name in node.output if name in later)
        makers = tuple(node for node in nodes if self._is_maker(node) and node.output[0] not in outputs)
        return Piece(nodes, inputs, outputs, makers=makers)

    def _by_rows(self, start: int, end: int) -> Piece:
        """A piece around one large matrix; whole where its rows cannot be told apart."""
        piece = self._piece(start, end)
        matrix = self._matrix(piece.nodes)
        if not matrix or piece.outputs != (piece.nodes[-1].output[0],):
            return piece
        total = matrix[0].dims[0]
        parts = math.ceil(sum(self._costs[start:end]) / self._budget)
        step = math.ceil(total / parts / _ROWS_STEP) * _ROWS_STEP
        rows = tuple((first, min(first + step, total)) for first in range(0, total, step))
        return dataclasses.replace(piece, rows=rows)

    def _matrix(self, nodes: Sequence[NodeProto]) -> list[TensorProto]:
        """The tensors [rows, ..] that the last node, a Gemm by a transposed weight, reads by rows; none for others."""
        gemm = nodes[-1]
        transposed = any(attribute.name == "transB" and attribute.i for attribute in gemm.attribute)
        if gemm.op_type != "Gemm" or not transposed:
            return []
        made = {node.output[0]: node for node in nodes[:-1]}
        names = [part for name in gemm.input[1:] for part in (made[name].input if name in made else (name,)) if part]
        if any(name not in self._initializers for name in names):
            return []
        found = [self._initializers[name] for name in names]
        return [tensor for tensor in found if tensor.dims and tensor.dims[0] == found[0].dims[0]]


def _copied_bytes(tensor: TensorProto) -> int:
    if tensor.data_type == TensorProto.FLOAT:
        return 0  # it is mapped
    if tensor.data_type == TensorProto.FLOAT16:
        elements: int = math.prod(tensor.dims)
        return 4 * _COPIES_WHEN_FOLDED * elements
    return int(_external(tensor).get("length", 0))


def _external(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _slice(tensor: TensorProto, first: int, end: int) -> TensorProto:
    """Rows `first` to `end` of a tensor that lies in a file."""
    place, total = _external(tensor), tensor.dims[0]
    row = int(place["length"])
    place["offset"] = str(int(place["offset"]) + row * first // total)
    place["length"] = str(row * (end - first) // total)
    part = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[end - first, *tensor.dims[1:]])
    part.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        part.external_data.add(key=key, value=value)
    return part


def _widen(model: ModelProto, narrow: int) -> bool:
    """Make a graph compute in float32 what it computes in the type `narrow`, over the same stored values.

    Returns:
        Whether it has weights of that type.
    """
    graph = model.graph
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == narrow:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    stored = {tensor.name for tensor in graph.initializer if tensor.data_type == narrow}
    widened = bool(stored)
    for tensor in graph.initializer:
        if tensor.name in stored:
            tensor.name = f"{tensor.name}.stored"
    nodes: list[NodeProto] = []
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in stored:
                node.input[i] = f"{name}.{len(nodes)}"
                nodes.append(helper.make_node("Cast", [f"{name}.stored"], [node.input[i]], to=TensorProto.FLOAT))
        if node.op_type == "Cast" and node.attribute[0].i == narrow:
            node.attribute[0].i = TensorProto.FLOAT
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return widened
