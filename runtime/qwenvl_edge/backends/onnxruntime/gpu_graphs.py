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
from qwenvl_edge.backends.cuda.encoder import Shapes
from qwenvl_edge.backends.cuda.features import Splice
from qwenvl_edge.backends.cuda.outputs import Output, Outputs
from qwenvl_edge.backends.cuda.pixel_values import DeviceArray
from qwenvl_edge.backends.onnxruntime.cpu import last_indices
from qwenvl_edge.backends.onnxruntime.session import failed
from qwenvl_edge.bundle.contract import (
    DEEPSTACK,
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
from qwenvl_edge.machine.cuda import ALIGNMENT, Cuda, DeviceMemory, Staging, Stream

_NOT_CAPTURED = "-1"  # the gpu_graph_id of a call that ONNX Runtime must neither capture nor replay


class Exchange:
    """Pinned staging for one kind of call, which grows with the largest one: inputs up, a run, outputs down."""

    def __init__(self, cuda: Cuda, stream: Stream):
        self._cuda = cuda
        self._stream = stream
        self._inputs = Staging(cuda, 0)
        self._outputs = Outputs(cuda)

    def run(
        self,
        session: ort.InferenceSession,
        binding: Any,
        inputs: Inputs,
        shapes: Shapes,
        graph: str | None = None,
        splice: Splice | None = None,
    ) -> dict[str, Output]:
        """Run on arrays; return the float32 outputs, whose `shapes` are given. The next run overwrites them.

        graph: ONNX Runtime's gpu_graph_id. splice: features to copy over inputs_embeds.

        Raises:
            BackendError: ONNX Runtime or CUDA failed.
        """
        if (needed := sum(array.nbytes + ALIGNMENT for array in inputs.values())) > len(self._inputs.host):
            self._inputs = Staging(self._cuda, needed)
        addresses, used = self._inputs.write(inputs)
        outputs = self._outputs.place(shapes)
        for name, array in inputs.items():
            binding.bind_input(name, "cuda", 0, array.dtype.type, array.shape, addresses[name])
        for name, output in outputs.items():
            binding.bind_output(name, "cuda", 0, np.float32, shapes[name], output.address)
        options = ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")  # the outputs are waited for below
        if graph is not None:
            options.add_run_config_entry("gpu_graph_id", graph)
        with self._stream.waited_for():
            self._inputs.upload(self._stream, used)
            if splice is not None:
                splice.enqueue(self._stream, addresses[INPUTS_EMBEDS])
            try:
                session.run_with_iobinding(binding, options)
            except Exception as error:
                raise failed(f"compute the {next(iter(shapes)).replace('_', ' ')}", error) from None
            self._outputs.download(self._stream, shapes)
        return outputs


class OrtVision:
    """The vision graph, as the encoder of pictures runs it."""

    most = None

    def __init__(self, session: ort.InferenceSession, exchange: Exchange):
        self._session = session
        self._exchange = exchange

    def run(self, inputs: Inputs, shapes: Shapes, pixels: DeviceArray | None = None) -> dict[str, Output]:
        """See VisionGraph.run."""
        binding = self._session.io_binding()
        if pixels is not None:
            binding.bind_input(PIXEL_VALUES, "cuda", 0, np.float32, pixels.shape, pixels.address)
        return self._exchange.run(self._session, binding, inputs, shapes)


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
        self._deepstack = DeviceMemory(cuda, 0)
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
                f"ONNX Runtime's attention takes {tokens} tokens after a non-empty cache at batch 1 only, not "
                f"{batch}; prefill the whole batch at once, or one row at a time."
            )
        buffers: CacheBuffers = cache.buffers
        is_step = tokens == rows == 1
        inputs = {**inputs, LAST_INDICES: last_indices(inputs[WRITE_INDICES], tokens)}
        del inputs[WRITE_INDICES]
        if not rows:  # an output without memory cannot be bound, so one row is computed for nothing
            inputs[LOGITS_INDICES] = np.zeros((batch, 1), np.int64)
        splice = self._splice(buffers.binding, inputs, pictures) if pictures else None
        # What a captured step is bound to may not change, so a token with a picture's row is no such step.
        captured = is_step and self._captures and splice is None
        exchange = buffers.step if is_step and splice is None else self._large
        shape = (batch, max(rows, 1), self._model.vocab_size)
        total = np.array([cache.capacity if captured else length], np.int32)
        buffers.binding.bind_cpu_input(TOTAL_LENGTH, total)
        graph = (str(buffers.graph) if captured else _NOT_CAPTURED) if self._captures else None
        outputs = exchange.run(self._session, buffers.binding, inputs, {LOGITS: shape}, graph, splice)
        logits: FloatArray = outputs[LOGITS].values[:, :rows].copy()
        return logits

    def _splice(self, binding: Any, inputs: dict[str, Any], pictures: Sequence[Placed]) -> Splice:
        """Bind rows for deepstack layers, in models with those, in memory of their own instead of `inputs`."""
        if inputs.pop(DEEPSTACK, None) is None:
            return Splice(pictures)
        shape = (self._model.deepstack_layers, *inputs[INPUTS_EMBEDS].shape)
        if (needed := 4 * math.prod(shape)) > self._deepstack.nbytes:
            self._deepstack = DeviceMemory(self._cuda, needed)
        binding.bind_input(DEEPSTACK, "cuda", 0, np.float32, shape, self._deepstack.address)
        return Splice(pictures, DeviceArray(self._deepstack.address, shape))
