"""External weights: a plan of which tensor lies where in a .data file, and the file's streamed writing.

Graphs only need the plan, so they are built before a single value is read; the values are then read, converted to
float32 and written a piece at a time, so that memory does not follow the model's size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from qwenvl_edge.bundle import FileInfo
from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint import Checkpoint

ALIGNMENT_BYTES = 4096
_PIECE_ELEMENTS = 4 << 20


@dataclass(frozen=True)
class Weight:
    """One tensor of the file: where it starts, and how to get its values when they are needed."""

    name: str
    shape: tuple[int, ...]
    offset: int
    read: Callable[[], torch.Tensor]

    @property
    def size_bytes(self) -> int:
        """Bytes as float32."""
        return 4 * math.prod(self.shape)


class WeightFile:
    """The float32 tensors of one external data file, shared by every graph that names it."""

    def __init__(self, location: str, checkpoint: Checkpoint):
        self.location = location
        self.checkpoint = checkpoint
        self._weights: dict[str, Weight] = {}

    @property
    def size_bytes(self) -> int:
        """Size of the file when written."""
        return max((weight.offset + weight.size_bytes for weight in self._weights.values()), default=0)

    def stored(self, name: str) -> ir.ExternalTensor:
        """The checkpoint's tensor `name`, as it is."""
        return self.computed(name, self.checkpoint.shape(name), lambda: self.checkpoint.tensor(name))

    def computed(self, name: str, shape: tuple[int, ...], read: Callable[[], torch.Tensor]) -> ir.ExternalTensor:
        """A tensor derived from the checkpoint; `read` is called once, when the file is written."""
        if name not in self._weights:
            offset = -(-self.size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            self._weights[name] = Weight(name, shape, offset, read)
        weight = self._weights[name]
        return ir.ExternalTensor(
            self.location, weight.offset, weight.size_bytes, ir.DataType.FLOAT, shape=ir.Shape(weight.shape), name=name
        )

    def write(self, folder: Path, on_bytes: Callable[[int], None]) -> FileInfo:
        """Write the file into `folder`, a piece at a time; `on_bytes` is told of every piece.

        Raises:
            CheckpointError: a tensor holds NaN or infinity.
            OSError: the disk is full, or the like.
        """
        with HashingWriter(folder / self.location, on_bytes) as out:
            for weight in self._weights.values():
                out.write(bytes(weight.offset - out.size))
                for piece in float_pieces(weight.name, weight.read()):
                    out.write(piece)
        return out.info()


class HashingWriter:
    """Writes a new file and its SHA-256 in one pass."""

    def __init__(self, path: Path, on_bytes: Callable[[int], None]):
        self._file = path.open("xb")
        self._digest = hashlib.sha256()
        self._on_bytes = on_bytes
        self.size = 0

    def __enter__(self) -> HashingWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)
        self._on_bytes(len(data))

    def info(self) -> FileInfo:
        """Size and SHA-256 of what was written."""
        return FileInfo(self.size, self._digest.hexdigest())


def float_pieces(name: str, tensor: torch.Tensor) -> Iterator[memoryview]:
    """The values of `tensor` as little-endian float32 pieces of at most 16 MiB.

    Raises:
        CheckpointError: a value is NaN or infinite.
    """
    flat = tensor.detach().reshape(-1)
    for start in range(0, len(flat), _PIECE_ELEMENTS):
        values = flat[start : start + _PIECE_ELEMENTS].to(torch.float32).numpy().astype("<f4", copy=False)
        if not np.isfinite(values).all():
            raise CheckpointError(f"the tensor {name} holds NaN or infinity; the checkpoint is broken.")
        yield values.data.cast("B")
