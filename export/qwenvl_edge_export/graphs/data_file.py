"""The data file of a graph, in the places that its layout gives: filled piecemeal by calibration, or written in a pass.

Values are read, converted and written a piece at a time, so that memory does not follow the model's size.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from qwenvl_edge.bundle.files import FileInfo
from qwenvl_edge_export.graphs.roles import Tensors
from qwenvl_edge_export.graphs.stored import GivenIntegers, no_integers
from qwenvl_edge_export.graphs.weight_layout import WeightLayout

_READ_BYTES = 4 << 20


class DataFile:
    """The file of `layout` in `folder`; it need not be there yet."""

    def __init__(self, folder: Path, layout: WeightLayout):
        self.path = folder / layout.location
        self.layout = layout

    def begin(self) -> None:
        """Make the file, of its size but without a value, so that it takes no room yet."""
        with self.path.open("xb") as file:
            file.truncate(self.layout.size_bytes)

    def is_begun(self) -> bool:
        """Tell if the file is there and has its size."""
        return self.path.is_file() and self.path.stat().st_size == self.layout.size_bytes

    def put(self, values: Mapping[str, Iterable[memoryview]]) -> None:
        """Write the bytes of some tensors into the begun file and flush them to the disk.

        Raises:
            OSError: the disk is full, or the like.
        """
        with self.path.open("r+b") as file:
            for name, pieces in values.items():
                file.seek(self.layout.entry(name).offset)
                for piece in pieces:
                    file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    def get(self, name: str) -> torch.Tensor:
        """The bytes of a tensor that was put into the file, uint8 [size]."""
        entry = self.layout.entry(name)
        return torch.from_numpy(np.fromfile(self.path, np.uint8, entry.slot.size_bytes, offset=entry.offset))

    def write(
        self,
        tensors: Tensors,
        on_bytes: Callable[[int], None],
        integers: GivenIntegers = no_integers,
        present: Collection[str] | None = None,
    ) -> FileInfo:
        """Write the file from a checkpoint's `tensors`, a piece at a time; `on_bytes` is told of every piece.

        Args:
            tensors: reads the checkpoint.
            on_bytes: called with the size of every piece.
            integers: those of weights that are quantized already.
            present: the weights whose tensors were put into the begun file already; None makes a new file.

        Raises:
            CheckpointError: a tensor holds NaN or infinity, or values too large for its type.
            OSError: the disk is full, or the like.
        """
        with HashingWriter(self.path, on_bytes, begun=present is not None) as out:
            for stored, entries in self.layout:
                there = stored.name in (present or ())
                contents = iter(()) if there else stored.pieces(tensors, integers)
                for entry in entries:
                    out.write(bytes(entry.offset - out.size))
                    if there:
                        out.take(entry.slot.size_bytes)
                    else:
                        for piece in next(contents):
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
        """Write `data` after what was written before."""
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
