"""What the backends on a GPU have in common: one stream, caches and pictures in the GPU's memory, and what is checked
when."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from qwenvl_edge.backends.base import (
    Features,
    FloatArray,
    Placed,
    check_cache_size,
    check_copy,
    check_finite,
    check_pixels,
)
from qwenvl_edge.backends.checked import CheckedBackend
from qwenvl_edge.backends.cuda.cache import CacheMemory
from qwenvl_edge.backends.cuda.device import Cuda, DeviceMemory, Staging, Stream
from qwenvl_edge.backends.cuda.frame_kernels import FrameKernels
from qwenvl_edge.backends.cuda.pictures import DevicePicture, FrameLoader
from qwenvl_edge.backends.cuda.pixel_values import PixelValues
from qwenvl_edge.backends.kv_cache import KVCache
from qwenvl_edge.inputs.pictures import ChannelOrder, Picture, Preprocessing


class DeviceFeatures:
    """One picture's features [Q, H] float32 in the GPU's memory."""

    def __init__(self, cuda: Cuda, rows: int, width: int):
        self.row_bytes = 4 * width
        self.memory = DeviceMemory(cuda, rows * self.row_bytes)

    def __len__(self) -> int:
        """Q."""
        return self.memory.nbytes // self.row_bytes


def splice(stream: Stream, inputs_embeds: int, pictures: Sequence[Placed]) -> None:
    """Put features over the embeddings at an address, once the stream gets there."""
    for picture in pictures:
        features: DeviceFeatures = picture.features
        row = features.row_bytes
        source = features.memory.address + picture.first * row
        stream.copy(inputs_embeds + picture.at * row, source, picture.count * row)


class CudaBackend(CheckedBackend):
    """A backend whose caches are CacheMemory, in `cache.buffers.memory`; everything runs on the one `stream`.

    What _decode puts on the stream it waits for.
    """

    kind = DeviceFeatures

    def __init__(self, cuda: Cuda):
        self.cuda = cuda
        self.stream = Stream(cuda)
        self._frame_kernels = FrameKernels(cuda)
        self._frames = FrameLoader(cuda, self._frame_kernels)
        self._pixel_values = PixelValues(cuda, self._frame_kernels, self.stream)

    def describe(self) -> str:
        """See Backend.describe; says so where frames of the GPU cannot stay there."""
        problem = self._frame_kernels.problem()
        note = f"; frames in the GPU's memory are copied to the host, because {problem}" if problem else ""
        return self.description + note

    @property
    @abstractmethod
    def _most_images(self) -> int | None:
        """How many pictures _encode takes at once; None: any number."""

    @abstractmethod
    def _encode(self, pixel_values: FloatArray) -> Staging:
        """Checked pictures -> features [N, Q, H] at the beginning of a buffer, unchecked, waited for."""

    @abstractmethod
    def _encode_at(self, address: int) -> Staging:
        """As _encode, of one picture whose pixel_values the stream's work so far writes to an address of the GPU."""

    @abstractmethod
    def _memory(self, batch: int, capacity: int) -> CacheMemory:
        """Memory for a cache. Raises BackendError where it cannot be had."""

    @abstractmethod
    def _buffers(self, memory: CacheMemory) -> Any:
        """What a cache at that memory is run with; its `memory` is the argument."""

    def encode_images(self, pixel_values: FloatArray) -> FloatArray:
        """See Backend.encode_images."""
        check_pixels(self.model, pixel_values)
        most = self._most_images or len(pixel_values)
        starts = range(0, len(pixel_values), most)
        batches = [np.ascontiguousarray(pixel_values[start : start + most]) for start in starts]
        return np.concatenate([self._features(self._encode(batch), len(batch)).copy() for batch in batches])

    def keep_images(self, pixel_values: FloatArray) -> list[DeviceFeatures]:
        """See Backend.keep_images."""
        check_pixels(self.model, pixel_values)
        return [self._keep(self._encode(np.ascontiguousarray(pixels[None]))) for pixels in pixel_values]

    def keep_picture(self, picture: Picture, preprocessing: Preprocessing) -> Features:
        """See Backend.keep_picture; a picture in the GPU's memory is resized and normalised there."""
        if not isinstance(picture, DevicePicture):
            return super().keep_picture(picture, preprocessing)
        with self.stream.waited_for():
            return self._keep(self._encode_at(self._pixel_values.compute(picture, preprocessing)))

    def load_frame(self, source: Any, channel_order: ChannelOrder, name: str) -> Picture | None:
        """See Backend.load_frame; takes what is in CUDA's memory and visible to this GPU."""
        return self._frames.load(source, channel_order, name)

    def _features(self, output: Staging, count: int) -> FloatArray:
        """The features [N, Q, H] of so many pictures, checked, which the next call overwrites."""
        features = output.view((count, self.model.image_tokens, self.model.hidden_size))
        check_finite(features, "image features")
        return features

    def _keep(self, output: Staging) -> DeviceFeatures:
        """One picture's features, checked and copied."""
        self._features(output, 1)
        features = DeviceFeatures(self.cuda, self.model.image_tokens, self.model.hidden_size)
        self.stream.copy(features.memory.address, output.address, features.memory.nbytes)
        self.stream.synchronize()
        return features

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """See Backend.new_cache."""
        check_cache_size(batch, capacity)
        memory = self._memory(batch, capacity)
        return KVCache(self.model, batch=batch, capacity=capacity, buffers=self._buffers(memory))

    def rows(self, cache: KVCache, start: int, count: int) -> KVCache | None:
        """See Backend.rows."""
        memory = cache.buffers.memory.rows(start, count)
        if memory is None:
            return None
        view = copy.copy(cache)
        view.batch, view.buffers = count, self._buffers(memory)
        return view

    def copy_cache(self, source: KVCache, target: KVCache, tokens: int, *, row: int = 0) -> None:
        """See Backend.copy_cache."""
        check_copy(source, target, tokens, row)
        target.buffers.memory.copy_row(source.buffers.memory, tokens, row)
        self.stream.synchronize()
        target.length = max(target.length, tokens)

    def _clear(self, cache: KVCache) -> None:
        cache.buffers.memory.clear()
