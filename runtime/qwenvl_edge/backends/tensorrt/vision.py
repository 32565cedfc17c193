"""vision.plan: preprocessed pictures, brought up or there already; image features down."""

from __future__ import annotations

import math

from qwenvl_edge.backends.base import FloatArray
from qwenvl_edge.backends.cuda.device import ALIGNMENT, Cuda, DeviceMemory, Staging, Stream
from qwenvl_edge.backends.tensorrt.engine import Engine
from qwenvl_edge.bundle.contract import IMAGE_FEATURES, PIXEL_VALUES
from qwenvl_edge.bundle.engines import Plan
from qwenvl_edge.bundle.manifest import ModelInfo


class PlanVision:
    """Runs vision.plan. most: how many pictures it takes at once.

    Raises:
        BackendError: the engine is not that of the bundle, or there is no memory for its buffers.
    """

    def __init__(self, engine: Engine, plan: Plan, model: ModelInfo, cuda: Cuda, stream: Stream, scratch: DeviceMemory):
        engine.check_tensors({PIXEL_VALUES: "FLOAT", IMAGE_FEATURES: "FLOAT"})
        self._stream = stream
        self.most = plan.manifest.limits.max_images
        self._picture = (3, model.image_size, model.image_size)
        self._features = (model.image_tokens, model.hidden_size)
        self._inputs = Staging(cuda, 4 * self.most * math.prod(self._picture) + ALIGNMENT)
        self._outputs = Staging(cuda, 4 * self.most * math.prod(self._features))
        self._context = engine.context(0, stream, scratch)

    def encode(self, pixels: FloatArray) -> Staging:
        """[N, 3, S, S], N at most `most` -> [N, Q, H] at the beginning of a buffer that the next call overwrites.

        Raises:
            BackendError: TensorRT or CUDA failed.
        """
        addresses, used = self._inputs.write({PIXEL_VALUES: pixels})
        return self._run(addresses[PIXEL_VALUES], len(pixels), used)

    def encode_at(self, address: int) -> Staging:
        """As encode, of one picture that the stream's work so far writes to an address of the GPU."""
        return self._run(address, 1, 0)

    def _run(self, address: int, count: int, upload: int) -> Staging:
        """Encode what lies at an address once so many bytes of the staged inputs are there."""
        shapes = {PIXEL_VALUES: (count, *self._picture)}
        self._context.bind(shapes, {PIXEL_VALUES: address, IMAGE_FEATURES: self._outputs.address})
        with self._stream.waited_for():
            self._inputs.upload(self._stream, upload)
            self._context.enqueue()
            self._outputs.download(self._stream, 4 * count * math.prod(self._features))
        return self._outputs
