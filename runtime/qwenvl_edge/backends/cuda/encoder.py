"""Pictures become features that stay in the GPU's memory, from where a decode call puts them into the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from qwenvl_edge.backends.base import FloatArray, Inputs, check_finite
from qwenvl_edge.backends.checks import check_pixels
from qwenvl_edge.backends.cuda.features import DeviceFeatures
from qwenvl_edge.backends.cuda.frame_kernels import FrameKernels
from qwenvl_edge.backends.cuda.outputs import Output
from qwenvl_edge.backends.cuda.pictures import DevicePicture
from qwenvl_edge.backends.cuda.pixel_values import DeviceArray, PixelValues
from qwenvl_edge.backends.kept import parts_at_once
from qwenvl_edge.bundle.contract import DEEPSTACK_FEATURES, IMAGE_FEATURES, PIXEL_VALUES
from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.families.base import Family
from qwenvl_edge.families.pieces import PictureLayout
from qwenvl_edge.inputs.clips import Clip, Visual
from qwenvl_edge.machine.cuda import Cuda, Stream

Shapes = Mapping[str, tuple[int, ...]]


class VisionGraph(Protocol):
    """Runs a vision graph on the encoder's stream."""

    @property
    def most(self) -> int | None:
        """Pictures, or parts of a clip, per run at most; None: any number."""

    def run(self, inputs: Inputs, shapes: Shapes, pixels: DeviceArray | None = None) -> Mapping[str, Output]:
        """Run on inputs by name; return the outputs, whose shapes are given, waited for and unchecked.

        pixels: pixel_values in the GPU's memory, written by the work queued so far; None: they are among the inputs.

        Raises:
            BackendError: the graph takes no picture of this size, or the library failed.
        """


class PictureEncoder:
    """Encodes pictures and clips of the host or the GPU with a vision graph, all on one stream."""

    def __init__(
        self, cuda: Cuda, stream: Stream, kernels: FrameKernels, family: Family, model: ModelInfo, graph: VisionGraph
    ):
        self._cuda = cuda
        self._stream = stream
        self._family = family
        self._preprocessing = family.preprocessing
        self._model = model
        self._graph = graph
        self._pixel_values = PixelValues(cuda, kernels, stream)

    def encode(self, picture: Visual) -> DeviceFeatures:
        """See Backend.encode; pictures in the GPU's memory are resized and normalised there."""
        layout = picture.layout(self._family)
        frames = picture.frames if isinstance(picture, Clip) else (picture,)
        on_gpu = [frame for frame in frames if isinstance(frame, DevicePicture)]
        if len(on_gpu) == len(frames):
            runs = self._on_gpu(on_gpu, layout)
        else:
            runs = self._runs(picture.vision_inputs(self._family))
        features = DeviceFeatures(self._cuda, layout.tokens, self._model)
        row = 0
        for outputs in runs:
            with self._stream.waited_for():
                row += features.put(self._stream, row, self._checked(outputs))
        return features

    def run_vision(self, inputs: Inputs) -> dict[str, FloatArray]:
        """Run the vision graph on inputs as Family.vision_inputs gives them; return its outputs on the host, by name.

        Raises:
            BackendError: the library failed, or the features hold NaN or infinity.
        """
        parts = [
            {name: output.values.copy() for name, output in self._checked(outputs).items()}
            for outputs in self._runs(inputs)
        ]
        return {name: np.concatenate([part[name] for part in parts], axis=-3) for name in parts[0]}

    def encode_pixels(self, pixels: FloatArray) -> FloatArray:
        """Encode preprocessed pictures [N, 3, S, S] float32 to features [N, Q, H] on the host, for verification.

        Raises:
            BackendError: wrong shape or dtype, the library failed, or the features hold NaN or infinity.
        """
        check_pixels(pixels, self._preprocessing.image_size)
        return self.run_vision({PIXEL_VALUES: pixels})[IMAGE_FEATURES]

    def _runs(self, inputs: Inputs) -> Iterator[Mapping[str, Output]]:
        """The outputs of one run after the other on pixel values of the host."""
        pixels = inputs[PIXEL_VALUES]
        step = parts_at_once(pixels.shape, self._graph.most)
        for start in range(0, len(pixels), step):
            part = np.ascontiguousarray(pixels[start : start + step])
            yield self._graph.run({**inputs, PIXEL_VALUES: part}, self.shapes(part.shape))

    def _on_gpu(self, frames: list[DevicePicture], layout: PictureLayout) -> Iterator[Mapping[str, Output]]:
        """As _runs, of frames in the GPU's memory."""
        how, tables = self._preprocessing, self._family.vision_tables(layout)
        if (cut := how.patches) is None:
            pixels = self._pixel_values.compute(frames[0], how)
            yield self._graph.run(tables, self.shapes(pixels.shape), pixels)
            return
        patches = layout.grid[1] * layout.grid[2] * cut.merge**2
        step = parts_at_once((layout.grid[0], patches, 0), self._graph.most) * cut.frames
        for start in range(0, len(frames), step):
            pixels = self._pixel_values.patches(frames[start : start + step], how, cut, layout)
            yield self._graph.run(tables, self.shapes(pixels.shape), pixels)

    def shapes(self, pixels: tuple[int, ...]) -> Shapes:
        """Return the shapes of the outputs for pixel_values of a shape."""
        cut, width = self._preprocessing.patches, self._model.hidden_size
        rows = self._family.largest_layout().tokens if cut is None else pixels[1] // cut.merge**2
        shapes: dict[str, tuple[int, ...]] = {IMAGE_FEATURES: (pixels[0], rows, width)}
        if layers := self._model.deepstack_layers:
            shapes[DEEPSTACK_FEATURES] = (layers, *shapes[IMAGE_FEATURES])
        return shapes

    @staticmethod
    def _checked(outputs: Mapping[str, Output]) -> Mapping[str, Output]:
        for name, output in outputs.items():
            check_finite(output.values, name.replace("_", " "))
        return outputs
