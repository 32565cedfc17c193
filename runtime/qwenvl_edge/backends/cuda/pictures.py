"""Camera frames as pictures that stay in the GPU's memory; their pixels are copied to the host when they are read."""

from __future__ import annotations

import dataclasses
import functools
import threading
import weakref
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.cuda.frame_kernels import FrameKernels
from qwenvl_edge.errors import BackendError, ImageError
from qwenvl_edge.families.pieces import PixelLimits
from qwenvl_edge.inputs.device_frames import DeviceFrame, copy_to_host, device_frame, is_cuda_frame
from qwenvl_edge.inputs.pictures import ChannelOrder, Picture, check_channel_order, check_channels, check_size
from qwenvl_edge.machine.cuda import Cuda, DeviceMemory, Staging, Stream

_SPARE = 4  # buffers of dead pictures that are kept for the next frames, because reserving memory makes a GPU wait
_SUMS_BYTES = 16  # of a digest; before it, a note whether a frame has alpha


class DevicePicture(Picture):
    """A picture whose RGB pixels, uint8 [H, W, 3], lie densely in the GPU's memory at `address`."""

    def __init__(self, loader: FrameLoader, memory: DeviceMemory, size: tuple[int, int], name: str):
        object.__setattr__(self, "name", name)
        self.address = memory.address
        self._loader = loader
        self._memory = memory
        self._size = size

    def __reduce__(self) -> tuple[type[Picture], tuple[npt.NDArray[np.uint8], str]]:
        """Pickle and copy as a picture on the host."""
        return Picture, (self.pixels, self.name)

    def within(self, limits: PixelLimits) -> Picture:
        """See Picture.within; the pixels stay where they are."""
        if limits == self.limits:
            return self
        other = object.__new__(DevicePicture)  # not a copy, which would be on the host
        vars(other).update(vars(self), limits=limits, origin=self.origin or self)
        return other

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self._size

    @functools.cached_property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """uint8 [H, W, 3] RGB, read-only; copied to the host at the first access."""
        return self._loader.download(self)

    @functools.cached_property
    def digest(self) -> str:
        """Identifies the picture in this process: its size and 128 bits that the GPU computes from its pixels.

        It is no cryptographic digest, and never equal to that of the same pixels on the host. Each process draws its
        own seeds, so nobody can make pictures of equal digests; different pictures have one by chance in 2**-128 of all
        cases.
        """
        width, height = self._size
        return f"{width}x{height} on the GPU {self._loader.digest(self)}"

    def same_pixels(self, other: Picture) -> bool:
        """See Picture.same_pixels; compares digests."""
        return isinstance(other, DevicePicture) and self.digest == other.digest


class FrameLoader:
    """Makes pictures of frames in CUDA's memory, on its own stream; any thread may call it at any time.

    kernels: compiled at the first frame.
    """

    def __init__(self, cuda: Cuda):
        self._cuda = cuda
        self.kernels = FrameKernels(cuda)
        self._lock = threading.Lock()
        self._spare: deque[DeviceMemory] = deque(maxlen=_SPARE)

    @functools.cached_property
    def _stream(self) -> Stream:
        return Stream(self._cuda)

    @functools.cached_property
    def _sums(self) -> Staging:
        return Staging(self._cuda, _SUMS_BYTES)

    def note(self) -> str:
        """The end of a backend's description: says so if frames cannot stay on the GPU, else ""."""
        problem = self.kernels.problem()
        return f"; frames in the GPU's memory are copied to the host, because {problem}" if problem else ""

    def load(self, source: Any, channel_order: ChannelOrder, name: str) -> DevicePicture | None:
        """See Backend.load_frame; None also if this GPU cannot read the frame or the kernels cannot be used."""
        if not is_cuda_frame(source) or not self.kernels.ready():
            return None
        check_channel_order(channel_order)
        with self._lock:
            try:
                return self._load(source, channel_order, name)
            except BackendError as error:
                raise ImageError(f"{name} lies in a GPU's memory and cannot be read: {error}") from None

    def digest(self, picture: DevicePicture) -> str:
        """32 hexadecimal digits that differ between pictures of one size."""
        width, height = picture.size
        with self._lock:
            with self._stream.waited_for():
                self._stream.clear(self._sums.address, _SUMS_BYTES)
                self.kernels.digest(self._stream, picture.address, 3 * width * height, self._sums.address)
                self._sums.download(self._stream, _SUMS_BYTES)
            return self._sums.host[:_SUMS_BYTES].tobytes().hex()

    def download(self, picture: DevicePicture) -> npt.NDArray[np.uint8]:
        """A picture's pixels, uint8 [H, W, 3], read-only."""
        width, height = picture.size
        pixels = np.empty((height, width, 3), np.uint8)
        copy_to_host(self._cuda, picture.address, 3 * width, pixels.reshape(height, 3 * width))
        pixels.flags.writeable = False
        return pixels

    def _load(self, source: Any, channel_order: ChannelOrder, name: str) -> DevicePicture | None:
        frame = device_frame(source, name, reader=self._stream.handle)
        check_channels(frame.shape, name)
        height, width, _ = frame.size
        check_size(width, height, name)
        address = self._visible(frame)
        if address is None:
            return None
        if frame.stream not in (None, self._stream.handle):
            self._stream.wait_for(frame.stream)
        memory = self._reserve(3 * width * height)
        with self._stream.waited_for():  # afterwards the frame's owner may use its memory again
            visible = dataclasses.replace(frame, address=address)
            self.kernels.pack_rgb(self._stream, visible, channel_order, memory.address, self._sums.address)
        picture = DevicePicture(self, memory, (width, height), name)
        weakref.finalize(picture, self._spare.append, memory)
        return picture

    def _visible(self, frame: DeviceFrame) -> int | None:
        """The address at which this GPU sees a frame; None if it does not, or if it is another GPU's memory."""
        where = self._cuda.call("find the frame", self._cuda.api.cudaPointerGetAttributes, frame.address)
        is_elsewhere = where.type == self._cuda.api.cudaMemoryType.cudaMemoryTypeDevice and where.device != 0
        return None if is_elsewhere or not where.devicePointer else int(where.devicePointer)

    def _reserve(self, nbytes: int) -> DeviceMemory:
        for _ in range(len(self._spare)):
            memory = self._spare.popleft()
            if memory.nbytes == nbytes:
                return memory
            self._spare.append(memory)
        return DeviceMemory(self._cuda, nbytes)
