"""Memory and disk that a build takes, estimated before it starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import DECODER_DATA, VISION_DATA
from qwenvl_edge.bundle.engines import TENSORRT_RTX
from qwenvl_edge.errors import BackendError
from qwenvl_edge.machine.memory import available_bytes, swap_bytes
from qwenvl_edge.machine.sizes import in_words
from qwenvl_edge_export.tensorrt.targets import Target, release

_PROCESS_BYTES = 300 << 20  # Python, onnx and TensorRT's own libraries and kernels
_FLOAT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
# Anonymous memory in copies of the weights as floats of the graph's type, in which integers are unpacked too; the
# bundle's own are mapped and not counted. 1.2 to 1.5 were measured with TensorRT-RTX 1.7. TensorRT's figures are
# assumptions: users of 10.3 saw 3 to 4 copies; from 10.13 on it takes external weights with less, and writes the plan
# in pieces.
_RTX_COPIES, _COPIES, _OLD_COPIES = 1.5, 3.0, 4.0
_LEAN_SINCE = (10, 13)
_SWAP_SHARE = 0.25  # what a builder pins for the GPU cannot be swapped out


def build_bytes(bundle: Bundle, target: Target) -> int:
    """Peak of a build's anonymous memory: one engine is built after the other, so the larger one's."""
    return peak_bytes(max(_float_bytes(bundle).values()), target.library.api, release(target.library))


def peak_bytes(floats: int, api: str, version: tuple[int, ...]) -> int:
    """The peak of a build by a release of TensorRT; floats: bytes of the larger graph's weights as floats."""
    copies = _COPIES if version >= _LEAN_SINCE else _OLD_COPIES
    return _PROCESS_BYTES + round((_RTX_COPIES if api == TENSORRT_RTX else copies) * floats)


def check_resources(bundle: Bundle, target: Target, folder: Path) -> None:
    """Compare the estimate with the memory and the disk that are free now.

    Raises:
        BackendError: one of them does not suffice; gives the figures.
    """
    needed, free = build_bytes(bundle, target), available_bytes()
    if free is not None and needed > (free := free + round(_SWAP_SHARE * swap_bytes())):
        raise BackendError(
            f"building takes about {needed / 1e9:.2f} GB of memory (the larger graph's weights as floats: "
            f"{max(_float_bytes(bundle).values()) / 1e9:.2f} GB), but {free / 1e9:.2f} GB are free, "
            "a quarter of the swap included; end other programs, add swap, or build on another machine where the "
            "target allows it."
        )
    # Both plans, and for a time the signed copy of one graph's integers.
    stored = [info.size for name, info in bundle.manifest.files.items() if name in (VISION_DATA, DECODER_DATA)]
    needed, free = sum(stored) + max(stored), shutil.disk_usage(folder).free
    if needed > free:
        raise BackendError(
            f'building takes about {in_words(needed)} of disk, but "{folder}" has {in_words(free)} free; '
            "make room there."
        )


def _float_bytes(bundle: Bundle) -> dict[str, int]:
    """Size of each graph's weights, if all were floats of the type that it computes in."""
    manifest = bundle.manifest
    names = {"vision": manifest.graphs.vision, "decoder": manifest.graphs.decoder["standard"]}
    return {
        graph: _FLOAT_BYTES[manifest.precision.compute[graph]] * _count(bundle.file(name))
        for graph, name in names.items()
    }


def _count(path: Path) -> int:
    tensors = (value.const_value for value in ir.load(path).graph.initializers.values())
    return sum(tensor.size for tensor in tensors if isinstance(tensor, ir.ExternalTensor))
