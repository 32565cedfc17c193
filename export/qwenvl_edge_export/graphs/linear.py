"""The linear layer, the one place that knows how weights are stored."""

from __future__ import annotations

import onnx_ir as ir

from qwenvl_edge_export.graphs.builder import GraphBuilder


class Linear:
    """y = x W^T + b on rows [M, in] -> [M, out], W [out, in] as PyTorch stores it.

    float32: Gemm with a transposed B, so that the weight is used where it lies, without a transposed copy.
    """

    def __init__(self, g: GraphBuilder):
        self.g = g

    def __call__(self, x: ir.Value, weight: ir.Value, bias: ir.Value | None = None) -> ir.Value:
        """Apply one layer to rows [M, in]."""
        return self.g.op("Gemm", x, weight, bias, transB=1)
