"""TensorRT: a bundle's plans on one GPU, through TensorRT's Python API and cuda-python.

Everything that a call needs is reserved at load or with a cache: staging, logits, caches, scratch memory, which the two
engines share since they run one after the other on one stream. A call copies its inputs up, runs, copies its outputs
down and waits once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwenvl_edge.backends.base import FloatArray, Limits, Placed
from qwenvl_edge.backends.checked import Inputs
from qwenvl_edge.backends.cuda.backend import CudaBackend
from qwenvl_edge.backends.cuda.cache import CacheMemory
from qwenvl_edge.backends.cuda.device import Cuda, DeviceMemory, Staging
from qwenvl_edge.backends.kv_cache import KVCache
from qwenvl_edge.backends.tensorrt.decoder import CacheBuffers, PlanDecoder
from qwenvl_edge.backends.tensorrt.engine import Engine, Refit
from qwenvl_edge.backends.tensorrt.library import Library
from qwenvl_edge.backends.tensorrt.vision import PlanVision
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.engines import REFIT_GRAPHS, Plan
from qwenvl_edge.bundle.manifest import INT8_CACHE, ModelInfo


class TensorRTBackend(CudaBackend):
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
        super().__init__(cuda)
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
        vision, decoder = (Engine(library, path, _refit(bundle, plan, path)) for path in (plan.vision, plan.decoder))
        scratch = DeviceMemory(cuda, max(vision.scratch_bytes, decoder.scratch_bytes))
        self._vision = PlanVision(vision, plan, self.model, cuda, self.stream, scratch)
        self._decoder = PlanDecoder(decoder, plan, self.model, cuda, self.stream, scratch)

    @property
    def _most_images(self) -> int:
        return self._vision.most

    def cache_bytes(self, capacity: int) -> int:
        """See Backend.cache_bytes; of the plan's whole context, however small `capacity` is."""
        return self._decoder.cache_bytes

    def _encode(self, pixel_values: FloatArray) -> Staging:
        return self._vision.encode(pixel_values)

    def _encode_at(self, address: int) -> Staging:
        return self._vision.encode_at(address)

    def _memory(self, batch: int, capacity: int) -> CacheMemory:
        """The plan's whole context, however small `capacity` is."""
        return self._decoder.new_memory(batch, capacity)

    def _buffers(self, memory: CacheMemory) -> CacheBuffers:
        return CacheBuffers(memory)

    def _decode(self, cache: KVCache, inputs: Inputs, pictures: Sequence[Placed], length: int) -> FloatArray:
        return self._decoder.run(cache, inputs, pictures)


def _refit(bundle: Bundle, plan: Plan, path: Path) -> Refit | None:
    return Refit(plan.path / REFIT_GRAPHS[path.name], bundle.path) if plan.is_stripped else None
