"""The kernels of frames.cu as methods: each call queues one kernel on a stream."""

from __future__ import annotations

import ctypes
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwenvl_edge import _core
from qwenvl_edge.backends.cuda.kernels import Kernels, nvrtc_problem
from qwenvl_edge.errors import BackendError
from qwenvl_edge.families.base import Patches
from qwenvl_edge.inputs.device_frames import DeviceFrame
from qwenvl_edge.inputs.pictures import ChannelOrder
from qwenvl_edge.machine.cuda import Cuda, DeviceMemory, Stream

SOURCE = Path(__file__).with_name("frames.cu")

_NAMES = ("find_alpha", "pack_rgb", "digest", "resample_x", "resample_y", "resample_patches")
_THREADS = 128  # per block; kThreads in frames.cu
_DIGEST_BLOCKS = 64
# Drawn anew in every process: who does not know them cannot make two pictures of one digest.
_SEEDS = (secrets.randbits(64), secrets.randbits(64))

# Types of kernel parameters.
_Pointer, _Int, _Long, _Word = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong, ctypes.c_ulonglong


@dataclass(frozen=True)
class DeviceAxis:
    """Bicubic interpolation along one axis, on the GPU: int32 first [output], count [output], weights [output, widest].

    Output pixel i is the sum of `count[i]` input pixels from `first[i]` on, each times its weight.
    """

    memory: DeviceMemory
    output: int
    widest: int

    @classmethod
    def upload(cls, cuda: Cuda, stream: Stream, size: int, output: int) -> DeviceAxis:
        """Queue the upload of the axis from `size` to `output` pixels."""
        first, count, weights = _core.bicubic_axis(size, output)
        numbers = np.concatenate([first, count, weights.reshape(-1)])
        memory = DeviceMemory(cuda, numbers.nbytes)
        stream.upload(memory.address, numbers)
        return cls(memory, output, weights.shape[1])

    def arguments(self) -> list[Any]:
        """The kernel parameters first, count, weights, widest and side."""
        first = self.memory.address
        count, weights = first + 4 * self.output, first + 8 * self.output
        return [*map(_Pointer, (first, count, weights)), _Int(self.widest), _Int(self.output)]


class FrameKernels:
    """The kernels for one GPU, compiled at first use; any thread may call it."""

    def __init__(self, cuda: Cuda):
        self._cuda = cuda
        self._lock = threading.Lock()
        self._kernels: Kernels | None = None
        self._problem: str | None = None

    def ready(self) -> bool:
        """True if the kernels can be used; compiles them at the first call."""
        with self._lock:
            if self._kernels is None and self._problem is None:
                try:
                    self._kernels = Kernels(self._cuda, SOURCE, _NAMES)
                except BackendError as error:
                    self._problem = str(error).rstrip(".")
            return self._kernels is not None

    def problem(self) -> str:
        """The reason why the kernels cannot be used, as a clause; "" if none is known (nothing is compiled for it)."""
        return nvrtc_problem() if self._problem is None else self._problem

    def pack_rgb(self, stream: Stream, frame: DeviceFrame, order: ChannelOrder, rgb: int, scratch: int) -> None:
        """A frame's pixels -> uint8 [H, W, 3] at `rgb`; gray becomes three equal channels.

        Of four channels the last is alpha, which is put on white, unless it is 0 in the whole frame. scratch: the
        address of 4 bytes that this may overwrite.
        """
        height, width, channels = frame.size
        if channels == 4:
            stream.clear(scratch, 4)
            arguments = [_Pointer(frame.address), _Long(frame.pitch), _Int(width), _Pointer(scratch)]
            self._launch("find_alpha", (width, height), stream, arguments)
        red, green, blue = (0, 0, 0) if channels == 1 else (0, 1, 2) if order == "rgb" else (2, 1, 0)
        numbers = (width, channels, red, green, blue)
        arguments = [_Pointer(frame.address), _Long(frame.pitch), *map(_Int, numbers), *map(_Pointer, (scratch, rgb))]
        self._launch("pack_rgb", (width, height), stream, arguments)

    def digest(self, stream: Stream, data: int, nbytes: int, sums: int) -> None:
        """Add a digest of the bytes at `data`, an address that 8 divides, to the two uint64 at `sums`."""
        arguments = [_Pointer(data), _Long(nbytes), *map(_Word, _SEEDS), _Pointer(sums)]
        blocks = min(_DIGEST_BLOCKS, nbytes // 8 // _THREADS + 1)
        self._launch("digest", (blocks * _THREADS, 1), stream, arguments)

    def resample_x(self, stream: Stream, rgb: int, size: tuple[int, int], axis: DeviceAxis, rows: int) -> None:
        """uint8 [H, W, 3] at `rgb`, (W, H) = size -> uint8 [H, S, 3] at `rows`."""
        width, height = size
        arguments = [_Pointer(rgb), _Int(width), *axis.arguments(), _Pointer(rows)]
        self._launch("resample_x", (axis.output, height), stream, arguments)

    def resample_y(self, stream: Stream, rows: int, axis: DeviceAxis, table: int, values: int) -> None:
        """uint8 [H, S, 3] at `rows` -> float32 [3, S, S] at `values`, normalised by the float32 [3, 256] at `table`."""
        arguments = [_Pointer(rows), *axis.arguments(), _Pointer(table), _Pointer(values)]
        self._launch("resample_y", (axis.output, axis.output), stream, arguments)

    def resample_patches(
        self,
        stream: Stream,
        rows: int,
        width: int,
        axis: DeviceAxis,
        table: int,
        cut: Patches,
        times: tuple[int, int],
        patches: int,
    ) -> None:
        """uint8 [H, width, 3] at `rows` -> patch vectors at `patches`; times: first frame of a patch, and end."""
        numbers = (cut.side, cut.merge, cut.frames, *times)
        arguments = [_Pointer(rows), *axis.arguments(), _Int(width), _Pointer(table), *map(_Int, numbers)]
        self._launch("resample_patches", (width, axis.output), stream, [*arguments, _Pointer(patches)])

    def _launch(self, name: str, size: tuple[int, int], stream: Stream, arguments: Sequence[Any]) -> None:
        if not self.ready() or self._kernels is None:
            raise BackendError(f"frames cannot be worked on by the GPU: {self.problem()}.")
        columns, rows = size
        self._kernels.launch(name, (-(-columns // _THREADS), rows), _THREADS, stream, arguments)
