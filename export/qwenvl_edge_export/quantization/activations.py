"""The rows that flow between the decoder's layers during calibration: those of all samples, one file per boundary.

Beside them lie the features that some families add to the pictures' rows after the first layers (deepstack).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwenvl_edge.inputs.prompt import Prompt
from qwenvl_edge_export.families.base import ImageFeatures
from qwenvl_edge_export.verification.streamed_reference import add_deepstack

PARTIAL = ".partial"
_NOT_THERE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # errors of file systems that cannot reserve room


class Spool:
    """Files in `folder`, each with the rows [T, width] float32 of samples that have `lengths` tokens."""

    def __init__(self, folder: Path, lengths: Sequence[int], width: int):
        self._folder = folder
        self._lengths = lengths
        self._shape = (sum(lengths), width)

    def path(self, layer: int) -> Path:
        """The file of the rows that go into decoder layer `layer`."""
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
        """Each sample's rows [T, width], to be filled; the file exists once the context ends without an error.

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

    def keep_deepstack(self, case: int, features: Sequence[ImageFeatures]) -> None:
        """Write the deepstack features of a sample's pictures.

        Raises:
            OSError, SafetensorError: the disk is full, or the like.
        """
        tensors = {str(i): each.deepstack for i, each in enumerate(features) if each.deepstack is not None}
        save_file(tensors, self._deepstack_path(case))

    def add_deepstack(self, case: int, prompt: Prompt, rows: Tensor, layer: int) -> None:
        """Add what a sample's pictures give after decoder layer `layer`, if anything, to its rows [T, H] in place."""
        path = self._deepstack_path(case)
        if path.exists():
            kept = load_file(path)
            features = [ImageFeatures(rows, kept.get(str(i))) for i in range(len(prompt.pictures))]
            add_deepstack(rows, prompt, features, layer)

    def _deepstack_path(self, case: int) -> Path:
        return self._folder / f"deepstack-{case}.safetensors"

    def keep_only(self, layer: int) -> None:
        """Delete all files of rows but that of `layer`, which an interrupted calibration left."""
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
