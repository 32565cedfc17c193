"""What flows between the decoder's layers during calibration: all samples' rows, in one file for each boundary."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PARTIAL = ".partial"
_NOT_THERE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # what file systems say that cannot reserve


class Spool:
    """Files in `folder`, each with the rows [T, width] float32 of samples that have `lengths` tokens."""

    def __init__(self, folder: Path, lengths: Sequence[int], width: int):
        self._folder = folder
        self._lengths = lengths
        self._shape = (sum(lengths), width)

    def path(self, layer: int) -> Path:
        """The file of what goes into decoder layer `layer`."""
        return self._folder / f"activations-{layer}.f32"

    @property
    def size_bytes(self) -> int:
        """Bytes of one file."""
        return 4 * self._shape[0] * self._shape[1]

    def read(self, layer: int) -> Iterator[Tensor]:
        """Each sample's rows [T, width], in memory."""
        for rows in self._split(np.memmap(self.path(layer), np.float32, "r", shape=self._shape)):
            yield torch.from_numpy(np.array(rows))

    @contextlib.contextmanager
    def written(self, layer: int) -> Iterator[Iterator[Tensor]]:
        """Each sample's rows [T, width], to be filled; the file is there when the context is left without an error.

        Raises:
            OSError: the disk is full, or the like.
        """
        partial = self.path(layer).with_suffix(PARTIAL)
        try:
            with partial.open("wb") as file:
                _reserve(file.fileno(), self.size_bytes)
            target = np.memmap(partial, np.float32, "r+", shape=self._shape)
            yield (torch.from_numpy(rows) for rows in self._split(target))
            target.flush()
            partial.rename(self.path(layer))
        finally:
            partial.unlink(missing_ok=True)

    def keep_only(self, layer: int) -> None:
        """Delete what an interrupted calibration left beside the file of `layer`."""
        for path in self._folder.glob("activations-*"):
            if path != self.path(layer):
                path.unlink()

    def _split(self, rows: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
        start = 0
        for length in self._lengths:
            yield rows[start : start + length]
            start += length


def _reserve(descriptor: int, size_bytes: int) -> None:
    """Give the empty file its size and its room on the disk: a mapped file that meets the disk's end kills the process.

    Raises:
        OSError: the disk has less room.
    """
    try:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
    os.truncate(descriptor, size_bytes)
