"""ONNX Runtime's sessions on the CPU: choice of the graph, settings, and memory of the weights.

Prepacking copies the weights into the kernels' own order: a token then takes 2.0 instead of 3.5 ms with 29 MB of
weights and 120 instead of 139 ms with 2.4 GB (one thread, Zen 3, ONNX Runtime 1.32). But the system cannot drop the
copy from memory as it can drop the mapped file. So graphs with weights up to 1 GiB are prepacked, and larger ones run
from the file: a picture then takes 1.08 to 1.18 times as long in 8 bits. Only the decoder's integers are always
prepacked: without it the kernels widen whole matrices at every call, and a token takes 100 times as long. The "native"
dialect reads them in place.

On x86 without VNNI the sums of ONNX Runtime's signed products would saturate (error 0.19 instead of 0.006). There it
makes the signed weights of the vision graph unsigned when it loads them, which costs a copy of them in memory.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from qwenvl_edge import _core
from qwenvl_edge.backends.onnxruntime.products import Comparison, compare_products
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import NATIVE, NATIVE_ATTENTION, ONNXRUNTIME, STANDARD
from qwenvl_edge.bundle.manifest import FLOAT_CACHE
from qwenvl_edge.errors import BackendError
from qwenvl_edge.machine.cpu import signed_products_saturate
from qwenvl_edge.machine.forks import keep

STANDARD_SINCE = (1, 25)
"""The first ONNX Runtime that can run the "standard" dialect on the CPU (TensorScatter of opset 24)."""
PROVIDERS = ["CPUExecutionProvider"]
_PREPACK_UP_TO_BYTES = 1 << 30
_SPIN_US = 2000  # longer than the work between two tokens; by itself ONNX Runtime would wait for 20,000 to 40,000
_BITS = {"int4": 4, "int8": 8}
_LONG_BLOCK = 128  # from such blocks on the native core keeps no scales of its own
_KEPT_OF_A_PICTURE = 0.2
"""Share of a picture's values that the native core's operators keep room for: queries, keys, values, rounded rows."""
_TILES = "amx-int8"
"""The native core's products on a processor with AMX."""
_CACHE_DTYPES = {"fp32": "float32", "fp16": "float16"}


def vision_graph(bundle: Bundle, dialect: str) -> str:
    """File name of the vision graph that goes with a decoder dialect on this machine."""
    graphs = bundle.manifest.graphs
    if runs_native_vision(bundle, dialect):
        return graphs.vision_native
    return (dialect != STANDARD and graphs.vision_ort) or graphs.vision


def runs_native_vision(bundle: Bundle, dialect: str) -> bool:
    """True if the picture side runs with the native core's operators here: ahead of ONNX Runtime's in AMX's tiles."""
    return dialect == NATIVE and bool(bundle.manifest.graphs.vision_native) and _core.multiply_variant() == _TILES


def fastest_dialect(bundle: Bundle, threads: int | None = None) -> str:
    """The dialect in which a bundle runs fastest on this machine.

    Bundles with heads that ONNX Runtime's own attention does not take have the "standard" one alone.
    """
    if ONNXRUNTIME not in bundle.manifest.graphs.decoder:
        return STANDARD
    compared = compared_products(bundle, threads)
    return NATIVE if compared and compared.native_is_faster else ONNXRUNTIME


def compared_products(bundle: Bundle, threads: int | None) -> Comparison | None:
    """The measurement that chooses between the products of a bundle's dialects; None where there is no choice."""
    precision = bundle.manifest.precision
    if NATIVE not in bundle.manifest.graphs.decoder or not can_run(NATIVE):
        return None
    return compare_products(_BITS[precision.decoder], precision.block_size, _threads(threads))


def can_run(dialect: str) -> bool:
    """True if this machine can run a decoder dialect; `missing` names what it lacks."""
    if dialect == STANDARD:
        return tuple(map(int, ort.__version__.split(".")[:2])) >= STANDARD_SINCE
    return dialect != NATIVE or _core.multiply_variant() != "portable"


def missing(dialect: str) -> str:
    """Name what this machine lacks to run a dialect."""
    if dialect == NATIVE:
        return "a processor with AVX2, or Arm's dot products"
    return f"ONNX Runtime {'.'.join(map(str, STANDARD_SINCE))} or newer, this is {ort.__version__}"


def weight_bytes(bundle: Bundle, dialect: str, *, saturates: bool | None = None) -> int:
    """Anonymous memory of the weights: prepacked copies, in which float16 has become float32.

    ONNX Runtime's MatMulNBits keeps a sum beside each block's scale, which makes 4-bit weights in blocks of 32 a fifth
    larger. The native core copies no weights, but scales of blocks under 128 as float16; what its tower keeps from one
    picture to the next counts in place of the tower's weights.

    saturates: whether sums of signed 8-bit products saturate on the processor; None: on this machine's.
    """
    total = 0.0
    native = saturates is None and runs_native_vision(bundle, dialect)
    if native:
        total += bundle.manifest.workspace.picture_bytes * _KEPT_OF_A_PICTURE
    for graph in () if native else ("vision",) if dialect == NATIVE else ("vision", "decoder"):
        precision = getattr(bundle.manifest.precision, graph)
        if _prepacks(bundle, graph) or precision == "fp16" or _makes_unsigned(bundle, graph, saturates):
            size = float(bundle.manifest.files[f"{graph}.data"].size)
            if graph == "decoder" and precision in _BITS:
                weight, scale = _BITS[precision] / 8, 4 / bundle.manifest.precision.block_size
                size *= (weight + 2 * scale) / (weight + scale)
            total += size * (2 if precision == "fp16" else 1)
    if dialect == NATIVE and bundle.manifest.precision.block_size < _LONG_BLOCK:
        weight, scale = _BITS[bundle.manifest.precision.decoder] / 8, 4 / bundle.manifest.precision.block_size
        total += bundle.manifest.files["decoder.data"].size * (scale / 2) / (weight + scale)
    return int(total)


def cache_note(bundle: Bundle) -> str:
    """The part of a description that says that an int8 KV cache is not used; empty for a bundle with a float cache."""
    if bundle.manifest.precision.kv_cache == FLOAT_CACHE:
        return ""
    return ", with a float KV cache, since its attention has no int8 cache with a scale a token"


def cache_item_bytes(bundle: Bundle) -> int:
    """Bytes of one number in the KV cache of the fastest dialect."""
    if runs_native_attention(bundle):
        return np.dtype(np.float16).itemsize
    return np.dtype(_CACHE_DTYPES.get(bundle.manifest.precision.compute["decoder"], "float16")).itemsize


def has_native_attention(bundle: Bundle) -> bool:
    """True if a bundle's native decoder has the native core's attention, over a float16 cache; older ones have not.

    A bundle that is only planned, without the graph's file, has what is exported today.
    """
    graph = bundle.manifest.graphs.decoder[NATIVE]
    return graph not in bundle.manifest.files or NATIVE_ATTENTION.encode() in bundle.file(graph).read_bytes()


def runs_native_attention(bundle: Bundle) -> bool:
    """True if a bundle runs with the native core's attention here; it keeps no scores."""
    return fastest_dialect(bundle) == NATIVE and has_native_attention(bundle)


def _prepacks(bundle: Bundle, graph: str) -> bool:
    size = bundle.manifest.files[f"{graph}.data"].size
    return size <= _PREPACK_UP_TO_BYTES or (graph == "decoder" and bundle.manifest.precision.decoder in _BITS)


def _makes_unsigned(bundle: Bundle, graph: str, saturates: bool | None = None) -> bool:
    if graph != "vision" or bundle.manifest.precision.vision != "int8":
        return False
    return signed_products_saturate() if saturates is None else saturates


def session_options(bundle: Bundle, name: str, threads: int | None, graph: str) -> ort.SessionOptions:
    """Settings for the file `name` of a bundle, its "vision" or "decoder" `graph`."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not _prepacks(bundle, graph):
        options.add_session_config_entry("session.disable_prepacking", "1")
    if _makes_unsigned(bundle, graph):
        options.add_session_config_entry("session.x64quantprecision", "1")
    # The threads wait for the next operator actively, and sleep when none came for so long.
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
    if graph == "vision":
        # Otherwise its threads spin for a while after a picture and take processors from the decoder's.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # From the second picture on, a pattern would reserve one more block beside the pieces of the first picture.
        options.enable_mem_pattern = False
    if name in (bundle.manifest.graphs.decoder.get(NATIVE), bundle.manifest.graphs.vision_native):
        options.register_custom_ops_library(_core.__file__)
    options.intra_op_num_threads = _threads(threads)
    return options


def open_session(bundle: Bundle, name: str, threads: int | None, graph: str) -> ort.InferenceSession:
    """Load the file `name` of a bundle, its "vision" or "decoder" `graph`.

    Raises:
        BackendError: ONNX Runtime cannot load it.
    """
    options = session_options(bundle, name, threads, graph)
    path = bundle.file(name)
    weights = give_weights(options, bundle, name, graph)  # noqa: F841 - must live until they are copied
    try:
        return keep(ort.InferenceSession(str(path), options, providers=PROVIDERS))
    except Exception as error:
        raise failed(f'load "{path}"', error) from None


def give_weights(options: ort.SessionOptions, bundle: Bundle, name: str, graph: str) -> npt.NDArray[np.uint8] | None:
    """Say where the weights of file `name`, of the "vision" or "decoder" `graph`, are if links lead to them.

    ONNX Runtime maps weights in the graph's folder, before or after links: so the Hub's cache, where both are links
    into one folder, is read as it is. Weights in another folder are mapped there if they have the same name in it, and
    otherwise copied into memory: then the array that is returned must live until the session is made.
    """
    path, weights = bundle.file(name), bundle.file(f"{graph}.data")
    real = weights.resolve()
    if real.parent in (path.parent.resolve(), path.resolve().parent):
        return None
    if real.name == weights.name:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(real.parent))
        return None
    mapped = np.memmap(real, np.uint8, "r")
    options.add_external_initializers_from_files_in_memory([weights.name], [mapped], [mapped.nbytes])
    return mapped


def _threads(asked: int | None) -> int:
    """The threads that were asked for; else the processors of a process that may not use all, or 0: all of them.

    ONNX Runtime counts the machine's processors; threads that share one would wait for each other in every operator.
    """
    if asked is not None:
        return asked
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return allowed if allowed and allowed < (os.cpu_count() or allowed) else 0


def failed(attempt: str, error: Exception) -> BackendError:
    """The error to raise if ONNX Runtime could not do `attempt`, with the library's own words."""
    reason = " ".join(str(error).split())[:300]
    return BackendError(f"ONNX Runtime {ort.__version__} could not {attempt}: {reason}")
