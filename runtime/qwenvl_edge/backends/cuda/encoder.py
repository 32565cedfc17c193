"""Pictures become features that stay in the GPU's memory, from where a decode call puts them into the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from qwenvl_edge.backends.base import FloatArray, Placed, check_finite
from qwenvl_edge.backends.checks import check_pixels
from qwenvl_edge.backends.cuda.frame_kernels import FrameKernels
from qwenvl_edge.backends.cuda.pictures import DevicePicture
from qwenvl_edge.backends.cuda.pixel_values import PixelValues
from qwenvl_edge.bundle.contract import PIXEL_VALUES
from qwenvl_edge.families.base import Family
from qwenvl_edge.inputs.clips import Visual
from qwenvl_edge.machine.cuda import Cuda, DeviceMemory, Staging, Stream


class DeviceFeatures:
    """One picture's features [Q, H] float32 in the GPU's memory."""

    def __init__(self, cuda: Cuda, rows: int, width: int):
        self.row_bytes = 4 * width
        self.memory = DeviceMemory(cuda, rows * self.row_bytes)

    def __len__(self) -> int:
        """Number of rows Q."""
        return self.memory.nbytes // self.row_bytes


def splice(stream: Stream, inputs_embeds: int, pictures: Sequence[Placed]) -> None:
    """Queue the copies of features over the embeddings at address `inputs_embeds`."""
    for picture in pictures:
        features: DeviceFeatures = picture.features
        row = features.row_bytes
        source = features.memory.address + picture.first * row
        stream.copy(inputs_embeds + picture.at * row, source, picture.count * row)


class VisionGraph(Protocol):
    """Runs a vision graph on the encoder's stream."""

    @property
    def most(self) -> int | None:
        """Pictures per run at most; None: any number."""

    @property
    def features_shape(self) -> tuple[int, int]:
        """Rows Q and width H of a picture's features."""

    def encode(self, pixels: FloatArray) -> Staging:
        """Pictures [N, 3, S, S] -> features [N, Q, H] at the beginning of a buffer, waited for and unchecked."""

    def encode_at(self, address: int) -> Staging:
        """As encode, of one picture that the work queued so far on the stream writes to an address of the GPU."""


class PictureEncoder:
    """Encodes pictures of the host or the GPU with a vision graph, all on one stream."""

    def __init__(self, cuda: Cuda, stream: Stream, kernels: FrameKernels, family: Family, graph: VisionGraph):
        self._cuda = cuda
        self._stream = stream
        self._family = family
        self._preprocessing = family.preprocessing
        self._graph = graph
        self._pixel_values = PixelValues(cuda, kernels, stream)

    def encode(self, picture: Visual) -> DeviceFeatures:
        """See Backend.encode; a picture in the GPU's memory is resized and normalised there."""
        if not isinstance(picture, DevicePicture):
            return self._keep(self._graph.encode(picture.vision_inputs(self._family)[PIXEL_VALUES]))
        with self._stream.waited_for():
            return self._keep(self._graph.encode_at(self._pixel_values.compute(picture, self._preprocessing)))

    def encode_pixels(self, pixels: FloatArray) -> FloatArray:
        """Encode preprocessed pictures [N, 3, S, S] float32 to features [N, Q, H] on the host, for verification.

        Raises:
            BackendError: wrong shape or dtype, the library failed, or the features hold NaN or infinity.
        """
        check_pixels(pixels, self._preprocessing.image_size)
        most = self._graph.most or len(pixels)
        batches = [np.ascontiguousarray(pixels[start : start + most]) for start in range(0, len(pixels), most)]
        return np.concatenate([self._checked(self._graph.encode(batch), len(batch)).copy() for batch in batches])

    def _checked(self, output: Staging, count: int) -> FloatArray:
        """The features [count, Q, H] in a buffer that the next run overwrites, checked for NaN."""
        features = output.view((count, *self._graph.features_shape))
        check_finite(features, "image features")
        return features

    def _keep(self, output: Staging) -> DeviceFeatures:
        """Copy one picture's features, checked, into memory of their own."""
        self._checked(output, 1)
        features = DeviceFeatures(self._cuda, *self._graph.features_shape)
        self._stream.copy(features.memory.address, output.address, features.memory.nbytes)
        self._stream.synchronize()
        return features
