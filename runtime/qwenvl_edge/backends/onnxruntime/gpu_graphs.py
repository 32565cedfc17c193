"""A bundle's two graphs in ONNX Runtime's CUDA provider, bound to memory of the GPU by address.

The graphs run on a stream of the backend's, so copies and kernels need no waiting in between; a call waits once, for
its output. A call of one token per row is captured by ONNX Runtime as a CUDA graph, one per cache. The values that it
reads on the host are fixed then: attention's total length is the cache's capacity, from which it chooses into how many
pieces it divides the keys. The number of tokens that each row really has is read on the GPU.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from qwenvl_edge.backends.base import FloatArray, Inputs, KVCache, Placed
from qwenvl_edge.backends.cuda.cache import CacheMemory, CacheTensor, row_bytes
from qwenvl_edge.backends.cuda.encoder import splice
from qwenvl_edge.backends.onnxruntime.cpu import last_indices
from qwenvl_edge.backends.onnxruntime.session import failed
from qwenvl_edge.bundle.contract import (
    IMAGE_FEATURES,
    INPUTS_EMBEDS,
    LAST_INDICES,
    LOGITS,
    LOGITS_INDICES,
    PIXEL_VALUES,
    TOTAL_LENGTH,
    WRITE_INDICES,
    past_name,
    present_of,
)
from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.errors import BackendError
from qwenvl_edge.machine.cuda import ALIGNMENT, Cuda, Staging, Stream

_NOT_CAPTURED = "-1"  # the gpu_graph_id of a call that ONNX Runtime must neither capture nor replay


class Exchange:
    """Pinned staging for one kind of call, which grows with the largest one: inputs up, a run, one output down."""

    def __init__(self, cuda: Cuda, stream: Stream):
        self._cuda = cuda
        self._stream = stream
        self._inputs = self._output = Staging(cuda, 0)

    def run(
        self,
        session: ort.InferenceSession,
        binding: Any,
        inputs: Inputs,
        output: str,
        shape: tuple[int, ...],
        graph: str | None = None,
        pictures: Sequence[Placed] = (),
    ) -> Staging:
        """Run on arrays; return the float32 output of `shape`, at the beginning of a buffer.

        The next run overwrites the buffer.

        graph: ONNX Runtime's gpu_graph_id. pictures: features to copy over inputs_embeds.

        Raises:
            BackendError: ONNX Runtime or CUDA failed.
        """
        self._reserve(inputs, shape)
        addresses, used = self._inputs.write(inputs)
        for name, array in inputs.items():
            binding.bind_input(name, "cuda", 0, array.dtype.type, array.shape, addresses[name])
        binding.bind_output(output, "cuda", 0, np.float32, shape, self._output.address)
        options = ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")  # the output is waited for below
        if graph is not None:
            options.add_run_config_entry("gpu_graph_id", graph)
        with self._stream.waited_for():
            self._inputs.upload(self._stream, used)
            if pictures:
                splice(self._stream, addresses[INPUTS_EMBEDS], pictures)
            try:
                session.run_with_iobinding(binding, options)
            except Exception as error:
                raise failed(f"compute the {output.replace('_', ' ')}", error) from None
            self._output.download(self._stream, 4 * math.prod(shape))
        return self._output

    def _reserve(self, inputs: Inputs, shape: tuple[int, ...]) -> None:
        if (needed := sum(array.nbytes + ALIGNMENT for array in inputs.values())) > len(self._inputs.host):
            self._inputs = Staging(self._cuda, needed)
        if (needed := 4 * math.prod(shape)) > len(self._output.host):
            self._output = Staging(self._cuda, needed)


class OrtVision:
    """The vision graph, as the encoder of pictures runs it."""

    most = None

    def __init__(self, session: ort.InferenceSession, exchange: Exchange):
        self._session = session
        self._exchange = exchange
        self._picture = tuple(_shape(session.get_inputs(), PIXEL_VALUES)[1:])
        rows, width = _shape(session.get_outputs(), IMAGE_FEATURES)[1:]
        self.features_shape: tuple[int, int] = (rows, width)

    def encode(self, pixels: FloatArray) -> Staging:
        """See VisionGraph.encode."""
        return self._run(self._session.io_binding(), {PIXEL_VALUES: pixels}, len(pixels))

    def encode_at(self, address: int) -> Staging:
        """See VisionGraph.encode_at."""
        binding = self._session.io_binding()
        binding.bind_input(PIXEL_VALUES, "cuda", 0, np.float32, (1, *self._picture), address)
        return self._run(binding, {}, 1)

    def _run(self, binding: Any, inputs: Inputs, count: int) -> Staging:
        return self._exchange.run(self._session, binding, inputs, IMAGE_FEATURES, (count, *self.features_shape))


@dataclass
class CacheBuffers:
    """One cache: its memory, its binding, and the staging of its steps, which are captured under the number `graph`."""

    memory: CacheMemory
    binding: Any
    step: Exchange
    graph: int


class OrtDecoder:
    """The decoder graph. captures: the session captures CUDA graphs. float_type: ONNX's number of the cache's type."""

    def __init__(
        self,
        session: ort.InferenceSession,
        model: ModelInfo,
        cuda: Cuda,
        stream: Stream,
        large: Exchange,
        *,
        captures: bool,
        float_type: int,
    ):
        self._session = session
        self._model = model
        self._cuda = cuda
        self._stream = stream
        self._large = large
        self._captures = captures
        self._float_type = float_type
        self._graphs = itertools.count(1)
        names = [past_name(i, part) for i in range(model.num_layers) for part in ("key", "value")]
        self._tensors = [CacheTensor(name, model.num_kv_heads, (model.head_dim,), 2) for name in names]

    def cache_bytes(self, capacity: int) -> int:
        """Bytes of one row of a cache."""
        return row_bytes(self._tensors, capacity)

    def new_memory(self, batch: int, capacity: int) -> CacheMemory:
        """Memory for a cache: 2 * layers * batch * heads * capacity * head_dim numbers of 2 bytes.

        Raises:
            BackendError: there is not enough.
        """
        return CacheMemory(self._cuda, self._stream, self._tensors, batch=batch, capacity=capacity)

    def new_buffers(self, memory: CacheMemory) -> CacheBuffers:
        """Bind a cache's memory."""
        binding = self._session.io_binding()
        for name, shape in memory.shapes.items():
            present = present_of(name)
            binding.bind_input(name, "cuda", 0, self._float_type, shape, memory.addresses[name])
            binding.bind_output(present, "cuda", 0, self._float_type, shape, memory.addresses[present])
        return CacheBuffers(memory, binding, Exchange(self._cuda, self._stream), next(self._graphs))

    def run(self, cache: KVCache, inputs: Inputs, pictures: Sequence[Placed], length: int) -> FloatArray:
        """See Backend._decode."""
        (batch, tokens, _), rows = inputs[INPUTS_EMBEDS].shape, inputs[LOGITS_INDICES].shape[1]
        if tokens > 1 and batch > 1 and length > tokens:
            raise BackendError(
                f"ONNX Runtime's attention takes {tokens} tokens behind a non-empty cache at batch 1 only, not "
                f"{batch}; prefill the whole batch at once, or one row at a time."
            )
        buffers: CacheBuffers = cache.buffers
        is_step = tokens == rows == 1
        exchange = buffers.step if is_step else self._large
        inputs = {**inputs, LAST_INDICES: last_indices(inputs[WRITE_INDICES], tokens)}
        del inputs[WRITE_INDICES]
        if not rows:  # an output without memory cannot be bound, so one row is computed for nothing
            inputs[LOGITS_INDICES] = np.zeros((batch, 1), np.int64)
        shape = (batch, max(rows, 1), self._model.vocab_size)
        captured = is_step and self._captures
        total = np.array([cache.capacity if captured else length], np.int32)
        buffers.binding.bind_cpu_input(TOTAL_LENGTH, total)
        graph = (str(buffers.graph) if captured else _NOT_CAPTURED) if self._captures else None
        output = exchange.run(self._session, buffers.binding, inputs, LOGITS, shape, graph, pictures)
        logits: FloatArray = output.view(shape)[:, :rows].copy()
        return logits


def _shape(nodes: Sequence[Any], name: str) -> list[Any]:
    return next(list(node.shape) for node in nodes if node.name == name)
