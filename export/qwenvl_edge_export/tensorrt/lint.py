"""Forms of stored weights that TensorRT does not multiply, found in a bundle's graphs before a build starts.

The ONNX parser accepts more than the builder does, which would fail after minutes. NvInfer.h, IDequantizeLayer: from
TensorRT 10.3 to 11.1 block scales go with 4-bit integers (and small floats), never with 8-bit ones. NVIDIA's page on
quantized types: blocks of 64 or 128. TensorRT-RTX 1.7 takes 8-bit blocks and widens each weight in memory per token.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge.errors import BackendError

BLOCKS = (64, 128)
_FOUR_BITS = (ir.DataType.UINT4, ir.DataType.INT4)


def check_weights(bundle: Bundle) -> None:
    """Check both graphs of a bundle.

    Raises:
        BackendError: a weight is stored in a form that TensorRT does not multiply; says what to export instead.
    """
    for name in (bundle.manifest.graphs.vision, bundle.manifest.graphs.decoder[STANDARD]):
        _check_graph(bundle.file(name))


def _check_graph(path: Path) -> None:
    for node in ir.load(path).graph:
        if node.op_type != "DequantizeLinear" or "block_size" not in node.attributes:
            continue
        weight, block = node.inputs[0], node.attributes["block_size"].as_int()
        dtype = None if weight is None or weight.const_value is None else weight.const_value.dtype
        if dtype not in _FOUR_BITS:
            named = node.name if weight is None else weight.name
            raise BackendError(
                f'"{path.name}" stores the weight "{named}" in blocks of 8-bit integers, which TensorRT does not '
                "multiply; export with --target gpu and --precision fp16, w8a8 or int4."
            )
        if block not in BLOCKS:
            raise BackendError(
                f'"{path.name}" stores 4-bit weights in blocks of {block}; TensorRT takes '
                f"{' and '.join(map(str, BLOCKS))}: export with --block-size {BLOCKS[-1]} --head-precision fp16."
            )
