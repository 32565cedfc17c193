"""vision.plan as the encoder of pictures runs it: preprocessed pictures of the host or the GPU in, features out."""

from __future__ import annotations

import math

from qwenvl_edge.backends.base import FloatArray
from qwenvl_edge.backends.tensorrt.engine import TensorRTEngine
from qwenvl_edge.bundle.contract import IMAGE_FEATURES, PIXEL_VALUES
from qwenvl_edge.bundle.engines import Plan
from qwenvl_edge.machine.cuda import ALIGNMENT, Cuda, DeviceMemory, Staging, Stream


class PlanVision:
    """Runs vision.plan. most: pictures per run at most. features_shape: (Q, H) of a picture.

    Raises:
        BackendError: the engine is not that of the bundle, or there is not enough memory for its buffers.
    """

    def __init__(self, engine: TensorRTEngine, plan: Plan, cuda: Cuda, stream: Stream, scratch: DeviceMemory):
        engine.check_tensors({PIXEL_VALUES: "FLOAT", IMAGE_FEATURES: "FLOAT"})
        self._stream = stream
        self.most = plan.manifest.limits.max_images
        self._picture = engine.tensors[PIXEL_VALUES].shape[1:]
        rows, width = engine.tensors[IMAGE_FEATURES].shape[1:]
        self.features_shape = (rows, width)
        self._inputs = Staging(cuda, 4 * self.most * math.prod(self._picture) + ALIGNMENT)
        self._outputs = Staging(cuda, 4 * self.most * rows * width)
        self._context = engine.context(0, stream, scratch)

    def encode(self, pixels: FloatArray) -> Staging:
        """See VisionGraph.encode; N is at most `most`.

        Raises:
            BackendError: TensorRT or CUDA failed.
        """
        addresses, used = self._inputs.write({PIXEL_VALUES: pixels})
        return self._run(addresses[PIXEL_VALUES], len(pixels), used)

    def encode_at(self, address: int) -> Staging:
        """See VisionGraph.encode_at."""
        return self._run(address, 1, 0)

    def _run(self, address: int, count: int, upload: int) -> Staging:
        """Encode `count` pictures at an address, after the upload of the first `upload` bytes of the staged inputs."""
        shapes = {PIXEL_VALUES: (count, *self._picture)}
        self._context.bind(shapes, {PIXEL_VALUES: address, IMAGE_FEATURES: self._outputs.address})
        with self._stream.waited_for():
            self._inputs.upload(self._stream, upload)
            self._context.enqueue()
            self._outputs.download(self._stream, 4 * count * math.prod(self.features_shape))
        return self._outputs
