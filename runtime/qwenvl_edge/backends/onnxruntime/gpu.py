"""ONNX Runtime on a GPU: caches, inputs and logits in memory that cuda-python holds, bound by address.

The graphs run on a stream of ours, so that copies and kernels need no waiting in between; a call waits once, for its
logits. Decoding one token a row is captured by ONNX Runtime as a CUDA graph, one a cache. What it reads on the host is
fixed then: attention's total length is the cache's capacity, by which it is divided among the processors; how many
tokens each row really has lies on the GPU.

GroupQueryAttention computes in fp16 or bf16 on GPUs, so the bundle must have been exported for one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from qwenvl_edge.backends.base import FloatArray, Placed
from qwenvl_edge.backends.checked import Inputs
from qwenvl_edge.backends.cuda.backend import CudaBackend, splice
from qwenvl_edge.backends.cuda.cache import CacheMemory, CacheTensor, row_bytes
from qwenvl_edge.backends.cuda.device import ALIGNMENT, Cuda, Staging, Stream
from qwenvl_edge.backends.kv_cache import KVCache
from qwenvl_edge.backends.onnxruntime.cpu import check_inputs
from qwenvl_edge.backends.onnxruntime.session import cache_note, failed
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import (
    IMAGE_FEATURES,
    INPUTS_EMBEDS,
    LOGITS,
    LOGITS_INDICES,
    ONNXRUNTIME,
    PAST,
    PIXEL_VALUES,
    POSITION_IDS,
    TOTAL_LENGTH,
    past_name,
    present_of,
)
from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.errors import BackendError

_PROVIDER = "CUDAExecutionProvider"
_FLOATS = {"fp16": 10, "bf16": 16}  # ONNX's numbers of the types; NumPy has no bfloat16
_NOT_CAPTURED = "-1"  # the gpu_graph_id of a call that ONNX Runtime shall neither capture nor replay


@dataclass
class _Buffers:
    """One cache: its memory, its binding, and what decodes a token into it, captured under the number `graph`."""

    memory: CacheMemory
    binding: Any
    step: _Exchange
    graph: int


class OnnxRuntimeCudaBackend(CudaBackend):
    """Runs a bundle with ONNX Runtime's CUDA provider.

    Raises:
        BackendError: as check_cuda, or ONNX Runtime cannot load the bundle or start on the GPU.
    """

    def __init__(self, bundle: Bundle):
        check_cuda(bundle)
        super().__init__(Cuda.open())
        manifest = bundle.manifest
        self.model: ModelInfo = manifest.model
        self._float = _FLOATS[manifest.precision.compute["decoder"]]
        self._vision = self._session(bundle, manifest.graphs.vision)
        decoder = manifest.graphs.decoder[ONNXRUNTIME]
        refusal = ""
        try:
            self._decoder = self._session(bundle, decoder, capture=True)
        except BackendError as error:
            self._decoder = self._session(bundle, decoder)
            refusal = str(error)
        self.captures = not refusal
        check_inputs(self._decoder, bundle.file(decoder), ONNXRUNTIME)
        self._large = _Exchange(self.cuda, self.stream)
        self._graphs = itertools.count(1)
        names = [past_name(i, part) for i in range(self.model.num_layers) for part in ("key", "value")]
        self._tensors = [CacheTensor(name, self.model.num_kv_heads, (self.model.head_dim,), 2) for name in names]
        how = "a CUDA graph a token" if self.captures else f"without CUDA graphs ({refusal})"
        self.description = (
            f"ONNX Runtime {ort.__version__} on {self.cuda.name} (sm_{self.cuda.compute_capability}), {how}"
            + cache_note(bundle)
        )

    @property
    def _most_images(self) -> None:
        return None

    def cache_bytes(self, capacity: int) -> int:
        """See Backend.cache_bytes."""
        return row_bytes(self._tensors, capacity)

    def _encode(self, pixel_values: FloatArray) -> Staging:
        shape = (len(pixel_values), self.model.image_tokens, self.model.hidden_size)
        binding = self._vision.io_binding()
        return self._large.run(self._vision, binding, {PIXEL_VALUES: pixel_values}, IMAGE_FEATURES, shape)

    def _encode_at(self, address: int) -> Staging:
        binding, side = self._vision.io_binding(), self.model.image_size
        binding.bind_input(PIXEL_VALUES, "cuda", 0, np.float32, (1, 3, side, side), address)
        shape = (1, self.model.image_tokens, self.model.hidden_size)
        return self._large.run(self._vision, binding, {}, IMAGE_FEATURES, shape)

    def _memory(self, batch: int, capacity: int) -> CacheMemory:
        """2 * layers * batch * heads * capacity * head_dim numbers of 2 bytes."""
        head_dim = self.model.head_dim
        return CacheMemory(self.cuda, self.stream, self._tensors, batch=batch, capacity=capacity, head_dim=head_dim)

    def _decode(self, cache: KVCache, inputs: Inputs, pictures: Sequence[Placed], length: int) -> FloatArray:
        (batch, tokens), rows = inputs[POSITION_IDS].shape, inputs[LOGITS_INDICES].shape[1]
        if tokens > 1 and batch > 1 and length > tokens:
            raise BackendError(
                f"ONNX Runtime's attention takes {tokens} tokens behind a non-empty cache at batch 1 only, not "
                f"{batch}; prefill the whole batch at once, or one row at a time."
            )
        buffers: _Buffers = cache.buffers
        is_step = tokens == rows == 1
        exchange = buffers.step if is_step else self._large
        if not rows:  # one row for nothing rather than an output without memory
            inputs = {**inputs, LOGITS_INDICES: np.zeros((batch, 1), np.int64)}
        shape = (batch, max(rows, 1), self.model.vocab_size)
        captured = is_step and self.captures
        total = np.array([cache.capacity if captured else length], np.int32)
        buffers.memory.use_tables(cache)
        buffers.binding.bind_cpu_input(TOTAL_LENGTH, total)
        graph = (str(buffers.graph) if captured else _NOT_CAPTURED) if self.captures else None
        output = exchange.run(self._decoder, buffers.binding, inputs, LOGITS, shape, graph, pictures)
        logits: FloatArray = output.view(shape)[:, :rows].copy()
        return logits

    def _buffers(self, memory: CacheMemory) -> _Buffers:
        binding = self._decoder.io_binding()
        for name, shape in memory.shapes.items():
            dtype = self._float if name.startswith(PAST) else np.float32
            binding.bind_input(name, "cuda", 0, dtype, shape, memory.addresses[name])
            if name.startswith(PAST):
                present = present_of(name)
                binding.bind_output(present, "cuda", 0, dtype, shape, memory.addresses[present])
        return _Buffers(memory, binding, _Exchange(self.cuda, self.stream), next(self._graphs))

    def _session(self, bundle: Bundle, name: str, *, capture: bool = False) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        provider = {"device_id": "0", "user_compute_stream": str(self.stream.handle)}
        if capture:
            provider["enable_cuda_graph"] = "1"
        path = bundle.file(name)
        try:
            session = ort.InferenceSession(str(path), options, providers=[(_PROVIDER, provider)])
        except Exception as error:
            raise failed(f'load "{path}" on the GPU', error) from None
        if _PROVIDER not in session.get_providers():  # it falls back to the CPU without an error
            raise BackendError(
                f"ONNX Runtime {ort.__version__} could not start on the GPU; check that the CUDA and cuDNN that it "
                "was built for are installed."
            )
        return session


class _Exchange:
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
        """Run on arrays; the float32 output of `shape`, at the beginning of a buffer that the next run overwrites.

        graph: ONNX Runtime's gpu_graph_id. pictures: features to put over inputs_embeds.

        Raises:
            BackendError: ONNX Runtime or CUDA failed.
        """
        self._reserve(inputs, shape)
        addresses, used = self._inputs.write(inputs)
        for name, array in inputs.items():
            binding.bind_input(name, "cuda", 0, array.dtype.type, array.shape, addresses[name])
        binding.bind_output(output, "cuda", 0, np.float32, shape, self._output.address)
        options = ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")  # the logits are waited for
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


def check_cuda(bundle: Bundle) -> Cuda:
    """Check that ONNX Runtime can run the bundle on a GPU here, before anything is loaded; return the GPU.

    Raises:
        BackendError: it was built without CUDA, there is no GPU, or the bundle computes in float32.
    """
    if _PROVIDER not in ort.get_available_providers():
        raise BackendError(
            f"ONNX Runtime {ort.__version__} is installed without CUDA; for a GPU run: "
            "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
        )
    compute = bundle.manifest.precision.compute["decoder"]
    if compute not in _FLOATS:
        raise BackendError(
            f"the bundle's decoder computes in {compute}, but ONNX Runtime's attention takes fp16 or bf16 on a GPU; "
            "export it with --target gpu or --precision fp16"
        )
    return Cuda.open()
