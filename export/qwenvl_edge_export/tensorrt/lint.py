"""Forms in graphs that a release of TensorRT refuses, found before its builder starts.

The ONNX parser accepts more than the builder does, which would fail after minutes. The rules and their bounds are those
of NvInfer.h (IDequantizeLayer, IQuantizeLayer) of each release from 10.3 to 11.1, of the parser's list of changes and,
for sizes of blocks, of NVIDIA's page on quantized types. TensorRT-RTX 1.7 was tried: it takes 8-bit blocks, but widens
each weight in memory per token, and names 64 and 128 as its only blocks of 4 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qwenvl_edge.backends.tensorrt.library import Library
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge.bundle.engines import TENSORRT
from qwenvl_edge.errors import BackendError
from qwenvl_edge_export.tensorrt.targets import Release, release

BLOCKS = (64, 128)
_FOUR_BITS = (ir.DataType.UINT4, ir.DataType.INT4)
_SIGNED = (ir.DataType.INT4, ir.DataType.INT8)
_UNSIGNED = (ir.DataType.UINT4, ir.DataType.UINT8)
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_AGAIN = "export the bundle again with this version"
# Operators of recent opsets, by the release whose parser has them, and those that none has.
_SINCE = {"Attention": (10, 14), "RMSNormalization": (10, 15), "RotaryEmbedding": (10, 15), "TensorScatter": (10, 15)}
_NEVER = ("DynamicQuantizeLinear", "MatMulInteger")
_TURING = 75
# The last opset that a parser reads, from a release on. Blocks of DequantizeLinear are opset 21 and read by all.
_OPSETS = (((10, 3), 21), ((10, 15), 24), ((11, 0), 25))


@dataclass(frozen=True)
class Rule:
    """Objections to a node, and the releases of TensorRT that have them: before `until`, if that is not None.

    rtx: TensorRT-RTX has them too. stored: they can be seen in a bundle's own graph, before it is lowered.
    """

    objections: Callable[[ir.Node], Iterator[str]]
    until: Release | None = None
    rtx: bool = True
    stored: bool = True

    def holds_for(self, library: Library) -> bool:
        """Tell if a library has these objections."""
        if library.api != TENSORRT:
            return self.rtx
        return self.until is None or release(library) < self.until


def check_weights(bundle: Bundle, library: Library) -> None:
    """Check how both graphs of a bundle store weights.

    Raises:
        BackendError: a weight is stored in a form that this TensorRT does not multiply; says what to export instead.
    """
    rules = [rule for rule in RULES if rule.stored and rule.holds_for(library)]
    for name in (bundle.manifest.graphs.vision, bundle.manifest.graphs.decoder[STANDARD]):
        _check(ir.load(bundle.file(name)), name, rules)


def check_graph(model: ir.Model, name: str, library: Library, capability: int | None = None) -> None:
    """Check a lowered graph as `library` would get it to build for a GPU.

    Args:
        model: with its weights, which stay where they lie.
        name: the file's, for messages.
        library: what builds.
        capability: the GPU's, 10 * major + minor.

    Raises:
        BackendError: the first form that this TensorRT refuses.
    """
    _check_operators(model, name, library)
    if library.api != TENSORRT and capability == _TURING:
        _check(model, name, [Rule(_float32_products)])
    _check(model, name, [rule for rule in RULES if rule.holds_for(library)])


def _check(model: ir.Model, name: str, rules: list[Rule]) -> None:
    for node in model.graph:
        for rule in rules:
            for why in rule.objections(node):
                raise BackendError(f'"{Path(name).name}" {why}.')


def _check_operators(model: ir.Model, name: str, library: Library) -> None:
    if library.api == TENSORRT:
        known = max(opset for since, opset in _OPSETS if release(library) >= since)
        if (opset := model.opset_imports.get("", 0)) > known:
            raise BackendError(f'"{name}" is of opset {opset}, but {library.name} reads opset {known} at most.')
    for node in model.graph:
        since = _SINCE.get(node.op_type) if library.api == TENSORRT and not node.domain else None
        if since is not None and release(library) < since:
            raise BackendError(
                f'"{name}" has the operator {node.op_type}, which TensorRT knows from {since[0]}.{since[1]} on, '
                f"but this is {library.name}."
            )
        if node.op_type in _NEVER:
            raise BackendError(f'"{name}" has the operator {node.op_type}, which no TensorRT knows.')


def _blocks_of_eight_bits(node: ir.Node) -> Iterator[str]:
    if _block(node) and ((weight := _constant(node, 0)) is None or weight.dtype not in _FOUR_BITS):
        yield (
            f'stores the weight "{_name(node)}" in blocks of 8-bit integers, which TensorRT does not multiply; export '
            "with --target gpu and --precision fp16, w8a8 or int4"
        )


def _size_of_blocks(node: ir.Node) -> Iterator[str]:
    if (block := _block(node)) and block not in BLOCKS:
        yield (
            f"stores 4-bit weights in blocks of {block}; TensorRT takes {' and '.join(map(str, BLOCKS))}: export with "
            f"--block-size {BLOCKS[-1]} --head-precision fp16"
        )


def _dimensions_of_blocks(node: ir.Node) -> Iterator[str]:
    weight = _constant(node, 0)
    if _block(node) and weight is not None and len(weight.shape) != 2:
        yield (
            f'stores "{_name(node)}" by blocks in {len(weight.shape)} dimensions; TensorRT before 10.7 takes two: '
            f"{_AGAIN}, or build with a later TensorRT"
        )


def _type_of_scales(node: ir.Node) -> Iterator[str]:
    scale = _constant(node, 1)
    if _block(node) and scale is not None and scale.dtype not in _FLOATS:
        kind = scale.dtype.name
        yield f'has scales of {kind} for the blocks of "{_name(node)}", which TensorRT wants as floats: {_AGAIN}'


def _computed_scales(node: ir.Node) -> Iterator[str]:
    if _is_scaled(node) and _constant(node, 1) is None:
        yield (
            f'computes the scale of "{_name(node)}", which TensorRT before 10.13 wants constant: {_AGAIN}, or build '
            "with a later TensorRT"
        )


def _values_of_scales(node: ir.Node) -> Iterator[str]:
    scale = _constant(node, 1) if _is_scaled(node) else None
    if scale is not None and scale.dtype in _FLOATS:
        values = scale.numpy().astype(np.float32)
        if not ((values > 0) & np.isfinite(values)).all():
            yield f'has a scale that is not above zero and finite at "{_name(node)}": {_AGAIN}'


def _zero_points(node: ir.Node) -> Iterator[str]:
    zero = _constant(node, 2) if _is_scaled(node) else None
    # Unsigned ones have their middle there; lowering makes signed ones of them, or refuses them.
    if zero is not None and zero.dtype in _SIGNED and zero.numpy().astype(np.int8).any():
        yield f'has zero points other than zero at "{_name(node)}": {_AGAIN}'


def _float32_products(node: ir.Node) -> Iterator[str]:
    weight = _constant(node, 1) if node.op_type in ("Gemm", "MatMul") else None
    if weight is not None and weight.dtype == ir.DataType.FLOAT:
        yield (
            f'multiplies "{weight.name}" in float32, which TensorRT-RTX does not build for sm_75; build for a GPU from '
            "sm_80 on"
        )


def _unsigned_integers(node: ir.Node) -> Iterator[str]:
    weight = _constant(node, 0) if node.op_type == "DequantizeLinear" else None
    if weight is not None and weight.dtype in _UNSIGNED:
        yield f'has unsigned integers in "{_name(node)}", and TensorRT takes signed ones only: {_AGAIN}'


RULES = (
    Rule(_blocks_of_eight_bits),
    Rule(_size_of_blocks),
    Rule(_dimensions_of_blocks, until=(10, 7), rtx=False),
    Rule(_type_of_scales),
    Rule(_computed_scales, until=(10, 13), rtx=False),
    Rule(_values_of_scales),
    Rule(_zero_points),
    Rule(_unsigned_integers, stored=False),
)


def _is_scaled(node: ir.Node) -> bool:
    return node.op_type in ("DequantizeLinear", "QuantizeLinear")


def _block(node: ir.Node) -> int:
    """Elements per scale; 0 where a scale is for a row or for all."""
    blocks = node.op_type == "DequantizeLinear" and "block_size" in node.attributes
    return node.attributes["block_size"].as_int() if blocks else 0


def _constant(node: ir.Node, index: int) -> ir.TensorProtocol | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None else value.const_value


def _name(node: ir.Node) -> str:
    weight = node.inputs[0]
    return (node.name or "a layer") if weight is None else (weight.name or node.name or "a layer")
