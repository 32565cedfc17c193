"""ONNX Runtime on the CPU.

Each buffer of keys or values is bound both as past and as present, so the graphs write the cache in place.

Limit: GroupQueryAttention on CPU takes several tokens after a non-empty cache at batch 1 only. Batched prefill into
an empty cache and batched decode of one token work. The "standard" dialect has no such limit, but its cost grows with
the cache's capacity instead of the tokens in use. The native core's attention has neither.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from qwenvl_edge import _core
from qwenvl_edge.backends.base import (
    Backend,
    DeepFeatures,
    Features,
    FloatArray,
    Inputs,
    IntArray,
    KVCache,
    Placed,
    check_finite,
    splice,
)
from qwenvl_edge.backends.checks import check_cache_size, check_copy, check_pixels
from qwenvl_edge.backends.kept import check_picture_fits, parts_at_once
from qwenvl_edge.backends.onnxruntime.graph_checks import check_decoder, check_vision
from qwenvl_edge.backends.onnxruntime.session import (
    cache_note,
    can_run,
    compared_products,
    failed,
    fastest_dialect,
    has_native_attention,
    missing,
    open_session,
    runs_native_vision,
    vision_graph,
)
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import (
    DEEPSTACK_FEATURES,
    IMAGE_FEATURES,
    INPUTS_EMBEDS,
    LAST_INDICES,
    LOGITS,
    LOGITS_INDICES,
    NATIVE,
    ONNXRUNTIME,
    PAST,
    PIXEL_VALUES,
    STANDARD,
    TOTAL_LENGTH,
    WRITE_INDICES,
    present_of,
)
from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.errors import BackendError
from qwenvl_edge.families import open_family
from qwenvl_edge.inputs.clips import Visual
from qwenvl_edge.machine.memory import available_bytes

_DTYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}
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
        self._workspace = bundle.manifest.workspace
        self._most_tokens = self.family.largest_layout().tokens
        self.dialect = dialect
        self.description = f"ONNX Runtime {ort.__version__} on the CPU"
        if compared is not None:
            self.description += f", {compared}"
        elif dialect == NATIVE:
            self.description += f", matrix products by the native core ({_core.multiply_variant()})"
        if runs_native_vision(bundle, dialect):
            self.description += ", pictures by the native core"
        if dialect != STANDARD:
            self.description += cache_note(bundle)
        compute = bundle.manifest.precision.compute
        if "bf16" in compute.values():
            raise BackendError(
                "ONNX Runtime computes bfloat16 on GPUs only; for the CPU export the bundle in fp32, int8 or int4."
            )
        self._vision = open_session(bundle, vision_graph(bundle, dialect), threads, "vision")
        self._decoder = open_session(bundle, graphs.decoder[dialect], threads, "decoder")
        check_vision(self._vision, bundle.file(vision_graph(bundle, dialect)), self.model, self.family)
        check_decoder(self._decoder, bundle.file(graphs.decoder[dialect]), dialect, self.model)
        native = dialect == NATIVE and has_native_attention(bundle)
        self._takes_one_row = dialect != STANDARD and not native
        self.features_type: type[Features] = DeepFeatures if self.model.deepstack_layers else np.ndarray
        # By name: dtype, heads, and the shape after the capacity: [D], or [] of a scale.
        self._cache = {
            node.name: (np.dtype(_DTYPES[node.type]), node.shape[1], node.shape[3:])
            for node in self._decoder.get_inputs()
            if node.name.startswith(PAST)
        }

    def encode(self, picture: Visual) -> Features:
        """See Backend.encode; refuses a picture for which there is not enough memory."""
        layout = picture.layout(self.family)
        if layout.tokens > self._most_tokens:  # else room for it was made sure of when the bundle was opened
            check_picture_fits(self._workspace, self.family, layout, available_bytes())
        found = self.run_vision(picture.vision_inputs(self.family))
        rows = found[IMAGE_FEATURES].reshape(layout.tokens, -1)
        if DEEPSTACK_FEATURES not in found:
            return rows
        deepstack = found[DEEPSTACK_FEATURES]
        return DeepFeatures(rows, deepstack.reshape(len(deepstack), *rows.shape))

    def encode_pixels(self, pixels: FloatArray) -> FloatArray:
        """Encode preprocessed pictures [N, 3, S, S] float32 to features [N, Q, H] float32, for verification.

        Raises:
            BackendError: wrong shape or dtype, the library failed, or the features hold NaN or infinity.
        """
        check_pixels(pixels, self.family.preprocessing.image_size)
        return self._encode({PIXEL_VALUES: pixels})[IMAGE_FEATURES]

    def run_vision(self, inputs: Inputs) -> dict[str, FloatArray]:
        """Run the vision graph on inputs as Family.vision_inputs gives them; return its outputs by name.

        The parts of a long clip, which do not see each other, are computed some at a time.

        Raises:
            BackendError: the library failed, or the features hold NaN or infinity.
        """
        pixels = inputs[PIXEL_VALUES]
        if len(pixels) == 1:
            return self._encode(inputs)
        step = parts_at_once(pixels.shape)
        parts = [
            self._encode({**inputs, PIXEL_VALUES: pixels[start : start + step]})
            for start in range(0, len(pixels), step)
        ]
        return {name: np.concatenate([part[name] for part in parts], axis=-3) for name in parts[0]}

    def _encode(self, inputs: Inputs) -> dict[str, FloatArray]:
        names = [IMAGE_FEATURES, *([DEEPSTACK_FEATURES] if self.model.deepstack_layers else [])]
        try:
            outputs = dict(zip(names, self._vision.run(names, dict(inputs)), strict=True))
        except Exception as error:
            raise failed("encode the pictures", error) from None
        for name, values in outputs.items():
            check_finite(values, name.replace("_", " "))
        return outputs

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
        given = dict(inputs)
        if pictures:
            splice(given, pictures)
        tokens = inputs[INPUTS_EMBEDS].shape[1]
        if self._takes_one_row and cache.batch > 1 and tokens > 1 and inputs[WRITE_INDICES].any():
            raise BackendError(
                f"ONNX Runtime's CPU attention takes {tokens} tokens after a non-empty cache at batch 1 only, not "
                f"{cache.batch}; prefill the whole batch at once, or one row at a time."
            )
        given = {name: np.ascontiguousarray(array) for name, array in given.items()}
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
