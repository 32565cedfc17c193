"""ONNX Runtime's sessions on the CPU: which graph of a bundle, with which settings, and what they take of memory.

Prepacking copies the weights into the kernels' own order: a token then takes 2.0 instead of 3.5 ms with 29 MB of
weights and 120 instead of 139 ms with 2.4 GB (one thread, Zen 3, ONNX Runtime 1.32), but the copy cannot be dropped
from memory as the mapped file can. So graphs with weights up to 1 GiB are prepacked, and larger ones run from the
file: a picture then takes 1.08 to 1.18 times as long in 8 bits. Only the decoder's integers are always prepacked:
without it the kernels widen whole matrices at every call, and a token takes 100 times as long. The "native" dialect
reads them where they lie.

On x86 without VNNI ONNX Runtime is told to make the signed weights of the picture side unsigned when it loads them
(its sums would saturate: error 0.19 instead of 0.006), which costs a copy of them in memory.
"""

from __future__ import annotations

import os

import numpy as np
import onnxruntime as ort

from qwenvl_edge import _core
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import NATIVE, ONNXRUNTIME, STANDARD
from qwenvl_edge.bundle.manifest import FLOAT_CACHE
from qwenvl_edge.errors import BackendError
from qwenvl_edge.machine.cpu import signed_products_saturate

STANDARD_SINCE = (1, 25)
"""The first ONNX Runtime that can run the "standard" dialect on the CPU (TensorScatter of opset 24)."""
_PROVIDERS = ["CPUExecutionProvider"]
_PREPACK_UP_TO_BYTES = 1 << 30
_BITS = {"int4": 4, "int8": 8}
_CACHE_DTYPES = {"fp32": "float32", "fp16": "float16"}


def vision_graph(bundle: Bundle, dialect: str) -> str:
    """Name of the picture side's graph that goes with a decoder dialect."""
    graphs = bundle.manifest.graphs
    return (dialect != STANDARD and graphs.vision_ort) or graphs.vision


def fastest_dialect(bundle: Bundle) -> str:
    """The one to run a bundle in on this processor."""
    return NATIVE if NATIVE in bundle.manifest.graphs.decoder and can_run(NATIVE) else ONNXRUNTIME


def can_run(dialect: str) -> bool:
    """Whether this machine is for a decoder dialect; `missing` says what it lacks."""
    if dialect == STANDARD:
        return tuple(map(int, ort.__version__.split(".")[:2])) >= STANDARD_SINCE
    return dialect != NATIVE or _core.has_fast_multiply()


def missing(dialect: str) -> str:
    """What a machine lacks that cannot run a dialect."""
    if dialect == NATIVE:
        return "a processor with AVX-512 VNNI"
    return f"ONNX Runtime {'.'.join(map(str, STANDARD_SINCE))} or newer, this is {ort.__version__}"


def weight_bytes(bundle: Bundle, dialect: str) -> int:
    """Anonymous memory that the weights take: prepacked copies, of float16 in float32.

    ONNX Runtime's MatMulNBits keeps a sum beside each block's scale, which makes 4-bit weights in blocks of 32 a fifth
    larger; the native core's copies nothing.
    """
    total = 0.0
    for graph in ("vision",) if dialect == NATIVE else ("vision", "decoder"):
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


def open_session(bundle: Bundle, name: str, threads: int | None, graph: str) -> ort.InferenceSession:
    """Load the file `name` of a bundle, its "vision" or "decoder" `graph`.

    Raises:
        BackendError: ONNX Runtime cannot load it.
    """
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
    if name == bundle.manifest.graphs.decoder.get(NATIVE):
        options.register_custom_ops_library(_core.__file__)
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
