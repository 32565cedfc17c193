"""The place of every tensor in a data file, from roles and precision alone: no graph is built, no value read.

Graphs refer to these places, calibration fills some of them, and the writer (data_file.py) fills the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from qwenvl_edge.bundle.contract import DECODER_DATA, VISION_DATA
from qwenvl_edge_export.graphs.roles import Decoder, LinearRole, NormRole, Role, Weight
from qwenvl_edge_export.graphs.stored import ZERO_POINT, Slot, Stored, StoredFloats
from qwenvl_edge_export.graphs.stored_integers import StoredBlocks, StoredInputs, StoredRows, StoredStaticRows
from qwenvl_edge_export.options import GraphPrecision
from qwenvl_edge_export.weight_formats import GivenScales, Rows, StaticRows, no_scales

ALIGNMENT_BYTES = 4096


@dataclass(frozen=True)
class Entry:
    """A tensor and the byte at which it starts."""

    slot: Slot
    offset: int


class WeightLayout:
    """The tensors of one data file, in order; a name has one place, however often it is asked for.

    dtype: the float type of the graphs over them.
    """

    def __init__(self, location: str, dtype: ir.DataType, stored: Iterable[Stored]):
        self.location = location
        self.dtype = dtype
        self.size_bytes = 0
        self._entries: dict[str, Entry] = {}
        self._stored: dict[str, Stored] = {}
        for each in stored:
            if each.name not in self._stored:
                self._stored[each.name] = each
                for slot in each.slots:
                    offset = -(-self.size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
                    self._entries[slot.name] = Entry(slot, offset)
                    self.size_bytes = offset + slot.size_bytes

    def __iter__(self) -> Iterator[tuple[Stored, list[Entry]]]:
        """Everything that is stored, with its tensors, in the file's order."""
        for each in self._stored.values():
            yield each, [self._entries[slot.name] for slot in each.slots]

    def stored(self, name: str) -> Stored:
        """The stored form of the weight `name`."""
        return self._stored[name]

    def entry(self, name: str) -> Entry:
        """The place of tensor `name`."""
        return self._entries[name]

    def tensor(self, name: str) -> ir.ExternalTensor:
        """Tensor `name` as graphs refer to it."""
        entry = self._entries[name]
        slot = entry.slot
        return ir.ExternalTensor(
            self.location, entry.offset, slot.size_bytes, slot.dtype, shape=ir.Shape(slot.shape), name=name
        )

    def bytes_of(self, names: Collection[str]) -> int:
        """Bytes of some tensors."""
        return sum(self._entries[name].slot.size_bytes for name in names)


def decoder_layout(decoder: Decoder, precision: GraphPrecision, scales: GivenScales = no_scales) -> WeightLayout:
    """The layout of decoder.data, which all dialects share; `scales` are those of the inputs that calibration found.

    Raises:
        CheckpointError: a linear layer does not divide into the precision's blocks.
    """
    return WeightLayout(DECODER_DATA, precision.dtype, _decoder(decoder, _Storage(precision, scales)))


def vision_layout(roles: Iterable[Role], precision: GraphPrecision, scales: GivenScales = no_scales) -> WeightLayout:
    """The layout of vision.data; see `decoder_layout`."""
    storage = _Storage(precision, scales)
    return WeightLayout(VISION_DATA, precision.dtype, (each for role in roles for each in storage.role(role)))


def _decoder(decoder: Decoder, storage: _Storage) -> Iterator[Stored]:
    for layer in decoder.layers:
        yield storage.floats(layer.attention_norm)
        yield from storage.linear(layer.qkv)
        yield from (storage.floats(norm) for norm in (layer.q_norm, layer.k_norm) if norm is not None)
        yield from storage.linear(layer.out)
        yield storage.floats(layer.mlp_norm)
        yield from storage.linear(layer.up, layer.gate)
        yield from storage.linear(layer.down)
    yield storage.floats(decoder.final_norm)
    yield from storage.linear(decoder.head, head=True)


class _Storage:
    """Stored forms of roles at one precision."""

    def __init__(self, precision: GraphPrecision, scales: GivenScales):
        self._precision = precision
        self._scales = scales

    def role(self, role: Role) -> Iterator[Stored]:
        if isinstance(role, LinearRole):
            yield from self.linear(role)
        elif isinstance(role, NormRole):
            yield from (self.floats(weight) for weight in (role.weight, role.bias) if weight is not None)
        else:
            yield self.floats(role)

    def floats(self, weight: Weight) -> Stored:
        return StoredFloats(weight, ir.DataType.FLOAT if weight.wide else self._precision.dtype)

    def linear(self, *roles: LinearRole, head: bool = False) -> Iterator[Stored]:
        """Linear layers that read the same inputs: where these are quantized with given scales, they share them."""
        shared: StoredInputs | None = None
        for role in roles:
            if role.bias is not None:
                yield self.floats(role.bias)
            form = self._precision.format(role.weight.name, head=head)
            if form is None:
                yield self.floats(role.weight)
            elif isinstance(form, StaticRows):
                static = self._static(role.weight, form, shared)
                yield static
                if (shared := static.inputs) is not None:
                    yield from (shared, ZERO_POINT)
            elif isinstance(form, Rows):
                yield StoredRows(role.weight, form)
            else:
                form.check(role.weight.name, role.weight.shape)
                blocks = StoredBlocks(role.weight, form, self._precision.dtype)
                yield from (blocks, blocks.zeros)

    def _static(self, weight: Weight, rows: StaticRows, shared: StoredInputs | None) -> StoredStaticRows:
        given, dtype = self._scales(weight.name), self._precision.dtype
        inputs = None if given is None else shared or StoredInputs(weight.name, given, dtype)
        return StoredStaticRows(weight, rows, dtype, given, inputs)
