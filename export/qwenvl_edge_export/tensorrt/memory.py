"""What a build takes of memory and disk, estimated before it starts."""

from __future__ import annotations

import shutil
from pathlib import Path

from qwenvl_edge.backends.plans import TENSORRT_RTX
from qwenvl_edge.bundle import Bundle
from qwenvl_edge.errors import BackendError
from qwenvl_edge.memory import available_bytes
from qwenvl_edge_export.tensorrt.targets import Target

_PROCESS_BYTES = 300 << 20  # Python, onnx and TensorRT's own libraries and kernels
# Anonymous memory of a build in copies of the weights; those themselves are mapped and not counted. 1.9 was measured
# with TensorRT-RTX 1.7. TensorRT times kernels on the device besides, and keeps the plan in memory before 10.13.
_COPIES = {TENSORRT_RTX: 2.0}
_OTHER_COPIES = 3.0


def build_bytes(bundle: Bundle, target: Target) -> int:
    """Peak of a build's anonymous memory: one engine is built after the other, so the larger one's."""
    copies = _COPIES.get(target.library.api, _OTHER_COPIES)
    return _PROCESS_BYTES + round(copies * max(_weights(bundle).values()))


def check_resources(bundle: Bundle, target: Target, folder: Path) -> None:
    """Compare the estimate with the memory and the disk that are free now.

    Raises:
        BackendError: one of them does not suffice; gives the figures.
    """
    weights = _weights(bundle)
    needed, free = build_bytes(bundle, target), available_bytes()
    if free is not None and needed > free:
        raise BackendError(
            f"building takes about {needed / 1e9:.2f} GB of memory (weights of the larger graph: "
            f"{max(weights.values()) / 1e9:.2f} GB), but {free / 1e9:.2f} GB are free; end other programs, "
            "add swap, or export the bundle in a smaller precision."
        )
    # Both plans, and for a time the signed copy of one graph's integers.
    needed, free = sum(weights.values()) + max(weights.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise BackendError(
            f'building takes about {needed / 1e9:.2f} GB of disk, but "{folder}" has {free / 1e9:.2f} GB free; '
            "make room there."
        )


def _weights(bundle: Bundle) -> dict[str, int]:
    files = bundle.manifest.files
    return {name: files[name].size for name in ("vision.data", "decoder.data") if name in files}
