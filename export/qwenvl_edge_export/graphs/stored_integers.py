"""Quantized weights as a data file holds them: their integers, their scales, and the scales of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from qwenvl_edge_export.files.thread_map import in_order
from qwenvl_edge_export.graphs.roles import Tensors
from qwenvl_edge_export.graphs.stored import (
    TORCH_DTYPES,
    GivenIntegers,
    Pieces,
    Slot,
    Stored,
    StoredConstant,
    StoredWeight,
    float_pieces,
    tensor_bytes,
)
from qwenvl_edge_export.weight_formats import (
    Blocks,
    InputScales,
    Rows,
    StaticRows,
    check_finite,
    row_pieces,
)


@dataclass(frozen=True)
class StoredBlocks(StoredWeight):
    """A matrix [out, in] in blocks of inputs: packed integers [out, in], then scales [out, in / size]."""

    blocks: Blocks
    dtype: ir.DataType

    @property
    def slots(self) -> Sequence[Slot]:
        """See Stored."""
        integers, scales = self.blocks.names(self.weight.name)
        return (Slot(integers, self.weight.shape, self._integer), Slot(scales, self._scales_shape, self.dtype))

    @property
    def zeros(self) -> StoredConstant:
        """The zero points of standard operators; layers of one shape share them."""
        outputs, count = self._scales_shape
        name = f"zeros.{self.blocks.bits}.{outputs}.{count}"
        byte = self.blocks.zero * 0x11 if self.blocks.bits == 4 else self.blocks.zero
        return StoredConstant(Slot(name, (outputs, count), self._integer), byte)

    @property
    def _integer(self) -> ir.DataType:
        return ir.DataType.UINT4 if self.blocks.bits == 4 else ir.DataType.UINT8

    @property
    def _scales_shape(self) -> tuple[int, int]:
        outputs, inputs = self.weight.shape
        return outputs, inputs // self.blocks.size

    def pieces(self, tensors: Tensors, integers: GivenIntegers) -> Iterator[Pieces]:
        """See Stored."""
        name, dtype = self.weight.name, TORCH_DTYPES[self.dtype]
        if (given := integers(self.weight)) is not None:
            yield iter([tensor_bytes(given.packed)])
            yield float_pieces(name, given.scales, dtype)
            return

        def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
            rows = rows.to(torch.float32)
            scales = self.blocks.scales(rows)
            check_finite(name, scales)
            scales = _as_stored(scales, dtype)
            return self.blocks.pack(self.blocks.integers(rows, scales)), scales

        yield from _with_scales(name, rounded, self.weight.read(tensors), dtype)


@dataclass(frozen=True)
class StoredRows(StoredWeight):
    """A matrix with a scale an output row, as integers [in, out]: MatMulInteger takes its second matrix no other way.

    The zero point is each layer's own: ONNX Runtime cannot make a shared one unsigned.
    """

    rows: Rows

    @property
    def slots(self) -> Sequence[Slot]:
        """See Stored."""
        name, (outputs, inputs) = f"{self.weight.name}.int8", self.weight.shape
        integers = Slot(name, (inputs, outputs), ir.DataType.INT8)
        return (
            integers,
            Slot(f"{name}.scales", (outputs,), ir.DataType.FLOAT),
            Slot(f"{name}.zero", (), ir.DataType.INT8),
        )

    def pieces(self, tensors: Tensors, integers: GivenIntegers) -> Iterator[Pieces]:
        """See Stored."""

        def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
            rows = rows.to(torch.float32)
            scales = self.rows.scales(rows)
            check_finite(self.weight.name, scales)
            return self.rows.integers(rows, scales), scales

        parts = list(in_order(rounded, row_pieces(self.weight.read(tensors))))
        yield iter([tensor_bytes(torch.cat([part for part, _ in parts]).T)])
        yield (tensor_bytes(scales) for _, scales in parts)
        yield iter([memoryview(bytes(1))])


@dataclass(frozen=True)
class StoredStaticRows(StoredWeight):
    """A matrix with a scale an output row: integers [out, in], then scales [out].

    given: the scales of its inputs, whose smoothing factors go into the matrix; None where inputs stay floats.
    inputs: the `StoredInputs` that has them, which layers with the same inputs share.
    """

    rows: StaticRows
    dtype: ir.DataType
    given: InputScales | None
    inputs: StoredInputs | None

    @property
    def slots(self) -> Sequence[Slot]:
        """See Stored."""
        name = f"{self.weight.name}.int8"
        scales = Slot(f"{name}.scales", self.weight.shape[:1], self.dtype)
        return (Slot(name, self.weight.shape, ir.DataType.INT8), scales)

    def pieces(self, tensors: Tensors, integers: GivenIntegers) -> Iterator[Pieces]:
        """See Stored."""
        name, dtype = self.weight.name, TORCH_DTYPES[self.dtype]

        def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
            rows = rows.to(torch.float32)
            smoothed = rows if self.given is None else rows * self.given.factors
            scales = self.rows.scales(smoothed)
            check_finite(name, scales)
            scales = _as_stored(scales, dtype)
            return self.rows.integers(smoothed, scales), scales

        yield from _with_scales(name, rounded, self.weight.read(tensors), dtype)


@dataclass(frozen=True)
class StoredInputs(Stored):
    """Scales of a linear layer's inputs: the inverse of their smoothing factors [in], and their one scale."""

    layer: str
    given: InputScales
    dtype: ir.DataType

    @property
    def name(self) -> str:
        """See Stored."""
        return f"{self.layer}.inputs"

    @property
    def smoothing(self) -> Slot:
        """The factors that inputs are multiplied by."""
        return Slot(f"{self.layer}.smoothing", tuple(self.given.factors.shape), self.dtype)

    @property
    def scale(self) -> Slot:
        """The scale of their integers."""
        return Slot(f"{self.layer}.input_scale", (), self.dtype)

    @property
    def slots(self) -> Sequence[Slot]:
        """See Stored."""
        return self.smoothing, self.scale

    def pieces(self, tensors: Tensors, integers: GivenIntegers) -> Iterator[Pieces]:
        """See Stored."""
        for slot, values in ((self.smoothing, 1 / self.given.factors), (self.scale, torch.tensor(self.given.scale))):
            yield float_pieces(slot.name, values, TORCH_DTYPES[self.dtype])


def _with_scales(
    name: str, rounded: Callable[[Tensor], tuple[Tensor, Tensor]], weight: Tensor, dtype: torch.dtype
) -> Iterator[Pieces]:
    """The integers of a matrix some rows at a time, and then their scales, which are kept in between."""
    kept: list[Tensor] = []

    def integers() -> Pieces:
        for packed, scales in in_order(rounded, row_pieces(weight)):
            kept.append(scales)
            yield tensor_bytes(packed)

    yield integers()
    yield (piece for scales in kept for piece in float_pieces(name, scales, dtype))


def _as_stored(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales as they can be stored, so that the integers fit them."""
    return scales.clamp_(min=torch.finfo(dtype).tiny).to(dtype).to(torch.float32)
