"""ONNX Runtime on the CPU.

Keys and values live in buffers that are bound as past and present at once, so the graphs write the cache in place.

Prepacking copies the weights into the kernels' own order: a token then takes 2.0 instead of 3.5 ms with 29 MB of
weights and 120 instead of 139 ms with 2.4 GB (one thread, Zen 3, ONNX Runtime 1.32), but the copy cannot be dropped
from memory as the mapped file can. So graphs with weights up to 1 GiB are prepacked, and larger ones run from the
file: a picture then takes 1.08 to 1.18 times as long in 8 bits. Only the decoder's integers are always prepacked:
without it the kernels widen whole matrices at every call, and a token takes 100 times as long.

On x86 without VNNI ONNX Runtime is told to make the signed weights of the picture side unsigned when it loads them
(its sums would saturate: error 0.19 instead of 0.006), which costs a copy of them in memory.

Limit: GroupQueryAttention on CPU takes several tokens behind a non-empty cache at batch 1 only. Batched prefill into
an empty cache and batched decode of one token work. The "standard" dialect has no such limit, but its cost follows the
cache's capacity instead of the tokens in use.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from qwenvl_edge.backends.base import (
    FloatArray,
    Placed,
    check_cache_size,
    check_copy,
    check_finite,
    check_pixels,
    splice,
)
from qwenvl_edge.backends.checked import CheckedBackend, Inputs
from qwenvl_edge.bundle import FLOAT_CACHE, Bundle, ModelInfo
from qwenvl_edge.errors import BackendError
from qwenvl_edge.kv_cache import KVCache
from qwenvl_edge.processor import signed_products_saturate

ONNXRUNTIME, STANDARD = "onnxruntime", "standard"
TOTAL = "total_sequence_length"
"""An input of the "onnxruntime" dialect only: the most tokens of any row after a call, int32 [1]."""
STANDARD_SINCE = (1, 25)
"""The first ONNX Runtime that can run the "standard" dialect on the CPU (TensorScatter of opset 24)."""
_PROVIDERS = ["CPUExecutionProvider"]
_PREPACK_UP_TO_BYTES = 1 << 30
_BITS = {"int4": 4, "int8": 8}
_CACHE_DTYPES = {"fp32": "float32", "fp16": "float16"}
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}
_INPUTS = ("inputs_embeds", "position_ids", "write_indices", "logits_indices", "rope_cos", "rope_sin")
CacheArrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class _Buffers:
    """One cache's memory, by graph name of the past input, and the binding that already holds it."""

    arrays: CacheArrays
    binding: ort.IOBinding


class OnnxRuntimeBackend(CheckedBackend):
    """Runs a bundle with ONNX Runtime's CPU provider.

    Args:
        bundle: an opened bundle.
        threads: threads of one operator; None takes one a physical core, or fewer if the process is pinned to fewer.
        dialect: which graphs: "onnxruntime", or "standard" to check those.

    Raises:
        BackendError: the bundle has no such graph, ONNX Runtime cannot load it, or an older version exported it.
    """

    kind = np.ndarray

    def __init__(self, bundle: Bundle, *, threads: int | None = None, dialect: str = ONNXRUNTIME):
        graphs = bundle.manifest.graphs
        if dialect not in graphs.decoder:
            raise BackendError(f'the bundle has no decoder graph "{dialect}"; it has {", ".join(graphs.decoder)}.')
        if not can_run(dialect):
            raise BackendError(
                f'the "{dialect}" decoder needs ONNX Runtime {".".join(map(str, STANDARD_SINCE))} or newer, this is '
                f'{ort.__version__}; use the dialect "{ONNXRUNTIME}".'
            )
        if threads is not None and threads < 1:
            raise BackendError(f"threads is {threads}; it must be at least 1.")
        self.model: ModelInfo = bundle.manifest.model
        self.dialect = dialect
        self.description = f"ONNX Runtime {ort.__version__} on the CPU"
        if dialect == ONNXRUNTIME:
            self.description += cache_note(bundle)
        compute = bundle.manifest.precision.compute
        if "bf16" in compute.values():
            raise BackendError(
                "ONNX Runtime computes bfloat16 on GPUs only; for the CPU export the bundle in fp32, int8 or int4."
            )
        self._vision = _session(bundle, vision_graph(bundle, dialect), threads, "vision")
        self._decoder = _session(bundle, graphs.decoder[dialect], threads, "decoder")
        check_inputs(self._decoder, bundle.file(graphs.decoder[dialect]), dialect)
        # By name: type, and [heads, D] or, of a scale, [heads], around the capacity.
        self._cache = {
            node.name: (np.dtype(_DTYPES[node.type]), node.shape[1], node.shape[3:])
            for node in self._decoder.get_inputs()
            if node.name.startswith("past_key_values.")
        }

    def encode_images(self, pixel_values: FloatArray) -> FloatArray:
        """See Backend.encode_images."""
        check_pixels(self.model, pixel_values)
        try:
            features: FloatArray = self._vision.run(["image_features"], {"pixel_values": pixel_values})[0]
        except Exception as error:
            raise failed("encode the pictures", error) from None
        check_finite(features, "image features")
        return features

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """See Backend.new_cache. What the graph names as past, touched as it fills."""
        check_cache_size(batch, capacity)
        try:
            arrays = {
                name: np.zeros((batch, heads, capacity, *rest), dtype)
                for name, (dtype, heads, rest) in self._cache.items()
            }
        except (MemoryError, ValueError):
            size_gb = float(batch) * self.cache_bytes(capacity) / 1e9
            raise BackendError(
                f"no memory for a KV cache of {capacity:,} tokens and batch {batch} ({size_gb:,.1f} GB); "
                "open a smaller one."
            ) from None
        return KVCache(self.model, batch=batch, capacity=capacity, buffers=self._bind(arrays))

    def cache_bytes(self, capacity: int) -> int:
        """See Backend.cache_bytes."""
        sizes = (dtype.itemsize * heads * math.prod(rest) for dtype, heads, rest in self._cache.values())
        return int(capacity * sum(sizes))

    def rows(self, cache: KVCache, start: int, count: int) -> KVCache:
        """See Backend.rows."""
        arrays = {name: array[start : start + count] for name, array in cache.buffers.arrays.items()}
        view = copy.copy(cache)
        view.batch, view.buffers = count, self._bind(arrays)
        return view

    def _bind(self, arrays: CacheArrays) -> _Buffers:
        binding = self._decoder.io_binding()
        for past, array in arrays.items():
            value = ort.OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(past.replace("past_key_values", "present"), value)
        return _Buffers(arrays, binding)

    def copy_cache(self, source: KVCache, target: KVCache, tokens: int, *, row: int = 0) -> None:
        """See Backend.copy_cache."""
        check_copy(source, target, tokens, row)
        for name, array in source.buffers.arrays.items():
            target.buffers.arrays[name][row, :, :tokens] = array[0, :, :tokens]
        target.length = max(target.length, tokens)

    def _decode(self, cache: KVCache, inputs: Inputs, pictures: Sequence[Placed], length: int) -> FloatArray:
        splice(inputs["inputs_embeds"], pictures)
        tokens = inputs["inputs_embeds"].shape[1]
        if self.dialect == ONNXRUNTIME and cache.batch > 1 and tokens > 1 and inputs["write_indices"].any():
            raise BackendError(
                f"ONNX Runtime's CPU attention takes {tokens} tokens behind a non-empty cache at batch 1 only, not "
                f"{cache.batch}; prefill the whole batch at once, or one row at a time."
            )
        given = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        given |= {"rope_cos": cache.rope_cos, "rope_sin": cache.rope_sin}
        if self.dialect == ONNXRUNTIME:
            given[TOTAL] = np.array([length], np.int32)
        binding = cache.buffers.binding
        for name, array in given.items():
            binding.bind_cpu_input(name, array)
        # ONNX Runtime writes them where they are to be read: its own buffer would be copied.
        logits = np.empty((*inputs["logits_indices"].shape, self.model.vocab_size), np.float32)
        address = logits.__array_interface__["data"][0]
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, address)
        try:
            self._decoder.run_with_iobinding(binding)
        except Exception as error:
            raise failed("decode", error) from None
        return logits

    def _clear(self, cache: KVCache) -> None:
        for array in cache.buffers.arrays.values():
            array.fill(0)


def check_inputs(decoder: ort.InferenceSession, path: Path, dialect: str) -> None:
    """Check that a decoder from `path` has the inputs that are bound to one of its dialect, beside the cache.

    Raises:
        BackendError: it has others; another version exported it.
    """
    found = {node.name for node in decoder.get_inputs() if not node.name.startswith("past_key_values.")}
    wanted = {*_INPUTS, TOTAL} if dialect == ONNXRUNTIME else {*_INPUTS}
    differences = [f"lacks the input {name}" for name in sorted(wanted - found)]
    differences += [f"has the unknown input {name}" for name in sorted(found - wanted)]
    if differences:
        raise BackendError(
            f'"{path}" {" and ".join(differences)}: the bundle was exported by another version of Qwen-VL Edge; '
            "export it again."
        )


def vision_graph(bundle: Bundle, dialect: str) -> str:
    """Name of the picture side's graph in a dialect."""
    graphs = bundle.manifest.graphs
    return (dialect == ONNXRUNTIME and graphs.vision_ort) or graphs.vision


def can_run(dialect: str) -> bool:
    """Whether the installed ONNX Runtime is new enough for a decoder dialect."""
    return dialect != STANDARD or tuple(map(int, ort.__version__.split(".")[:2])) >= STANDARD_SINCE


def weight_bytes(bundle: Bundle) -> int:
    """Anonymous memory that the weights take: prepacked copies, of float16 in float32.

    MatMulNBits keeps a sum beside each block's scale, which makes 4-bit weights in blocks of 32 a fifth larger.
    """
    total = 0.0
    for graph in ("vision", "decoder"):
        precision = getattr(bundle.manifest.precision, graph)
        if _prepacks(bundle, graph) or precision == "fp16" or _makes_unsigned(bundle, graph):
            size = float(bundle.manifest.files[f"{graph}.data"].size)
            if graph == "decoder" and precision in _BITS:
                weight, scale = _BITS[precision] / 8, 4 / bundle.manifest.precision.block_size
                size *= (weight + 2 * scale) / (weight + scale)
            total += size * (2 if precision == "fp16" else 1)
    return int(total)


def cache_note(bundle: Bundle) -> str:
    """What to say where a bundle with an int8 KV cache runs in the "onnxruntime" dialect; empty for others."""
    if bundle.manifest.precision.kv_cache == FLOAT_CACHE:
        return ""
    return ", with a float KV cache, since its attention has no int8 cache with a scale a token"


def cache_item_bytes(bundle: Bundle) -> int:
    """Bytes of one number in the KV cache of the "onnxruntime" dialect."""
    return np.dtype(_CACHE_DTYPES.get(bundle.manifest.precision.compute["decoder"], "float16")).itemsize


def _prepacks(bundle: Bundle, graph: str) -> bool:
    size = bundle.manifest.files[f"{graph}.data"].size
    return size <= _PREPACK_UP_TO_BYTES or (graph == "decoder" and bundle.manifest.precision.decoder in _BITS)


def _makes_unsigned(bundle: Bundle, graph: str) -> bool:
    return graph == "vision" and bundle.manifest.precision.vision == "int8" and signed_products_saturate()


def _session(bundle: Bundle, name: str, threads: int | None, graph: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not _prepacks(bundle, graph):
        options.add_session_config_entry("session.disable_prepacking", "1")
    if _makes_unsigned(bundle, graph):
        options.add_session_config_entry("session.x64quantprecision", "1")
    if graph == "vision":
        # Its threads would go on spinning for a while, in the way of the decoder's.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # From the second picture on, one more block would hold what the first picture's pieces have room for.
        options.enable_mem_pattern = False
    options.intra_op_num_threads = _default_threads() if threads is None else threads
    path = bundle.file(name)
    try:
        return ort.InferenceSession(str(path), options, providers=_PROVIDERS)
    except Exception as error:
        raise failed(f'load "{path}"', error) from None


def _default_threads() -> int:
    """0, which is ONNX Runtime's own choice, unless this process may use fewer processors than there are.

    ONNX Runtime counts the machine's; threads that share a processor would wait for each other in every operator.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return allowed if allowed and allowed < (os.cpu_count() or allowed) else 0


def failed(what: str, error: Exception) -> BackendError:
    """The error to raise where ONNX Runtime failed: what was tried, and its own words."""
    reason = " ".join(str(error).split())[:300]
    return BackendError(f"ONNX Runtime {ort.__version__} could not {what}: {reason}")
