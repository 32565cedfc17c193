"""Outputs of a run: float32 arrays in a staging buffer, on the GPU and, after a download, on the host."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from qwenvl_edge.machine.cuda import ALIGNMENT, Cuda, FloatArray, Staging, Stream


class Output(NamedTuple):
    """An output's address on the GPU, and its values on the host: a view, which the next run overwrites."""

    address: int
    values: FloatArray


class Outputs:
    """The outputs of one kind of run, in a buffer that grows with the largest one."""

    def __init__(self, cuda: Cuda):
        self._cuda = cuda
        self._staging = Staging(cuda, 0)

    def place(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Output]:
        """Give every output of `shapes` its place, one after the other.

        Raises:
            BackendError: there is not enough memory.
        """
        starts, end = {}, 0
        for name, shape in shapes.items():
            starts[name] = end
            end += _aligned(4 * math.prod(shape))
        if end > len(self._staging.host):
            self._staging = Staging(self._cuda, end)
        address = self._staging.address
        return {
            name: Output(address + start, self._staging.view(shapes[name], start)) for name, start in starts.items()
        }

    def download(self, stream: Stream, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Queue the copy of outputs of these shapes to the host."""
        *before, last = (4 * math.prod(shape) for shape in shapes.values())
        self._staging.download(stream, sum(map(_aligned, before)) + last)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
