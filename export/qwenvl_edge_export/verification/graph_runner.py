"""Runs a graph of a bundle on ONNX Runtime's CPU provider, whole or in pieces: see graph_pieces.py.

A text is a sequence of calls that share a KV cache, which is written in place as the runtime has it. In pieces, all
calls of all texts go through one piece before the next one is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import ModelProto

from qwenvl_edge.backends.onnxruntime.session import PROVIDERS, failed, open_session, session_options
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import DECODER_DATA, PAST, PRESENT, VISION_DATA, present_of
from qwenvl_edge_export.verification.graph_pieces import CutGraph, Piece

PIECE_BYTES = 1 << 30
"""Most memory that the weights of one session may take, beside what ONNX Runtime needs to make them of the file."""

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = Mapping[str, Array]
Values: TypeAlias = dict[str, ort.OrtValue]
_DTYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


class Session:
    """One ONNX Runtime session, called with values by name."""

    def __init__(self, session: ort.InferenceSession):
        self._session = session
        self._inputs = {node.name: node for node in session.get_inputs()}
        self._outputs = [node.name for node in session.get_outputs()]

    def new_caches(self, capacity: int) -> Values:
        """Empty caches for one text, by the names of their inputs."""
        return {
            name: value_of(np.zeros((1, node.shape[1], capacity, *node.shape[3:]), _DTYPES[node.type]))
            for name, node in self._inputs.items()
            if name.startswith(PAST)
        }

    def __call__(self, given: Values, caches: Values) -> Values:
        """Run once; the outputs but those of the caches, which are written in place.

        Raises:
            BackendError: ONNX Runtime failed.
        """
        # A value that ONNX Runtime gave keeps the binding, and so the session and all that it was given.
        found = self._run(given, caches)
        return {name: value_of(array_of(value)) for name, value in found.items()}

    def made(self) -> Values:
        """The outputs of a model without inputs, uncopied; they keep its session."""
        return self._run({}, {})

    def _run(self, given: Values, caches: Values) -> Values:
        binding = self._session.io_binding()
        for name in self._inputs:
            binding.bind_ortvalue_input(name, caches[name] if name in caches else given[name])
        places = {present_of(past): value for past, value in caches.items()}
        for name in self._outputs:
            if name in places:
                binding.bind_ortvalue_output(name, places[name])
            else:
                binding.bind_output(name, "cpu")
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise failed("run a graph", error) from None
        found = dict(zip(self._outputs, binding.get_outputs(), strict=True))
        return {name: value for name, value in found.items() if name not in places}


class GraphRunner:
    """The graph in file `name` of a bundle, its "vision" or "decoder" `part`."""

    def __init__(self, bundle: Bundle, name: str, part: str, budget_bytes: int = PIECE_BYTES):
        self._bundle = bundle
        self._name = name
        self._part = part
        self._graph = CutGraph(bundle.file(name), budget_bytes)
        data = {"vision": VISION_DATA, "decoder": DECODER_DATA}[part]
        self._data = bundle.file(data).resolve()  # a bundle may be laid out as links to files elsewhere
        self._open: Session | None = None
        self.pieces = len(self._graph.pieces)
        self.inputs = {value.name: value for value in self._graph.model.graph.input}

    @property
    def is_whole(self) -> bool:
        """True if one session can hold all of its weights, so that it can answer token by token."""
        return self.pieces == 1

    def whole(self) -> Session:
        """The graph in one session, opened as the runtime does; it stays open until `close`.

        Raises:
            BackendError: ONNX Runtime cannot load it.
        """
        if self._open is None:
            if self._graph.widened:
                self._open = self._session(self._graph.pieces[0], {}, None)
            else:
                self._open = Session(open_session(self._bundle, self._name, None, self._part))
        return self._open

    def close(self) -> None:
        """Give back the memory of a whole session."""
        self._open = None

    def run(
        self,
        texts: Sequence[Sequence[Arrays]],
        capacities: Sequence[int],
        on_piece: Callable[[], object] = lambda: None,
    ) -> list[list[Arrays]]:
        """For each call of each text the graph's outputs but the cache's, by name.

        Args:
            texts: inputs of the calls, by name; a call may have more than the graph takes.
            capacities: tokens that each text's cache must hold.
            on_piece: called after each piece.

        Raises:
            BackendError: ONNX Runtime cannot load or run the graph.
        """
        state = [[as_values(call) for call in text] for text in texts]
        for number, piece in enumerate(self._graph.pieces):
            found: list[list[list[Values]]] = [[[] for _ in text] for text in state]
            for session, weights in self._sessions(piece, state):
                for text, capacity, outputs in zip(state, capacities, found, strict=True):
                    caches = session.new_caches(capacity)
                    for call, parts in zip(text, outputs, strict=True):
                        parts.append(session({**call, **weights}, caches))
                del session, weights, caches  # before the next one is loaded
            kept = {name for later in self._graph.pieces[number + 1 :] for name in later.inputs}
            kept |= {name for name in self._graph.results if not name.startswith(PRESENT)}
            for text, outputs in zip(state, found, strict=True):
                for call, parts in zip(text, outputs, strict=True):
                    call.update(_joined(parts))
                    for name in call.keys() - kept:
                        del call[name]
            on_piece()
        return [[{name: array_of(value) for name, value in call.items()} for call in text] for text in state]

    def _sessions(self, piece: Piece, state: list[list[Values]]) -> Iterator[tuple[Session, Values]]:
        """The sessions of a piece, one at a time, with the weights that are made for it.

        There is one, or one for each part of its matrix.
        """
        if self.is_whole:
            yield self.whole(), {}
            return
        first = state[0][0]
        kinds = {name: (first[name].element_type(), len(first[name].shape())) for name in piece.inputs if name in first}
        for rows in piece.rows or (None,):
            yield self._session(piece, kinds, rows), self._weights(piece, rows)

    def _weights(self, piece: Piece, rows: tuple[int, int] | None) -> Values:
        """The weights that a piece's makers make of stored ones."""
        if not piece.makers:
            return {}
        options = session_options(self._bundle, self._name, None, self._part)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # else they are folded
        return self._load(self._graph.build_makers(piece, rows), options).made()

    def _session(self, piece: Piece, kinds: dict[str, tuple[int, int]], rows: tuple[int, int] | None) -> Session:
        options = session_options(self._bundle, self._name, None, self._part)
        # Blocks are prepacked: without it, whole matrices would be widened at every call.
        packs = any(node.op_type == "MatMulNBits" for node in piece.nodes)
        options.add_session_config_entry("session.disable_prepacking", "0" if packs else "1")
        return self._load(self._graph.build(piece, kinds, rows), options)

    def _load(self, model: ModelProto, options: ort.SessionOptions) -> Session:
        options.enable_cpu_mem_arena = False  # it keeps what loading took for a moment
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = self._data.name
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._data.parent))
        try:
            return Session(ort.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS))
        except Exception as error:
            raise failed(f'load a part of "{self._bundle.file(self._name)}"', error) from None


def value_of(array: Array) -> ort.OrtValue:
    """An array as a session takes it."""
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def array_of(value: ort.OrtValue) -> Array:
    """A copy of what a session gave: its own memory goes with the value."""
    return np.array(value.numpy())


def _joined(parts: Sequence[Values]) -> Values:
    """The outputs of a piece, those of the parts of its matrix side by side."""
    if len(parts) == 1:
        return parts[0]
    return {name: value_of(np.concatenate([part[name].numpy() for part in parts], axis=-1)) for name in parts[0]}


def as_values(arrays: Arrays) -> Values:
    """Arrays as a session takes them."""
    return {name: value_of(array) for name, array in arrays.items()}
