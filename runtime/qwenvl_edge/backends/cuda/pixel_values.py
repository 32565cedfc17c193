"""Pictures in the GPU's memory -> the vision graph's input there, with the bits that Family.vision_inputs gives."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qwenvl_edge.backends.cuda.frame_kernels import DeviceAxis, FrameKernels
from qwenvl_edge.backends.cuda.pictures import DevicePicture
from qwenvl_edge.families.base import Patches, Preprocessing
from qwenvl_edge.families.pieces import PictureLayout
from qwenvl_edge.machine.cuda import Cuda, DeviceMemory, Stream

_AXES = 8  # resampling weights that are kept: widths and heights of a few cameras


class DeviceArray(NamedTuple):
    """A float32 array in the GPU's memory."""

    address: int
    shape: tuple[int, ...]


class PixelValues:
    """Resizes and normalises on one stream; the caller must wait for the stream before the next call."""

    def __init__(self, cuda: Cuda, kernels: FrameKernels, stream: Stream):
        self._cuda = cuda
        self._kernels = kernels
        self._stream = stream
        self._axes: OrderedDict[tuple[int, int], DeviceAxis] = OrderedDict()
        self._tables: dict[Preprocessing, DeviceMemory] = {}
        self._rows = self._values = DeviceMemory(cuda, 0)

    def compute(self, picture: DevicePicture, preprocessing: Preprocessing) -> DeviceArray:
        """Queue the work; return pixel_values [1, 3, S, S], which the next call overwrites.

        Raises:
            BackendError: there is not enough memory, or CUDA failed.
        """
        side = preprocessing.image_size
        down, table = self._axis(picture.size[1], side), self._table(preprocessing)
        self._rows = self._at_least(self._rows, 3 * picture.size[1] * side)
        self._values = self._at_least(self._values, 4 * 3 * side**2)
        self._resample_x(picture, side)
        self._kernels.resample_y(self._stream, self._rows.address, down, table.address, self._values.address)
        return DeviceArray(self._values.address, (1, 3, side, side))

    def patches(
        self, frames: Sequence[DevicePicture], preprocessing: Preprocessing, cut: Patches, layout: PictureLayout
    ) -> DeviceArray:
        """As compute, of a picture (one frame) or of a clip's frames of one size: [N, P, C] patch vectors.

        The last frame fills up the last patch in time. cut: as in the preprocessing. layout: of picture or clip, whose
        rows and columns are taken.
        """
        height, width = (tokens * cut.merge * cut.side for tokens in layout.grid[1:])
        count = -(-len(frames) // cut.frames)
        values = 3 * cut.frames * height * width
        down, table = self._axis(frames[0].size[1], height), self._table(preprocessing)
        self._rows = self._at_least(self._rows, 3 * frames[0].size[1] * width)
        self._values = self._at_least(self._values, 4 * count * values)
        for number, frame in enumerate(frames):
            part, time = divmod(number, cut.frames)
            times = time, cut.frames if number == len(frames) - 1 else time + 1
            self._resample_x(frame, width)
            target = self._values.address + 4 * part * values
            rows = self._rows.address
            self._kernels.resample_patches(self._stream, rows, width, down, table.address, cut, times, target)
        size = 3 * cut.frames * cut.side**2
        return DeviceArray(self._values.address, (count, values // size, size))

    def _resample_x(self, picture: DevicePicture, width: int) -> None:
        across = self._axis(picture.size[0], width)
        self._kernels.resample_x(self._stream, picture.address, picture.size, across, self._rows.address)

    def _axis(self, size: int, side: int) -> DeviceAxis:
        key = size, side
        if key not in self._axes:
            self._axes[key] = DeviceAxis.upload(self._cuda, self._stream, size, side)
        self._axes.move_to_end(key)
        if len(self._axes) > _AXES:
            self._axes.popitem(last=False)
        return self._axes[key]

    def _table(self, preprocessing: Preprocessing) -> DeviceMemory:
        """float32 [3, 256]: the normalised value of each byte, per channel."""
        if preprocessing not in self._tables:
            mean, std = (np.array(each, np.float32)[:, None] for each in (preprocessing.mean, preprocessing.std))
            table = (np.arange(256, dtype=np.float32) / np.float32(255) - mean) / std
            memory = DeviceMemory(self._cuda, table.nbytes)
            self._stream.upload(memory.address, table)
            self._tables[preprocessing] = memory
        return self._tables[preprocessing]

    def _at_least(self, memory: DeviceMemory, nbytes: int) -> DeviceMemory:
        return memory if memory.nbytes >= nbytes else DeviceMemory(self._cuda, nbytes)
