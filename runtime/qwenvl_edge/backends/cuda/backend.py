"""Base of the backends on a GPU: pictures, frames and caches lie in its memory, whatever library runs the graphs."""

from __future__ import annotations

from typing import Any

from qwenvl_edge.backends.base import Backend, FloatArray, Inputs, KVCache
from qwenvl_edge.backends.cuda.cache import DeviceCaches
from qwenvl_edge.backends.cuda.encoder import PictureEncoder
from qwenvl_edge.backends.cuda.features import DeviceFeatures
from qwenvl_edge.backends.cuda.pictures import FrameLoader
from qwenvl_edge.inputs.clips import Visual
from qwenvl_edge.inputs.pictures import ChannelOrder, Picture


class DeviceBackend(Backend):
    """Hands what is the same on every GPU to the parts that a subclass opens: encoder, frames and caches.

    A subclass implements cache_bytes and _decode.
    """

    features_type = DeviceFeatures
    _encoder: PictureEncoder
    _frames: FrameLoader
    _caches: DeviceCaches

    def describe(self) -> str:
        """See Backend.describe; says so if frames of the GPU cannot stay there."""
        return self.description + self._frames.note()

    def encode(self, picture: Visual) -> DeviceFeatures:
        """See Backend.encode."""
        return self._encoder.encode(picture)

    def run_vision(self, inputs: Inputs) -> dict[str, FloatArray]:
        """See PictureEncoder.run_vision."""
        return self._encoder.run_vision(inputs)

    def encode_pixels(self, pixels: FloatArray) -> FloatArray:
        """See PictureEncoder.encode_pixels."""
        return self._encoder.encode_pixels(pixels)

    def load_frame(self, source: Any, channel_order: ChannelOrder, name: str) -> Picture | None:
        """See Backend.load_frame; takes frames in CUDA's memory that this GPU can read."""
        return self._frames.load(source, channel_order, name)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """See Backend.new_cache."""
        return self._caches.new(batch, capacity)

    def rows(self, cache: KVCache, start: int, count: int) -> KVCache | None:
        """See Backend.rows."""
        return self._caches.rows(cache, start, count)

    def copy_cache(self, source: KVCache, target: KVCache, tokens: int, *, row: int = 0) -> None:
        """See Backend.copy_cache."""
        self._caches.copy(source, target, tokens, row)

    def _clear(self, cache: KVCache) -> None:
        cache.buffers.memory.clear()
