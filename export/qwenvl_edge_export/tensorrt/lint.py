"""Forms of stored weights that TensorRT does not multiply, found in a bundle's graphs before a build starts.

The ONNX parser accepts more than the builder does, which would fail after minutes. NvInfer.h, IDequantizeLayer: from
TensorRT 10.3 to 11.1 block scales go with 4-bit integers (and small floats) in two dimensions, never with 8-bit ones.
NVIDIA's page on quantized types: blocks of 64 or 128, scales above zero, zero points of zero. TensorRT-RTX 1.7 takes
8-bit blocks and widens each weight in memory per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge.errors import BackendError

BLOCKS = (64, 128)
_FOUR_BITS = (ir.DataType.UINT4, ir.DataType.INT4)
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_AGAIN = "export the bundle again with this version"


def check_weights(bundle: Bundle) -> None:
    """Check both graphs of a bundle.

    Raises:
        BackendError: a weight is stored in a form that TensorRT does not multiply; says what to export instead.
    """
    for name in (bundle.manifest.graphs.vision, bundle.manifest.graphs.decoder[STANDARD]):
        check_graph(bundle.file(name))


def check_graph(path: Path) -> None:
    """Check one graph's file.

    Raises:
        BackendError: see check_weights; the first form that is refused.
    """
    for node in ir.load(path).graph:
        for why in _objections(node):
            raise BackendError(f'"{path.name}" {why}.')


def _objections(node: ir.Node) -> Iterator[str]:
    if node.op_type == "DequantizeLinear" and "block_size" in node.attributes:
        yield from _of_blocks(node, node.attributes["block_size"].as_int())
    elif node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        yield from _of_scales(node)


def _of_blocks(node: ir.Node, block: int) -> Iterator[str]:
    weight, scale = _constant(node, 0), _constant(node, 1)
    if weight is None or weight.dtype not in _FOUR_BITS:
        yield (
            f'stores the weight "{_name(node)}" in blocks of 8-bit integers, which TensorRT does not multiply; export '
            "with --target gpu and --precision fp16, w8a8 or int4"
        )
        return
    if block not in BLOCKS:
        yield (
            f"stores 4-bit weights in blocks of {block}; TensorRT takes {' and '.join(map(str, BLOCKS))}: export with "
            f"--block-size {BLOCKS[-1]} --head-precision fp16"
        )
    if len(weight.shape) != 2:
        yield f'stores "{_name(node)}" by blocks in {len(weight.shape)} dimensions; TensorRT takes two: {_AGAIN}'
    if scale is None or scale.dtype not in _FLOATS:
        yield f'has no constant float scales for the blocks of "{_name(node)}": {_AGAIN}'


def _of_scales(node: ir.Node) -> Iterator[str]:
    scale, zero = _constant(node, 1), _constant(node, 2)
    if scale is None:
        yield f'computes the scale of "{_name(node)}", which TensorRT wants constant: {_AGAIN}'
        return
    values = scale.numpy().astype(np.float32)
    if not ((values > 0) & np.isfinite(values)).all():
        yield f'has a scale that is not above zero and finite at "{_name(node)}": {_AGAIN}'
    if zero is not None and zero.dtype == ir.DataType.INT8 and zero.numpy().any():
        yield f'has zero points other than zero at "{_name(node)}": {_AGAIN}'


def _constant(node: ir.Node, index: int) -> ir.TensorProtocol | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None else value.const_value


def _name(node: ir.Node) -> str:
    weight = node.inputs[0]
    return (node.name or "a layer") if weight is None else (weight.name or node.name or "a layer")
