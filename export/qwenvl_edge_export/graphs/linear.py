"""The linear layer, the one place that knows how weights are stored."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir
import torch
from torch import Tensor

from qwenvl_edge_export.files.thread_map import in_order
from qwenvl_edge_export.graphs.builder import FLOAT, MICROSOFT, OWN, GraphBuilder
from qwenvl_edge_export.graphs.data_file import TORCH_DTYPES, Matrix, float_pieces, tensor_bytes
from qwenvl_edge_export.options import GraphPrecision
from qwenvl_edge_export.quantization.formats import (
    Blocks,
    Given,
    InputScales,
    Integers,
    Rows,
    StaticRows,
    check_finite,
    nothing_given,
    row_pieces,
)

_INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level: without it decoding is 4 (int4) to 90 times (int8) slower


class Linear:
    """y = x W^T + b on rows [M, in] -> [M, out], W [out, in] as PyTorch stores it.

    floats: Gemm with a transposed B, so that the weight is used where it lies, without a transposed copy.
    Blocks: com.microsoft.MatMulNBits or, where asked for, the native core's operator of that name; where only standard
        operators are allowed, DequantizeLinear by blocks in front of that Gemm. All over the same bytes.
    Rows: the activations are quantized at run time, one scale a call: DynamicQuantizeLinear, MatMulInteger and the two
        scales, which ONNX Runtime fuses. Weights are signed, which VNNI and AMX want; on x86 without them the sums
        saturate, so there the runtime lets ONNX Runtime make the weights unsigned when it loads them.
    StaticRows: QuantizeLinear and DequantizeLinear around that Gemm, signed and symmetric, the form that TensorRT makes
        INT8 kernels of: one scale for the activations, one an output row for the weights. The activations are divided
        by their smoothing factors first, an operator that TensorRT fuses. Activations without given scales stay floats.
    """

    def __init__(
        self,
        g: GraphBuilder,
        precision: GraphPrecision,
        *,
        standard: bool,
        own: bool = False,
        given: Given = nothing_given,
    ):
        self.g = g
        self._own = own
        self._given = given
        self.precision = precision
        self.standard = standard
        self._quantized: dict[str, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._rounded: dict[str, ir.Value] = {}

    def __call__(self, x: ir.Value, matrix: Matrix, bias: ir.Value | None = None) -> ir.Value:
        """Apply one layer to rows [M, in]."""
        weights = self.precision.format(matrix.name)
        if weights is None:
            tensor = self.g.weights.computed(matrix.name, matrix.shape, matrix.read, self.g.dtype)
            return self.g.op("Gemm", x, self.g.table(tensor), bias, transB=1)
        if isinstance(weights, Rows):
            return self._rows(x, matrix, weights, bias)
        if isinstance(weights, StaticRows):
            return self._static_rows(x, matrix, weights, bias)
        weights.check(matrix.name, matrix.shape)
        return self._blocks(x, matrix, weights, bias)

    def _blocks(self, x: ir.Value, matrix: Matrix, blocks: Blocks, bias: ir.Value | None) -> ir.Value:
        g, (outputs, inputs) = self.g, matrix.shape
        count = inputs // blocks.size
        source = _BlockSource(matrix, blocks, TORCH_DTYPES[self.g.dtype], self._given)
        four = blocks.bits == 4
        packed_dtype = ir.DataType.UINT4 if four else ir.DataType.UINT8
        names = blocks.names(matrix.name)
        packed = g.weights.planned(names[0], (outputs, inputs), packed_dtype, source.packed)
        scales = g.table(g.weights.planned(names[1], (outputs, count), g.dtype, source.scales))
        if not self.standard:
            size = (outputs, count, blocks.size * blocks.bits // 8)
            tables = (g.table(_as_bytes(packed, size)), scales)
            shape = {"K": inputs, "N": outputs, "bits": blocks.bits, "block_size": blocks.size}
            if self._own:
                return g.op("MatMulNBits", x, *tables, bias, domain=OWN, **shape)
            shape["accuracy_level"] = _INT8_ACTIVATIONS
            return g.op("MatMulNBits", x, *tables, None, None, bias, domain=MICROSOFT, **shape)
        byte = blocks.zero * 0x11 if four else blocks.zero
        zeros = _filled(g, f"zeros.{blocks.bits}.{outputs}.{count}", (outputs, count), packed_dtype, byte)
        weight = g.op("DequantizeLinear", g.table(packed), scales, zeros, axis=1, block_size=blocks.size)
        return g.op("Gemm", x, weight, bias, transB=1)

    def _rows(self, x: ir.Value, matrix: Matrix, rows: Rows, bias: ir.Value | None) -> ir.Value:
        g, (outputs, inputs) = self.g, matrix.shape
        source = _RowSource(matrix, rows)
        name = f"{matrix.name}.int8"
        weight = g.table(g.weights.planned(name, (inputs, outputs), ir.DataType.INT8, source.integers))
        scale = g.table(g.weights.planned(f"{name}.scales", (outputs,), FLOAT, source.scales))
        # A zero point of each layer's own: ONNX Runtime cannot make a shared one unsigned.
        zero = _filled(g, f"{name}.zero", (), ir.DataType.INT8, 0)
        quantized, x_scale, x_zero = self._quantize(x)
        sums = g.op("Cast", g.op("MatMulInteger", quantized, weight, x_zero, zero), to=FLOAT)
        y = g.op("Mul", sums, g.op("Mul", x_scale, scale))
        y = g.cast(y, FLOAT, g.dtype)
        return y if bias is None else g.op("Add", y, bias)

    def _quantize(self, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """x as uint8, its scale and its zero; layers that read the same rows share them."""
        assert x.name is not None  # the builder names every value
        if x.name not in self._quantized:
            wide = self.g.cast(x, self.g.dtype, FLOAT)
            quantized, scale, zero = self.g.ops("DynamicQuantizeLinear", 3, wide)
            self._quantized[x.name] = (quantized, scale, zero)
        return self._quantized[x.name]

    def _static_rows(self, x: ir.Value, matrix: Matrix, rows: StaticRows, bias: ir.Value | None) -> ir.Value:
        g, (outputs, _) = self.g, matrix.shape
        given = self._given(matrix.name)
        factors = given.factors if isinstance(given, InputScales) else None
        source = _StaticSource(matrix, rows, factors, TORCH_DTYPES[g.dtype])
        name = f"{matrix.name}.int8"
        packed = g.table(g.weights.planned(name, matrix.shape, ir.DataType.INT8, source.integers))
        scales = g.table(g.weights.planned(f"{name}.scales", (outputs,), g.dtype, source.scales))
        weight = g.op("DequantizeLinear", packed, scales, axis=0)
        if isinstance(given, InputScales):
            x = self._round(x, matrix.name, given)
        return g.op("Gemm", x, weight, bias, transB=1)

    def _round(self, x: ir.Value, name: str, given: InputScales) -> ir.Value:
        """x as its integers stand for it, divided by the factors; layers that read the same rows share it."""
        g = self.g
        assert x.name is not None  # the builder names every value
        if x.name not in self._rounded:
            inverse = g.weights.computed(f"{name}.smoothing", given.factors.shape, lambda: 1 / given.factors, g.dtype)
            scale = g.table(g.weights.computed(f"{name}.input_scale", (), lambda: torch.tensor(given.scale), g.dtype))
            zero = _filled(g, "zero.static", (), ir.DataType.INT8, 0)
            integers = g.op("QuantizeLinear", g.op("Mul", x, g.table(inverse)), scale, zero)
            self._rounded[x.name] = g.op("DequantizeLinear", integers, scale, zero)
        return self._rounded[x.name]


class _BlockSource:
    """One matrix in blocks, some rows at a time: first its integers, then its scales, which are kept in between.

    Where it is not given, it is rounded to nearest.
    """

    def __init__(self, matrix: Matrix, blocks: Blocks, dtype: torch.dtype, given: Given):
        self.matrix = matrix
        self.blocks = blocks
        self.dtype = dtype
        self.given = given
        self._kept: list[Tensor] = []

    def packed(self) -> Iterator[memoryview]:
        """Bytes of the integers [out, in]."""
        if isinstance(given := self.given(self.matrix.name), Integers):
            self._kept = [given.scales]
            yield tensor_bytes(given.packed)
            return
        for packed, scales in in_order(self._rounded, row_pieces(self.matrix.read())):
            self._kept.append(scales)
            yield tensor_bytes(packed)

    def _rounded(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.to(torch.float32)
        scales = self.blocks.scales(rows)
        check_finite(self.matrix.name, scales)
        scales = _as_stored(scales, self.dtype)
        return self.blocks.pack(self.blocks.integers(rows, scales)), scales

    def scales(self) -> Iterator[memoryview]:
        """Bytes of the scales [out, in / size]."""
        while self._kept:
            yield from float_pieces(self.matrix.name, self._kept.pop(0), self.dtype)


class _RowSource:
    """One matrix with a scale a row, laid out as [in, out]: MatMulInteger takes its second matrix no other way."""

    def __init__(self, matrix: Matrix, rows: Rows):
        self.matrix = matrix
        self.rows = rows
        self._kept: list[Tensor] = []

    def integers(self) -> Iterator[memoryview]:
        """Bytes of the integers [in, out]."""
        rounded = list(in_order(self._rounded, row_pieces(self.matrix.read())))
        self._kept = [scales for _, scales in rounded]
        yield tensor_bytes(torch.cat([integers for integers, _ in rounded]).T)

    def _rounded(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.to(torch.float32)
        scales = self.rows.scales(rows)
        check_finite(self.matrix.name, scales)
        return self.rows.integers(rows, scales), scales

    def scales(self) -> Iterator[memoryview]:
        """Bytes of the scales [out]."""
        while self._kept:
            yield tensor_bytes(self._kept.pop(0))


class _StaticSource:
    """One smoothed matrix with a scale a row, some rows at a time: its integers, then its scales, kept in between."""

    def __init__(self, matrix: Matrix, rows: StaticRows, factors: Tensor | None, dtype: torch.dtype):
        self.matrix = matrix
        self.rows = rows
        self.factors = factors
        self.dtype = dtype
        self._kept: list[Tensor] = []

    def integers(self) -> Iterator[memoryview]:
        """Bytes of the integers [out, in]."""
        for integers, scales in in_order(self._rounded, row_pieces(self.matrix.read())):
            self._kept.append(scales)
            yield tensor_bytes(integers)

    def _rounded(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.to(torch.float32)
        smoothed = rows if self.factors is None else rows * self.factors
        scales = self.rows.scales(smoothed)
        check_finite(self.matrix.name, scales)
        scales = _as_stored(scales, self.dtype)
        return self.rows.integers(smoothed, scales), scales

    def scales(self) -> Iterator[memoryview]:
        """Bytes of the scales [out]."""
        while self._kept:
            yield from float_pieces(self.matrix.name, self._kept.pop(0), self.dtype)


def _as_stored(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales as they can be stored, so that the integers fit them."""
    return scales.clamp_(min=torch.finfo(dtype).tiny).to(dtype).to(torch.float32)


def _as_bytes(tensor: ir.ExternalTensor, shape: tuple[int, ...]) -> ir.ExternalTensor:
    """The same place in the file, seen as uint8."""
    return ir.ExternalTensor(
        tensor.location, tensor.offset, tensor.length, ir.DataType.UINT8, shape=ir.Shape(shape), name=tensor.name
    )


def _filled(g: GraphBuilder, name: str, shape: tuple[int, ...], dtype: ir.DataType, byte: int) -> ir.Value:
    """A tensor whose bytes all have one value; layers of one shape share it."""

    def pieces() -> Iterator[memoryview]:
        yield memoryview(bytes([byte]) * math.ceil(math.prod(shape) * dtype.itemsize))

    return g.table(g.weights.planned(name, shape, dtype, pieces))
