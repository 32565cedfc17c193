"""vision.plan as the encoder of pictures runs it: preprocessed pictures of the host or the GPU in, features out."""

from __future__ import annotations

import math

from qwenvl_edge.backends.base import Inputs
from qwenvl_edge.backends.cuda.encoder import Shapes
from qwenvl_edge.backends.cuda.outputs import Output, Outputs
from qwenvl_edge.backends.cuda.pixel_values import DeviceArray
from qwenvl_edge.backends.tensorrt.engine import TensorRTEngine
from qwenvl_edge.bundle.contract import DEEPSTACK_FEATURES, IMAGE_FEATURES, PIXEL_VALUES
from qwenvl_edge.bundle.engines import Plan
from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.errors import BackendError
from qwenvl_edge.machine.cuda import ALIGNMENT, Cuda, DeviceMemory, Staging, Stream


class PlanVision:
    """Runs vision.plan. most: pictures, or parts of a clip, per run at most. pixels: the largest pixel_values.

    Raises:
        BackendError: the engine is not that of the bundle, or there is not enough memory for its buffers.
    """

    def __init__(
        self, engine: TensorRTEngine, plan: Plan, model: ModelInfo, cuda: Cuda, stream: Stream, scratch: DeviceMemory
    ):
        deepstack = [DEEPSTACK_FEATURES] if model.deepstack_layers else []
        engine.check_tensors(dict.fromkeys([PIXEL_VALUES, IMAGE_FEATURES, *deepstack], "FLOAT"))
        self._engine = engine
        self._stream = stream
        self._rebuild = plan.rebuild
        self.most = plan.manifest.limits.max_images
        tensors = [tensor for tensor in engine.tensors.values() if tensor.is_input]
        self._largest = {tensor.name: engine.largest(tensor.name) for tensor in tensors}
        self.pixels = self._largest[PIXEL_VALUES]
        sizes = (tensor.item_bytes * math.prod(self._largest[tensor.name]) + ALIGNMENT for tensor in tensors)
        self._inputs = Staging(cuda, sum(sizes))
        self._outputs = Outputs(cuda)
        self._context = engine.context(0, stream, scratch)

    def reserve(self, shapes: Shapes) -> None:
        """Reserve room for outputs of these shapes, so that no call need."""
        self._outputs.place(shapes)

    def run(self, inputs: Inputs, shapes: Shapes, pixels: DeviceArray | None = None) -> dict[str, Output]:
        """See VisionGraph.run; N is at most `most`.

        Raises:
            BackendError: the plan takes smaller pictures only, or TensorRT or CUDA failed.
        """
        given = {name: array.shape for name, array in inputs.items()}
        if pixels is not None:
            given[PIXEL_VALUES] = pixels.shape
        self._check(given)
        addresses, used = self._inputs.write(inputs)
        if pixels is not None:
            addresses[PIXEL_VALUES] = pixels.address
        outputs = self._outputs.place(shapes)
        self._context.bind(given, addresses | {name: output.address for name, output in outputs.items()})
        with self._stream.waited_for():
            self._inputs.upload(self._stream, used)
            self._context.enqueue()
            self._outputs.download(self._stream, shapes)
        self._engine.keep_kernels()
        return outputs

    def _check(self, given: Shapes) -> None:
        """Check the sizes before anything is written into buffers that are made for the largest ones."""
        for name, shape in given.items():
            largest = self._largest[name]
            if len(shape) != len(largest) or any(size > most for size, most in zip(shape, largest, strict=True)):
                raise BackendError(
                    f"the plan takes {name} up to {list(largest)}, a picture has {list(shape)}; give a smaller "
                    f"max_pixels, or export the bundle with a larger --max-pixels and build with `{self._rebuild}`."
                )
