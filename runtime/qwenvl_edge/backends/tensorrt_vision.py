"""vision.plan: preprocessed pictures up, image features down."""

from __future__ import annotations

import math

import numpy as np

from qwenvl_edge.backends.base import FloatArray
from qwenvl_edge.backends.cuda_device import ALIGNMENT, Cuda, DeviceMemory, Staging, Stream
from qwenvl_edge.backends.plans import Plan
from qwenvl_edge.backends.tensorrt_engine import Engine
from qwenvl_edge.bundle import ModelInfo


class PlanVision:
    """Runs vision.plan, as many pictures at once as the plan takes.

    Raises:
        BackendError: the engine is not that of the bundle, or there is no memory for its buffers.
    """

    def __init__(self, engine: Engine, plan: Plan, model: ModelInfo, cuda: Cuda, stream: Stream, scratch: DeviceMemory):
        engine.check_tensors({"pixel_values": "FLOAT", "image_features": "FLOAT"})
        self._stream = stream
        self._most = plan.manifest.limits.max_images
        self._features = (model.image_tokens, model.hidden_size)
        self._inputs = Staging(cuda, 4 * self._most * 3 * model.image_size**2 + ALIGNMENT)
        self._outputs = Staging(cuda, 4 * self._most * math.prod(self._features))
        self._context = engine.context(0, stream, scratch)

    def encode(self, pixel_values: FloatArray) -> FloatArray:
        """[N, 3, S, S] -> [N, Q, H].

        Raises:
            BackendError: TensorRT or CUDA failed.
        """
        starts = range(0, len(pixel_values), self._most)
        return np.concatenate([self._encode(pixel_values[start : start + self._most]) for start in starts])

    def _encode(self, pixels: FloatArray) -> FloatArray:
        addresses, used = self._inputs.write({"pixel_values": pixels})
        self._context.bind({"pixel_values": pixels.shape}, addresses | {"image_features": self._outputs.address})
        shape = (len(pixels), *self._features)
        self._inputs.upload(self._stream, used)
        self._context.enqueue()
        self._outputs.download(self._stream, 4 * math.prod(shape))
        self._stream.synchronize()
        return self._outputs.read(shape)
