"""Features in the GPU's memory, and how a decode call puts them into its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qwenvl_edge.backends.base import FloatArray, Placed
from qwenvl_edge.backends.cuda.outputs import Output
from qwenvl_edge.backends.cuda.pixel_values import DeviceArray
from qwenvl_edge.bundle.contract import DEEPSTACK_FEATURES, IMAGE_FEATURES
from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.machine.cuda import Cuda, DeviceMemory, Stream


class DeviceFeatures:
    """One picture's features in the GPU's memory: [Q, H] float32, then, for deepstack layers, [L, Q, H]."""

    def __init__(self, cuda: Cuda, rows: int, model: ModelInfo):
        self.row_bytes = 4 * model.hidden_size
        self.layers = model.deepstack_layers
        self._rows = rows
        self.memory = DeviceMemory(cuda, (1 + self.layers) * rows * self.row_bytes)

    def __len__(self) -> int:
        """Number of rows Q."""
        return self._rows

    def address(self, row: int, layer: int = -1) -> int:
        """Address of a row: of the features (-1), or of those for a deepstack layer."""
        return self.memory.address + ((layer + 1) * self._rows + row) * self.row_bytes

    def put(self, stream: Stream, row: int, outputs: Mapping[str, Output]) -> int:
        """Copy a run's outputs to the rows from `row` on; return their number. The caller waits for the stream."""
        count = int(outputs[IMAGE_FEATURES].values.size) * 4 // self.row_bytes
        nbytes = count * self.row_bytes
        stream.copy(self.address(row), outputs[IMAGE_FEATURES].address, nbytes)
        for layer in range(self.layers):
            stream.copy(self.address(row, layer), outputs[DEEPSTACK_FEATURES].address + layer * nbytes, nbytes)
        return count

    def fill(self, stream: Stream, rows: FloatArray, deepstack: FloatArray | None) -> None:
        """Upload rows [Q, H] and deepstack [L, Q, H] of the host."""
        with stream.waited_for():
            stream.upload(self.address(0), rows)
            if deepstack is not None:
                stream.upload(self.address(0, 0), deepstack)


@dataclass(frozen=True)
class Splice:
    """Pictures' features that replace rows of a call's inputs.

    deepstack: that input, [L, B, T, H], in models with such layers; it becomes zero where no picture is.
    """

    pictures: Sequence[Placed]
    deepstack: DeviceArray | None = None

    def enqueue(self, stream: Stream, inputs_embeds: int) -> None:
        """Queue the copies, over the embeddings at an address."""
        layer_bytes = 0
        if self.deepstack is not None:
            address, (layers, batch, tokens, width) = self.deepstack
            layer_bytes = 4 * batch * tokens * width
            stream.clear(address, layers * layer_bytes)
        for picture in self.pictures:
            features: DeviceFeatures = picture.features
            at, nbytes = picture.at * features.row_bytes, picture.count * features.row_bytes
            stream.copy(inputs_embeds + at, features.address(picture.first), nbytes)
            if self.deepstack is None:
                continue
            for layer in range(features.layers):
                target = self.deepstack.address + layer * layer_bytes + at
                stream.copy(target, features.address(picture.first, layer), nbytes)
