"""TensorRT: a bundle's plan on one GPU, through TensorRT's Python API and cuda-python.

All memory that a call needs is reserved at load or with a cache: staging, logits, caches, and scratch memory, which the
two engines share because they run one after the other on one stream. A call copies its inputs up, runs, copies its
outputs down and waits once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwenvl_edge.backends.base import BackendLimits, FloatArray, Inputs, KVCache, Placed
from qwenvl_edge.backends.cuda.backend import DeviceBackend
from qwenvl_edge.backends.cuda.cache import DeviceCaches
from qwenvl_edge.backends.cuda.encoder import PictureEncoder
from qwenvl_edge.backends.cuda.features import DeviceFeatures
from qwenvl_edge.backends.cuda.pictures import FrameLoader
from qwenvl_edge.backends.tensorrt.decoder import CacheBuffers, PlanDecoder
from qwenvl_edge.backends.tensorrt.engine import Refit, TensorRTEngine
from qwenvl_edge.backends.tensorrt.library import Library
from qwenvl_edge.backends.tensorrt.vision import PlanVision
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.engines import REFIT_GRAPHS, Plan
from qwenvl_edge.bundle.manifest import INT8_CACHE, ModelInfo
from qwenvl_edge.families import open_family
from qwenvl_edge.machine.cuda import Cuda, DeviceMemory, Stream


class TensorRTBackend(DeviceBackend):
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
        self.cuda = cuda
        self.stream = Stream(cuda)
        self.family = open_family(bundle.manifest)
        self.model: ModelInfo = bundle.manifest.model
        limits = plan.manifest.limits
        self.unhashed = plan.unhashed
        self.limits = BackendLimits(max_context=limits.max_context, max_batch=limits.max_batch)
        self.description = (
            f'{library.name} on {cuda.name} (sm_{cuda.compute_capability}), plan "{plan.manifest.target}": vision '
            f"{plan.manifest.precision['vision']}, decoder {plan.manifest.precision['decoder']}"
        )
        if plan.manifest.precision.get("kv_cache") == INT8_CACHE:
            self.description += ", KV cache int8"
        if plan.manifest.plugin:
            library.load_plugin(plan.manifest.plugin, plan.path)
        paths = (plan.vision, plan.decoder)
        vision, decoder = (TensorRTEngine(library, path, _refit(bundle, plan, path)) for path in paths)
        scratch = DeviceMemory(cuda, max(vision.scratch_bytes, decoder.scratch_bytes))
        graph = PlanVision(vision, plan, self.model, cuda, self.stream, scratch)
        self._frames = FrameLoader(cuda)
        self._encoder = PictureEncoder(cuda, self.stream, self._frames.kernels, self.family, self.model, graph)
        graph.reserve(self._encoder.shapes(graph.pixels))
        self._decoder = PlanDecoder(decoder, plan, self.model, cuda, self.stream, scratch)
        self._caches = DeviceCaches(self.model, self.stream, self._decoder.new_memory, CacheBuffers)

    def describe(self) -> str:
        """See Backend.describe; also says so if tokens cannot be replayed as CUDA graphs."""
        return super().describe() + self._decoder.note()

    def hold(self, rows: FloatArray, deepstack: FloatArray | None) -> DeviceFeatures:
        """Upload features that were computed elsewhere, [Q, H] and [L, Q, H] of models with deepstack layers."""
        features = DeviceFeatures(self.cuda, len(rows), self.model)
        features.fill(self.stream, rows, deepstack)
        return features

    def cache_bytes(self, capacity: int) -> int:
        """See Backend.cache_bytes; every cache has room for the plan's whole context, however small `capacity` is."""
        return self._decoder.cache_bytes

    def _decode(self, cache: KVCache, inputs: Inputs, pictures: Sequence[Placed], length: int) -> FloatArray:
        return self._decoder.run(cache, inputs, pictures)


def _refit(bundle: Bundle, plan: Plan, path: Path) -> Refit | None:
    return Refit(plan.path / REFIT_GRAPHS[path.name], bundle.path) if plan.is_stripped else None
