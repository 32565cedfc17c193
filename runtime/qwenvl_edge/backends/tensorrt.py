"""TensorRT: a bundle's plans on one GPU, through TensorRT's Python API and cuda-python.

Everything that a call needs is reserved at load or with a cache: staging, logits, caches, scratch memory, which the two
engines share since they run one after the other on one stream. A call copies its inputs up, runs, copies its outputs
down and waits once.
"""

from __future__ import annotations

import copy

import numpy as np

from qwenvl_edge.backends.base import (
    Backend,
    FloatArray,
    IntArray,
    Limits,
    check_copy,
    check_finite,
    check_pixels,
    check_tokens,
)
from qwenvl_edge.backends.cuda_device import Cuda, DeviceMemory, Stream
from qwenvl_edge.backends.plans import Plan
from qwenvl_edge.backends.tensorrt_decoder import CacheBuffers, Inputs, PlanDecoder
from qwenvl_edge.backends.tensorrt_engine import Engine
from qwenvl_edge.backends.tensorrt_library import Library
from qwenvl_edge.backends.tensorrt_vision import PlanVision
from qwenvl_edge.bundle import INT8_CACHE, Bundle, ModelInfo
from qwenvl_edge.errors import BackendError
from qwenvl_edge.kv_cache import KVCache


class TensorRTBackend(Backend):
    """Runs a plan of a bundle.

    Args:
        bundle: an opened bundle.
        plan: one of its plans.
        library: the TensorRT that built it.
        cuda: the GPU.

    Raises:
        BackendError: the plan was built for another machine, TensorRT refuses it, or the GPU's memory is too small.
    """

    def __init__(self, bundle: Bundle, plan: Plan, library: Library, cuda: Cuda):
        plan.check_machine(library.machine(cuda.compute_capability))
        self.model: ModelInfo = bundle.manifest.model
        limits = plan.manifest.limits
        self.limits = Limits(max_context=limits.max_context, max_batch=limits.max_batch)
        self.description = (
            f'{library.name} on {cuda.name} (sm_{cuda.compute_capability}), plan "{plan.manifest.target}": vision '
            f"{plan.manifest.precision['vision']}, decoder {plan.manifest.precision['decoder']}"
        )
        if plan.manifest.precision.get("kv_cache") == INT8_CACHE:
            self.description += ", KV cache int8"
        if plan.manifest.plugin:
            library.load_plugin(plan.manifest.plugin, plan.path)
        self._stream = Stream(cuda)
        vision, decoder = Engine(library, plan.vision), Engine(library, plan.decoder)
        scratch = DeviceMemory(cuda, max(vision.scratch_bytes, decoder.scratch_bytes))
        self._vision = PlanVision(vision, plan, self.model, cuda, self._stream, scratch)
        self._decoder = PlanDecoder(decoder, plan, self.model, cuda, self._stream, scratch)

    def encode_images(self, pixel_values: FloatArray) -> FloatArray:
        """See Backend.encode_images."""
        check_pixels(self.model, pixel_values)
        features = self._vision.encode(pixel_values)
        check_finite(features, "image features")
        return features

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """See Backend.new_cache. Its memory is the plan's whole context, however small `capacity` is."""
        if batch < 1 or capacity < 1:
            raise BackendError(f"a KV cache needs a batch and a capacity of at least 1, not {batch} and {capacity}.")
        memory = self._decoder.new_memory(batch, capacity)
        return KVCache(self.model, batch=batch, capacity=capacity, buffers=CacheBuffers(memory))

    def rows(self, cache: KVCache, start: int, count: int) -> KVCache | None:
        """See Backend.rows."""
        memory = cache.buffers.memory.rows(start, count)
        if memory is None:
            return None
        view = copy.copy(cache)
        view.batch, view.buffers = count, CacheBuffers(memory)
        return view

    def copy_cache(self, source: KVCache, target: KVCache, tokens: int, *, row: int = 0) -> None:
        """See Backend.copy_cache."""
        check_copy(source, target, tokens, row)
        target.buffers.memory.copy_row(source.buffers.memory, tokens, row)
        self._stream.synchronize()
        target.length = max(target.length, tokens)

    def decode(
        self,
        cache: KVCache,
        inputs_embeds: FloatArray,
        position_ids: IntArray,
        write_indices: IntArray,
        logits_indices: IntArray,
    ) -> FloatArray:
        """See Backend.decode."""
        inputs: Inputs = {
            "inputs_embeds": inputs_embeds,
            "position_ids": position_ids,
            "write_indices": write_indices,
            "logits_indices": logits_indices,
        }
        check_tokens(self.model, cache, **inputs)
        logits = self._decoder.run(cache, inputs)
        try:
            check_finite(logits, "logits")
        except BackendError:
            cache.buffers.memory.clear()
            cache.length = 0
            raise
        cache.length = int(np.max(write_indices)) + inputs_embeds.shape[1]
        return logits
