"""The linear layer, the one place that knows which operators multiply by stored weights."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qwenvl_edge.bundle.contract import NATIVE, STANDARD
from qwenvl_edge_export.graphs.builder import FLOAT, MICROSOFT, OWN, GraphBuilder
from qwenvl_edge_export.graphs.roles import LinearRole, Weight
from qwenvl_edge_export.graphs.stored import ZERO_POINT
from qwenvl_edge_export.graphs.stored_integers import StoredBlocks, StoredInputs, StoredRows, StoredStaticRows

HEADROOM = 64.0  # inputs of order one keep float16's precision when they are divided by it
_INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level: without it decoding is 4 (int4) to 90 times (int8) slower


@dataclass(frozen=True)
class Norm:
    """An RMS norm in front of a linear layer."""

    weight: Weight
    epsilon: float


class Linear:
    """y = x W^T + b on rows [M, in] -> [M, out], W [out, in] as PyTorch stores it, and what stands around it.

    floats: Gemm with a transposed B, so that the weight is used where it lies, without a transposed copy.
    Blocks: com.microsoft.MatMulNBits or, where asked for, the native core's operator of that name; where only standard
        operators are allowed, DequantizeLinear by blocks in front of that Gemm. All over the same bytes.
        The native core's operator Linear also computes what stands around the product.
    Rows: the activations are quantized at run time, one scale per call: DynamicQuantizeLinear, MatMulInteger and the
        two scales, which ONNX Runtime fuses. Weights are signed, as VNNI and AMX take them. On x86 without
        these, sums of signed weights saturate, so there the runtime lets ONNX Runtime make them unsigned at load.
    StaticRows: QuantizeLinear and DequantizeLinear around that Gemm, signed and symmetric, the form that TensorRT makes
        INT8 kernels of: one scale for the activations, one per output row for the weights. The activations are divided
        by their smoothing factors first, an operator that TensorRT fuses. Activations without given scales stay floats.
    """

    def __init__(self, g: GraphBuilder, dialect: str):
        self.g = g
        self._dialect = dialect
        self._quantized: dict[str, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._rounded: dict[str, ir.Value] = {}
        self._wide: dict[str, ir.Value] = {}

    def __call__(
        self,
        x: ir.Value,
        role: LinearRole,
        *,
        norm: Norm | None = None,
        gate: LinearRole | None = None,
        residual: ir.Value | None = None,
    ) -> ir.Value:
        """residual + role(norm(x)) * silu(gate(norm(x))) of rows [M, in]; each part but `role` where it is given."""
        g = self.g
        if self._is_fused(role, gate):
            return self._fused(x, role, norm, gate, residual)
        if norm is not None:
            x = g.op("RMSNormalization", x, g.weight(norm.weight), axis=-1, epsilon=norm.epsilon)
        y = self._product(x, role)
        if gate is not None:
            opened = self._product(x, gate)
            y = g.op("Mul", y, g.op("Mul", opened, g.op("Sigmoid", opened)))
        return y if residual is None else g.op("Add", residual, y)

    def _is_fused(self, role: LinearRole, gate: LinearRole | None) -> bool:
        """True if the native core's Linear takes a layer and its gate, which must be stored alike."""
        stored = self.g.layout.stored(role.weight.name)
        if self._dialect != NATIVE or not isinstance(stored, StoredBlocks):
            return False
        if gate is None:
            return True
        other = self.g.layout.stored(gate.weight.name)
        alike = isinstance(other, StoredBlocks) and other.blocks == stored.blocks
        return alike and gate.bias is None and gate.weight.shape == role.weight.shape

    def _fused(
        self,
        x: ir.Value,
        role: LinearRole,
        norm: Norm | None,
        gate: LinearRole | None,
        residual: ir.Value | None,
    ) -> ir.Value:
        g = self.g
        bias = None if role.bias is None else g.weight(role.bias)
        weight = None if norm is None else g.weight(norm.weight)
        packed, scales, shape = self._block_inputs(role)
        gate_inputs = (None, None) if gate is None else self._block_inputs(gate)[:2]
        epsilon = 0.0 if norm is None else norm.epsilon
        inputs = (x, packed, scales, bias, weight, *gate_inputs, residual)
        return g.op("Linear", *inputs, domain=OWN, epsilon=epsilon, **shape)

    def _product(self, x: ir.Value, role: LinearRole) -> ir.Value:
        """Apply one layer to rows [M, in]."""
        g = self.g
        bias = None if role.bias is None else g.weight(role.bias)
        stored = g.layout.stored(role.weight.name)
        if isinstance(stored, StoredBlocks):
            return self._blocks(x, role, stored, bias)
        if isinstance(stored, StoredRows):
            return self._rows(x, stored, bias)
        if isinstance(stored, StoredStaticRows):
            return self._static_rows(x, stored, bias)
        return g.op("Gemm", x, g.weight(role.weight), bias, transB=1)

    def _blocks(self, x: ir.Value, role: LinearRole, stored: StoredBlocks, bias: ir.Value | None) -> ir.Value:
        g = self.g
        if self._dialect == STANDARD:
            packed, scales, zeros = (g.slot(slot) for slot in (*stored.slots[:2], stored.zeros.slot))
            weight = g.op("DequantizeLinear", packed, scales, zeros, axis=1, block_size=stored.blocks.size)
            return g.op("Gemm", x, weight, bias, transB=1)
        packed, scales, shape = self._block_inputs(role)
        if self._dialect == NATIVE:
            return g.op("MatMulNBits", x, packed, scales, bias, domain=OWN, **shape)
        shape["accuracy_level"] = _INT8_ACTIVATIONS
        return g.op("MatMulNBits", x, packed, scales, None, None, bias, domain=MICROSOFT, **shape)

    def _block_inputs(self, role: LinearRole) -> tuple[ir.Value, ir.Value, dict[str, int]]:
        """Packed bytes and scales of a layer in blocks, and the attributes that describe them."""
        g, stored = self.g, self.g.layout.stored(role.weight.name)
        assert isinstance(stored, StoredBlocks)
        blocks, (outputs, inputs) = stored.blocks, stored.weight.shape
        integers, scales = stored.slots[0], g.slot(stored.slots[1])
        as_bytes = (outputs, inputs // blocks.size, blocks.size * blocks.bits // 8)
        packed = g.initializer(_as_bytes(g.layout.tensor(integers.name), as_bytes))
        return packed, scales, {"K": inputs, "N": outputs, "bits": blocks.bits, "block_size": blocks.size}

    def _rows(self, x: ir.Value, stored: StoredRows, bias: ir.Value | None) -> ir.Value:
        g = self.g
        y = g.cast(self.wide_rows(self._widened(x), stored), FLOAT, g.dtype)
        return y if bias is None else g.op("Add", y, bias)

    def wide_rows(self, x: ir.Value, stored: StoredRows) -> ir.Value:
        """float32 rows [M, in] -> float32 [M, out], without a bias."""
        g = self.g
        weight, scale, zero = (g.slot(slot) for slot in stored.slots)
        quantized, x_scale, x_zero = self._quantize(x)
        sums = g.op("Cast", g.op("MatMulInteger", quantized, weight, x_zero, zero), to=FLOAT)
        return g.op("Mul", sums, g.op("Mul", x_scale, scale))

    def _widened(self, x: ir.Value) -> ir.Value:
        """x in float32; layers that read the same rows share it."""
        assert x.name is not None  # the builder names every value
        if x.name not in self._wide:
            self._wide[x.name] = self.g.cast(x, self.g.dtype, FLOAT)
        return self._wide[x.name]

    def _quantize(self, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """float32 x as uint8, its scale and its zero; layers that read the same rows share them."""
        assert x.name is not None  # the builder names every value
        if x.name not in self._quantized:
            quantized, scale, zero = self.g.ops("DynamicQuantizeLinear", 3, x)
            self._quantized[x.name] = (quantized, scale, zero)
        return self._quantized[x.name]

    def _static_rows(self, x: ir.Value, stored: StoredStaticRows, bias: ir.Value | None) -> ir.Value:
        g = self.g
        weight = g.op("DequantizeLinear", *(g.slot(slot) for slot in stored.slots), axis=0)
        if stored.inputs is not None:
            x = self._round(x, stored.inputs)
        return g.op("Gemm", x, weight, bias, transB=1)

    def _round(self, x: ir.Value, inputs: StoredInputs) -> ir.Value:
        """x [M, in] as its integers stand for it, divided by the factors; layers that share `inputs` share it."""
        g = self.g
        if inputs.name not in self._rounded:
            scale, zero = g.slot(inputs.scale), g.slot(ZERO_POINT.slot)
            integers = g.op("QuantizeLinear", g.op("Mul", x, g.slot(inputs.smoothing)), scale, zero)
            self._rounded[inputs.name] = g.op("DequantizeLinear", integers, scale, zero)
        return self._rounded[inputs.name]


class WideLinear:
    """A linear layer on float32 rows [M, in] -> float32 rows [M, out], in graphs whose own type may be narrower.

    In float16 the inputs are divided by a power of two and the outputs multiplied by it, in float32: towers that were
    trained in bfloat16 reach values beyond float16's range. The bias is added in float32. Integers multiply and add up
    as they do in `Linear`; scales found at run time give float32 results.
    """

    def __init__(self, g: GraphBuilder):
        self.g = g
        self._linear = Linear(g, STANDARD)

    def __call__(self, x: ir.Value, role: LinearRole) -> ir.Value:
        """Apply one layer to rows [M, in]."""
        g = self.g
        stored = g.layout.stored(role.weight.name)
        if g.dtype == FLOAT:
            return self._linear(x, role)
        if isinstance(stored, StoredRows):
            y = self._linear.wide_rows(x, stored)
        else:
            spared = g.dtype == ir.DataType.FLOAT16 and not isinstance(stored, StoredStaticRows)
            x = g.op("Mul", x, g.const(1 / HEADROOM)) if spared else x
            y = self._linear(g.cast(x, FLOAT, g.dtype), LinearRole(role.weight))
            y = g.cast(y, g.dtype, FLOAT)
            y = g.op("Mul", y, g.const(HEADROOM)) if spared else y
        return y if role.bias is None else g.op("Add", y, g.weight(role.bias))


def _as_bytes(tensor: ir.ExternalTensor, shape: tuple[int, ...]) -> ir.ExternalTensor:
    """The same place in the file, seen as uint8."""
    return ir.ExternalTensor(
        tensor.location, tensor.offset, tensor.length, ir.DataType.UINT8, shape=ir.Shape(shape), name=tensor.name
    )
