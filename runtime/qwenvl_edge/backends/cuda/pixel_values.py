"""Pictures in the GPU's memory -> the vision graph's input there, to the last bit as image.pixel_values has it."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from qwenvl_edge.backends.cuda.device import Cuda, DeviceMemory, Stream
from qwenvl_edge.backends.cuda.frame_kernels import DeviceAxis, FrameKernels
from qwenvl_edge.backends.cuda.pictures import DevicePicture
from qwenvl_edge.inputs.pictures import Preprocessing

_AXES = 8  # kept: width and height of a few cameras


class PixelValues:
    """Resizes and normalises on one stream, whose user waits for it before the next call."""

    def __init__(self, cuda: Cuda, kernels: FrameKernels, stream: Stream):
        self._cuda = cuda
        self._kernels = kernels
        self._stream = stream
        self._axes: OrderedDict[tuple[int, int], DeviceAxis] = OrderedDict()
        self._tables: dict[Preprocessing, DeviceMemory] = {}
        self._rows = self._values = DeviceMemory(cuda, 0)

    def compute(self, picture: DevicePicture, preprocessing: Preprocessing) -> int:
        """Put it on the stream: the address of pixel_values [3, S, S] float32, which the next call overwrites.

        Raises:
            BackendError: there is no memory, or CUDA failed.
        """
        side, (width, height) = preprocessing.image_size, picture.size
        across, down = self._axis(width, side), self._axis(height, side)
        table = self._table(preprocessing)
        self._rows = self._at_least(self._rows, 3 * height * side)
        self._values = self._at_least(self._values, 4 * 3 * side**2)
        self._kernels.resample_x(self._stream, picture.address, picture.size, across, self._rows.address)
        self._kernels.resample_y(self._stream, self._rows.address, down, table.address, self._values.address)
        return self._values.address

    def _axis(self, size: int, side: int) -> DeviceAxis:
        key = size, side
        if key not in self._axes:
            self._axes[key] = DeviceAxis.upload(self._cuda, self._stream, size, side)
        self._axes.move_to_end(key)
        if len(self._axes) > _AXES:
            self._axes.popitem(last=False)
        return self._axes[key]

    def _table(self, preprocessing: Preprocessing) -> DeviceMemory:
        """float32 [3, 256]: what becomes of each byte of each channel."""
        if preprocessing not in self._tables:
            mean, std = (np.array(each, np.float32)[:, None] for each in (preprocessing.mean, preprocessing.std))
            table = (np.arange(256, dtype=np.float32) / np.float32(255) - mean) / std
            memory = DeviceMemory(self._cuda, table.nbytes)
            self._stream.upload(memory.address, table)
            self._tables[preprocessing] = memory
        return self._tables[preprocessing]

    def _at_least(self, memory: DeviceMemory, nbytes: int) -> DeviceMemory:
        return memory if memory.nbytes >= nbytes else DeviceMemory(self._cuda, nbytes)
