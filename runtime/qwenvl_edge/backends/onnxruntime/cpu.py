"""ONNX Runtime on the CPU.

Each buffer of keys or values is bound both as past and as present, so the graphs write the cache in place.

Limit: GroupQueryAttention on CPU takes several tokens after a non-empty cache at batch 1 only. Batched prefill into
an empty cache and batched decode of one token work. The "standard" dialect has no such limit, but its cost grows with
the cache's capacity instead of the tokens in use.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from qwenvl_edge import _core
from qwenvl_edge.backends.base import Backend, FloatArray, Inputs, IntArray, KVCache, Placed, check_finite, splice
from qwenvl_edge.backends.checks import check_cache_size, check_copy, check_pixels
from qwenvl_edge.backends.onnxruntime.session import (
    cache_note,
    can_run,
    compared_products,
    failed,
    fastest_dialect,
    missing,
    open_session,
    vision_graph,
)
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import (
    IMAGE_FEATURES,
    INPUTS_EMBEDS,
    LAST_INDICES,
    LOGITS,
    LOGITS_INDICES,
    NATIVE,
    ONNXRUNTIME,
    PAST,
    PIXEL_VALUES,
    QUERY_SCALE,
    ROPE_COS,
    ROPE_SIN,
    STANDARD,
    TOTAL_LENGTH,
    WRITE_INDICES,
    present_of,
)
from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.errors import BackendError
from qwenvl_edge.families import open_family
from qwenvl_edge.inputs.pictures import Picture, pixel_values

_DTYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}
_INPUTS = (INPUTS_EMBEDS, LOGITS_INDICES, ROPE_COS, ROPE_SIN)
CacheArrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class _Buffers:
    """One cache's memory, by name of the past input, and the binding to which it is bound already."""

    arrays: CacheArrays
    binding: ort.IOBinding


class OnnxRuntimeBackend(Backend):
    """Runs a bundle with ONNX Runtime's CPU provider.

    Args:
        bundle: an opened bundle.
        threads: threads of one operator; None takes one per physical core, or fewer if the process is pinned to fewer.
        dialect: the graphs to run: "native" (needs AVX2, or Arm's dot products), "onnxruntime" or "standard"; None
            takes the fastest, which is measured once per machine.

    Raises:
        BackendError: the bundle has no such graph, ONNX Runtime cannot load it, or an older version exported it.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None, dialect: str | None = None):
        graphs = bundle.manifest.graphs
        if threads is not None and threads < 1:
            raise BackendError(f"threads is {threads}; it must be at least 1.")
        compared = None if dialect else compared_products(bundle, threads)
        dialect = dialect or fastest_dialect(bundle, threads)
        if dialect not in graphs.decoder:
            raise BackendError(f'the bundle has no decoder graph "{dialect}"; it has {", ".join(graphs.decoder)}.')
        if not can_run(dialect):
            raise BackendError(f'the "{dialect}" decoder needs {missing(dialect)}; use the dialect "{ONNXRUNTIME}".')
        self.model: ModelInfo = bundle.manifest.model
        self.family = open_family(bundle.manifest)
        self.dialect = dialect
        self.description = f"ONNX Runtime {ort.__version__} on the CPU"
        if compared is not None:
            self.description += f", {compared}"
        elif dialect == NATIVE:
            self.description += f", matrix products by the native core ({_core.multiply_variant()})"
        if dialect != STANDARD:
            self.description += cache_note(bundle)
        compute = bundle.manifest.precision.compute
        if "bf16" in compute.values():
            raise BackendError(
                "ONNX Runtime computes bfloat16 on GPUs only; for the CPU export the bundle in fp32, int8 or int4."
            )
        self._vision = open_session(bundle, vision_graph(bundle, dialect), threads, "vision")
        self._decoder = open_session(bundle, graphs.decoder[dialect], threads, "decoder")
        check_inputs(self._decoder, bundle.file(graphs.decoder[dialect]), dialect)
        # By name: dtype, heads, and the shape after the capacity: [D], or [] of a scale.
        self._cache = {
            node.name: (np.dtype(_DTYPES[node.type]), node.shape[1], node.shape[3:])
            for node in self._decoder.get_inputs()
            if node.name.startswith(PAST)
        }

    def encode(self, picture: Picture) -> FloatArray:
        """See Backend.encode."""
        features: FloatArray = self._encode(pixel_values(picture, self.family.preprocessing)[None])[0]
        return features

    def encode_pixels(self, pixels: FloatArray) -> FloatArray:
        """Encode preprocessed pictures [N, 3, S, S] float32 to features [N, Q, H] float32, for verification.

        Raises:
            BackendError: wrong shape or dtype, the library failed, or the features hold NaN or infinity.
        """
        check_pixels(pixels, self.family.preprocessing.image_size)
        return self._encode(pixels)

    def _encode(self, pixels: FloatArray) -> FloatArray:
        try:
            features: FloatArray = self._vision.run([IMAGE_FEATURES], {PIXEL_VALUES: pixels})[0]
        except Exception as error:
            raise failed("encode the pictures", error) from None
        check_finite(features, "image features")
        return features

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """See Backend.new_cache. The system gives the memory page by page, as the cache fills."""
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
            binding.bind_ortvalue_output(present_of(past), value)
        return _Buffers(arrays, binding)

    def copy_cache(self, source: KVCache, target: KVCache, tokens: int, *, row: int = 0) -> None:
        """See Backend.copy_cache."""
        check_copy(source, target, tokens, row)
        for name, array in source.buffers.arrays.items():
            target.buffers.arrays[name][row, :, :tokens] = array[0, :, :tokens]
        target.length = max(target.length, tokens)

    def _decode(self, cache: KVCache, inputs: Inputs, pictures: Sequence[Placed], length: int) -> FloatArray:
        if pictures:
            splice(inputs[INPUTS_EMBEDS], pictures)
        tokens = inputs[INPUTS_EMBEDS].shape[1]
        if self.dialect != STANDARD and cache.batch > 1 and tokens > 1 and inputs[WRITE_INDICES].any():
            raise BackendError(
                f"ONNX Runtime's CPU attention takes {tokens} tokens behind a non-empty cache at batch 1 only, not "
                f"{cache.batch}; prefill the whole batch at once, or one row at a time."
            )
        given = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        if self.dialect != STANDARD:
            given[LAST_INDICES] = last_indices(given.pop(WRITE_INDICES), tokens)
            given[TOTAL_LENGTH] = np.array([length], np.int32)
        binding = cache.buffers.binding
        for name, array in given.items():
            binding.bind_cpu_input(name, array)
        # ONNX Runtime writes the logits into the array that is returned: a buffer of its own would have to be copied.
        logits = np.empty((*inputs[LOGITS_INDICES].shape, self.model.vocab_size), np.float32)
        address = logits.__array_interface__["data"][0]
        binding.bind_output(LOGITS, "cpu", 0, np.float32, logits.shape, address)
        try:
            self._decoder.run_with_iobinding(binding)
        except Exception as error:
            raise failed("decode", error) from None
        return logits

    def _clear(self, cache: KVCache) -> None:
        for array in cache.buffers.arrays.values():
            array.fill(0)


def last_indices(write_indices: IntArray, tokens: int) -> npt.NDArray[np.int32]:
    """Return the cache position of each row's last token [B], from that of its first."""
    last: npt.NDArray[np.int32] = (write_indices + (tokens - 1)).astype(np.int32)
    return last


def check_inputs(decoder: ort.InferenceSession, path: Path, dialect: str) -> None:
    """Check that a decoder from `path` has the inputs of its dialect, beside the cache's.

    Raises:
        BackendError: it has other inputs, because another version exported it.
    """
    found = {node.name for node in decoder.get_inputs() if not node.name.startswith(PAST)}
    wanted = {*_INPUTS, *((WRITE_INDICES,) if dialect == STANDARD else (LAST_INDICES, TOTAL_LENGTH))}
    wanted |= found & {QUERY_SCALE}  # there where the family scales queries
    differences = [f"lacks the input {name}" for name in sorted(wanted - found)]
    differences += [f"has the unknown input {name}" for name in sorted(found - wanted)]
    if differences:
        raise BackendError(
            f'"{path}" {" and ".join(differences)}: the bundle was exported by another version of Qwen-VL Edge; '
            "export it again."
        )
