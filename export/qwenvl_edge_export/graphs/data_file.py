"""External weights: a plan of which tensor lies where in a .data file, and the file's streamed writing.

Graphs only need the plan, so they are built before a single value is read; the values are then read, converted and
written a piece at a time, so that memory does not follow the model's size.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import onnx_ir as ir
import torch

from qwenvl_edge.bundle.files import FileInfo
from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.files.thread_map import in_order
from qwenvl_edge_export.quantization.formats import check_finite

ALIGNMENT_BYTES = 4096
_PIECE_ELEMENTS = 1 << 20
_READ_BYTES = 4 << 20
TORCH_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}

Pieces: TypeAlias = Callable[[], Iterator[memoryview]]


@dataclass(frozen=True)
class Matrix:
    """A linear layer's weight [out, in] in the checkpoint's floats, read when it is written."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Weight:
    """One tensor of the file: where it starts, and how to get its bytes when they are needed."""

    name: str
    shape: tuple[int, ...]
    dtype: ir.DataType
    offset: int
    pieces: Pieces

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return math.ceil(math.prod(self.shape) * self.dtype.itemsize)


class WeightFile:
    """The tensors of one external data file, shared by every graph that names it."""

    def __init__(self, location: str, checkpoint: Checkpoint):
        self.location = location
        self.checkpoint = checkpoint
        self._weights: dict[str, Weight] = {}
        self._end = 0

    @property
    def size_bytes(self) -> int:
        """Size of the file when written."""
        return self._end

    def matrix(self, name: str) -> Matrix:
        """The checkpoint's linear weight `name`, as it is."""
        return Matrix(name, self.checkpoint.shape(name), lambda: self.checkpoint.tensor(name))

    def stored(self, name: str, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.ExternalTensor:
        """The checkpoint's tensor `name`, as floats of type `dtype`."""
        return self.computed(name, self.checkpoint.shape(name), lambda: self.checkpoint.tensor(name), dtype)

    def computed(
        self,
        name: str,
        shape: tuple[int, ...],
        read: Callable[[], torch.Tensor],
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.ExternalTensor:
        """A float tensor derived from the checkpoint; `read` is called once, when the file is written."""
        return self.planned(name, shape, dtype, lambda: float_pieces(name, read(), TORCH_DTYPES[dtype]))

    def planned(self, name: str, shape: tuple[int, ...], dtype: ir.DataType, pieces: Pieces) -> ir.ExternalTensor:
        """A tensor of any type whose bytes `pieces` yields when the file is written; a name is planned once."""
        if name not in self._weights:
            offset = -(-self._end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            self._weights[name] = Weight(name, shape, dtype, offset, pieces)
            self._end = offset + self._weights[name].size_bytes
        weight = self._weights[name]
        return ir.ExternalTensor(
            self.location, weight.offset, weight.size_bytes, weight.dtype, shape=ir.Shape(weight.shape), name=name
        )

    def begin(self, folder: Path) -> None:
        """Make the file in `folder`, of its size but without a value, so that it takes no room yet."""
        with (folder / self.location).open("xb") as file:
            file.truncate(self.size_bytes)

    def is_begun(self, folder: Path) -> bool:
        """Whether the file is there and has its size."""
        path = folder / self.location
        return path.is_file() and path.stat().st_size == self.size_bytes

    def put(self, folder: Path, values: Mapping[str, Iterable[memoryview]]) -> None:
        """Write the bytes of some planned tensors into the begun file and flush them to the disk.

        Raises:
            OSError: the disk is full, or the like.
        """
        with (folder / self.location).open("r+b") as file:
            for name, pieces in values.items():
                file.seek(self._weights[name].offset)
                for piece in pieces:
                    file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    def get(self, folder: Path, name: str) -> torch.Tensor:
        """The bytes of a tensor that was put into the file, uint8 [size]."""
        weight = self._weights[name]
        return torch.from_numpy(np.fromfile(folder / self.location, np.uint8, weight.size_bytes, offset=weight.offset))

    def bytes_of(self, names: Collection[str]) -> int:
        """What planned tensors take in the file."""
        return sum(self._weights[name].size_bytes for name in names)

    def write(self, folder: Path, on_bytes: Callable[[int], None], present: Collection[str] | None = None) -> FileInfo:
        """Write the file into `folder`, a piece at a time; `on_bytes` is told of every piece.

        present: tensors that were put into the file already, which is begun; None makes a new file.

        Raises:
            CheckpointError: a tensor holds NaN or infinity, or values too large for its type.
            OSError: the disk is full, or the like.
        """
        with HashingWriter(folder / self.location, on_bytes, begun=present is not None) as out:
            for weight in self._weights.values():
                out.write(bytes(weight.offset - out.size))
                if weight.name in (present or ()):
                    out.take(weight.size_bytes)
                else:
                    for piece in weight.pieces():
                        out.write(piece)
        return out.info()


class HashingWriter:
    """Writes a new file, or over one that is begun, and its SHA-256 in one pass."""

    def __init__(self, path: Path, on_bytes: Callable[[int], None], *, begun: bool = False):
        self._file: BinaryIO = path.open("r+b" if begun else "xb")
        self._digest = hashlib.sha256()
        self._on_bytes = on_bytes
        self.size = 0

    def __enter__(self) -> HashingWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, data: bytes | memoryview) -> None:
        """Write `data` behind what was written before."""
        self._file.write(data)
        self._count(data)

    def take(self, size: int) -> None:
        """Leave the next `size` bytes as they are in the file."""
        for start in range(0, size, _READ_BYTES):
            self._count(self._file.read(min(_READ_BYTES, size - start)))

    def _count(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self.size += len(data)
        self._on_bytes(len(data))

    def info(self) -> FileInfo:
        """Size and SHA-256 of what was written."""
        return FileInfo(self.size, self._digest.hexdigest())


def float_pieces(name: str, tensor: torch.Tensor, dtype: torch.dtype = torch.float32) -> Iterator[memoryview]:
    """The values of `tensor` as little-endian floats, in pieces of at most 4 MiB.

    Raises:
        CheckpointError: a value is NaN or infinite, or too large for `dtype`.
    """

    def narrowed(piece: torch.Tensor) -> memoryview:
        values = piece.to(torch.float32)
        check_finite(name, values)
        narrow = values.to(dtype)
        if dtype != torch.float32 and not torch.isfinite(narrow).all():
            raise CheckpointError(
                f"the tensor {name} holds values beyond {dtype}'s range ({torch.finfo(dtype).max:g}); "
                "export in bf16 or fp32."
            )
        return tensor_bytes(narrow)

    return in_order(narrowed, torch.split(tensor.detach().reshape(-1), _PIECE_ELEMENTS))


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, without a copy where it is contiguous and in the host's memory."""
    return tensor.contiguous().view(torch.uint8).reshape(-1).cpu().numpy().data
