"""Weights outside a graph's file: ONNX graphs name the data files, places and shapes of their tensors.

Only what names data is read of the graphs (onnx.proto3, protocol buffers' wire format); the ONNX package is not needed.
https://github.com/onnx/onnx/blob/main/docs/ExternalData.md, https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qwenvl_edge.bundle.files import FileInfo
from qwenvl_edge.bundle.manifest import Manifest
from qwenvl_edge.errors import BundleError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_MARK = b"location"  # the key of every name of a data file; a part without it names none
_DEEPEST = 32  # graphs inside of graphs
# TensorProto.DataType -> bits of an element.
_BITS = {
    **{1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16},
    **{17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2},
}
# Where tensors lie: field numbers of messages that may hold some, by message.
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _SPARSE, _TENSOR, _FUNCTION = range(7)
_INSIDE = {
    _MODEL: {7: _GRAPH, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 10: _TENSOR, 6: _GRAPH, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
}


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose values lie in the file `location`, from byte `offset` on. length: None: what the shape takes."""

    name: str
    location: str
    offset: int
    length: int | None
    dims: tuple[int, ...]
    data_type: int

    @property
    def nbytes(self) -> int | None:
        """Bytes of its shape; None for a type that is not known."""
        bits = _BITS.get(self.data_type)
        return None if bits is None else (math.prod(self.dims) * bits + 7) // 8


def check_graphs(folder: Path, manifest: Manifest) -> None:
    """Check that the graphs of a bundle take their weights from files that bundle.json names, and that they lie inside.

    Raises:
        BundleError: a graph is damaged, names another file, or a tensor does not fit its shape or its file.
    """
    graphs = manifest.graphs
    names = {graphs.vision, graphs.vision_ort, graphs.vision_native, *graphs.decoder.values()} - {""}
    for name in sorted(names):
        for tensor in read_graph(folder / name):
            if reason := _contradiction(tensor, manifest.files):
                raise BundleError(
                    f'"{name}" in the bundle "{folder}": the tensor "{tensor.name}" {reason}; export the bundle again.'
                )


def read_graph(path: Path) -> list[ExternalTensor]:
    """Return the tensors of an ONNX file whose values lie in other files.

    Raises:
        BundleError: the file cannot be read, or is no ONNX graph.
    """
    try:
        data = path.read_bytes()
        return list(_tensors(memoryview(data), _MODEL, 0)) if _MARK in data else []
    except OSError as error:
        raise BundleError(f'cannot read "{path}": {error.strerror}.') from None
    except (ValueError, IndexError) as error:
        raise BundleError(f'"{path}" is no ONNX graph ({error}); export the bundle again.') from None


def _contradiction(tensor: ExternalTensor, files: dict[str, FileInfo]) -> str:
    """Return what is wrong with a tensor, as half a sentence; empty if nothing is."""
    if tensor.location not in files:
        return f'takes its values from "{tensor.location}", which bundle.json does not name'
    if tensor.offset < 0 or min(tensor.dims, default=0) < 0 or tensor.nbytes is None:
        return f"has the offset {tensor.offset}, the shape {list(tensor.dims)} and the type {tensor.data_type}"
    if tensor.length is not None and tensor.length != tensor.nbytes:
        return f"has {tensor.length:,} bytes, but its shape {list(tensor.dims)} takes {tensor.nbytes:,}"
    if tensor.offset + tensor.nbytes > files[tensor.location].size:
        return f'ends beyond the end of "{tensor.location}"'
    return ""


def _tensors(message: memoryview, kind: int, depth: int) -> Iterator[ExternalTensor]:
    """Yield the external tensors inside a message; parts that cannot name a file are not looked into."""
    if depth > _DEEPEST:
        raise ValueError("graphs are nested too deeply")
    if kind == _TENSOR:
        yield _tensor(message)
        return
    inside = _INSIDE[kind]
    for number, value in _fields(message):
        if number in inside and isinstance(value, memoryview) and _MARK in bytes(value):
            yield from _tensors(value, inside[number], depth + (kind == _ATTRIBUTE))


def _tensor(message: memoryview) -> ExternalTensor:
    dims: list[int] = []
    data_type, name, entries = 0, "", {}
    for number, value in _fields(message):
        if number == 1:  # dims, packed or one by one
            dims += _varints(value) if isinstance(value, memoryview) else [value]
        elif number == 2 and isinstance(value, int):
            data_type = value
        elif number == 8 and isinstance(value, memoryview):
            name = bytes(value).decode()
        elif number == 13 and isinstance(value, memoryview):
            pair = {key: bytes(part).decode() for key, part in _fields(value) if isinstance(part, memoryview)}
            entries[pair.get(1, "")] = pair.get(2, "")
    length = int(entries["length"]) if "length" in entries else None
    signed = tuple(dim - (1 << 64) if dim >> 63 else dim for dim in dims)
    return ExternalTensor(name, entries.get("location", ""), int(entries.get("offset", "0")), length, signed, data_type)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and the value of each field; values of a fixed size are skipped."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
        elif wire == _BYTES:
            size, at = _varint(message, at)
            if size > end - at:
                raise ValueError("it ends inside a field")
            yield tag >> 3, message[at : at + size]
            at += size
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"there is no wire type {wire}")
    if at != end:
        raise ValueError("it ends inside a field")


def _varints(message: memoryview) -> list[int]:
    at, found = 0, []
    while at < len(message):
        value, at = _varint(message, at)
        found.append(value)
    return found


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than ten bytes")
