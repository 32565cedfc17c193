"""A graph of one matrix product, y = x W^T, for measuring: written as ONNX's protocol buffers, field by field.

The runtime does not depend on the onnx package. The numbers are those of onnx.proto, which never change.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MICROSOFT, OWN = "com.microsoft", "qwenvl_edge"
_FLOAT, _UINT8 = 1, 2
_INT_ATTRIBUTE = 2
_IR_VERSION, _OPSET = 10, 21
_ACCURACY_LEVEL = 4  # activations are rounded to 8 bits, as the native core does


def product_graph(domain: str, inputs: int, outputs: int, bits: int, block: int) -> bytes:
    """MatMulNBits of a domain over arbitrary weights: x [M, inputs] -> y [M, outputs], float32."""
    blocks = inputs // block
    packed = np.full((outputs, blocks, block * bits // 8), 0x37, np.uint8)
    scales = np.full((outputs, blocks), 0.01, np.float32)
    attributes = {"K": inputs, "N": outputs, "bits": bits, "block_size": block}
    if domain == MICROSOFT:
        attributes["accuracy_level"] = _ACCURACY_LEVEL
    node = b"".join(_text(1, name) for name in ("x", "packed", "scales")) + _text(2, "y") + _text(4, "MatMulNBits")
    for name, value in attributes.items():
        node += _bytes(5, _text(1, name) + _number(3, value) + _number(20, _INT_ATTRIBUTE))
    graph = _bytes(1, node + _text(7, domain)) + _text(2, "product")
    graph += _bytes(5, _tensor("packed", packed, _UINT8)) + _bytes(5, _tensor("scales", scales, _FLOAT))
    graph += _bytes(11, _rows("x", inputs)) + _bytes(12, _rows("y", outputs))
    opsets = _bytes(8, _text(1, "") + _number(2, _OPSET)) + _bytes(8, _text(1, domain) + _number(2, 1))
    return _number(1, _IR_VERSION) + _bytes(7, graph) + opsets


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())


def _tensor(name: str, array: npt.NDArray[np.generic], kind: int) -> bytes:
    shape = b"".join(_number(1, size) for size in array.shape)
    return shape + _number(2, kind) + _text(8, name) + _bytes(9, array.tobytes())


def _rows(name: str, width: int) -> bytes:
    """A float32 value [M, width]."""
    shape = _bytes(1, _text(2, "M")) + _bytes(1, _number(1, width))
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, _FLOAT) + _bytes(2, shape)))
