"""A picture tower's layers: linear layers with what stands around them, in standard operators or the native core's."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from qwenvl_edge.bundle.contract import NATIVE_PATCH_ATTENTION
from qwenvl_edge_export.graphs.builder import OWN, GraphBuilder
from qwenvl_edge_export.graphs.roles import LinearRole, NormRole
from qwenvl_edge_export.graphs.stored_integers import StoredRows

GELU, GELU_TANH, QUICK_GELU = "gelu", "gelu_tanh", "quick_gelu"
_NUMBERS = {None: 0, GELU: 1, GELU_TANH: 2, QUICK_GELU: 3}  # as the native core's operator takes them
_QUICK = 1.702


class TowerLayer:
    """residual + activation(role(norm(x))) * silu(gate(norm(x))) of rows [M, in] -> [M, out].

    Each part but `role` is there where it is given. native: one operator of the native core for all of it, where the
    layer is stored as rows of integers; it rounds each row of x to 8 bits with a scale of its own.
    """

    def __init__(
        self, g: GraphBuilder, linear: Callable[[ir.Value, LinearRole], ir.Value], epsilon: float, *, native: bool
    ):
        self.g = g
        self._linear = linear
        self._epsilon = epsilon
        self._native = native

    def __call__(
        self,
        x: ir.Value,
        role: LinearRole,
        *,
        norm: NormRole | None = None,
        activation: str | None = None,
        gate: LinearRole | None = None,
        residual: ir.Value | None = None,
    ) -> ir.Value:
        """Apply one layer to rows [M, in]."""
        if self._native and all(self._has_rows(each) for each in (role, gate) if each is not None):
            return self._fused(x, role, norm, activation, gate, residual)
        g = self.g
        x = x if norm is None else self.norm(x, norm)
        y = self._linear(x, role)
        if gate is not None:
            opened = self._linear(x, gate)
            y = g.op("Mul", g.op("Mul", opened, g.op("Sigmoid", opened)), y)
        y = self._activated(y, activation)
        return y if residual is None else g.op("Add", residual, y)

    def norm(self, x: ir.Value, role: NormRole) -> ir.Value:
        """The norm of rows [M, width]."""
        g, weight = self.g, self.g.weight(role.weight)
        if role.bias is None:
            return g.op("RMSNormalization", x, weight, axis=-1, epsilon=self._epsilon)
        return g.op("LayerNormalization", x, weight, g.weight(role.bias), axis=-1, epsilon=self._epsilon)

    def attention(self, qkv: ir.Value, *tables: ir.Value | None, heads: int) -> ir.Value:
        """The native core's attention: qkv [N, P, 3 W] -> [N, P, W].

        tables: cosines and sines [P, D / 2], then places [W * G] in windows and which of them are filled; None where
        there are none.
        """
        return self.g.op(NATIVE_PATCH_ATTENTION, qkv, *tables, domain=OWN, num_heads=heads)

    def _activated(self, y: ir.Value, activation: str | None) -> ir.Value:
        g = self.g
        if activation is None:
            return y
        if activation == QUICK_GELU:
            return g.op("Mul", y, g.op("Sigmoid", g.op("Mul", y, g.const(_QUICK))))
        return g.op("Gelu", y, approximate="tanh") if activation == GELU_TANH else g.op("Gelu", y)

    def _has_rows(self, role: LinearRole) -> bool:
        return isinstance(self.g.layout.stored(role.weight.name), StoredRows)

    def _fused(
        self,
        x: ir.Value,
        role: LinearRole,
        norm: NormRole | None,
        activation: str | None,
        gate: LinearRole | None,
        residual: ir.Value | None,
    ) -> ir.Value:
        g = self.g
        norms = (None, None) if norm is None else (norm.weight, norm.bias)
        inputs = (
            x,
            *self._weights(role),
            *(None if weight is None else g.weight(weight) for weight in norms),
            *((None, None, None) if gate is None else self._weights(gate)),
            residual,
        )
        number = _NUMBERS[activation]
        return g.op("RowsLinear", *inputs, domain=OWN, epsilon=float(self._epsilon), activation=number)

    def _weights(self, role: LinearRole) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """Integers, scales and bias of a layer."""
        g = self.g
        integers, scales = g.layout.stored(role.weight.name).slots[:2]
        return g.slot(integers), g.slot(scales), None if role.bias is None else g.weight(role.bias)
