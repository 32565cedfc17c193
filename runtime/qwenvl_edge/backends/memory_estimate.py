"""The memory that a bundle will take, by part, estimated before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from qwenvl_edge.backends.kept import (
    FEATURES_BYTES,
    FEATURES_KEPT,
    MEMORY_MB,
    cache_bytes,
    conversations_kept,
    feature_row_bytes,
    picture_bytes,
)
from qwenvl_edge.backends.onnxruntime.session import (
    cache_item_bytes,
    fastest_dialect,
    runs_native_attention,
    weight_bytes,
)
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import DECODER_DATA, VISION_DATA
from qwenvl_edge.bundle.manifest import FLOAT_CACHE, INT8_CACHE
from qwenvl_edge.errors import BackendError
from qwenvl_edge.families import open_family
from qwenvl_edge.families.pieces import NO_LIMITS, PixelLimits
from qwenvl_edge.machine.memory import available_bytes

_PROCESS_BYTES = 32 << 20  # Python with NumPy, Pillow, ONNX Runtime and the vocabulary
_LOGITS_ITEM = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of anonymous memory (memory that the system cannot drop) by part, when the context is full.

    Not counted: pages of files, which the system drops when it needs room (the embedding table, mapped weights).
    cache: KV caches of the conversations under way. kept: KV caches of earlier ones, and features of their pictures.
    """

    weights: int
    cache: int
    kept: int
    workspace: int
    picture: int
    process: int = _PROCESS_BYTES

    @property
    def total(self) -> int:
        """Sum of the parts; a prompt's pictures are encoded before its tokens, so only the larger workspace counts."""
        return self.weights + self.cache + self.kept + max(self.workspace, self.picture) + self.process

    def table(self) -> str:
        """The parts as a table for a terminal, in MB."""
        turns = "not added: they take turns"
        parts = {
            "weights": (self.weights, ""),
            "KV cache": (self.cache, "of the conversations under way, when they are full"),
            "earlier conversations": (self.kept, "their KV caches and pictures, so that they go on at once"),
            "computing a prompt": (self.workspace, turns if self.workspace < self.picture else ""),
            "computing a picture": (self.picture, "" if self.workspace < self.picture else turns),
            "program": (self.process, "Python and the libraries"),
            "total": (self.total, ""),
        }
        rows = (f"{name:<24}{size / 1e6:>9,.0f} MB   {words}".rstrip() for name, (size, words) in parts.items())
        return "\n".join(rows)


def estimate_memory(
    bundle: Bundle,
    *,
    max_context: int,
    max_batch: int = 1,
    chunk: int = 128,
    cache_memory_mb: int = MEMORY_MB,
    kv_cache: str = FLOAT_CACHE,
    limits: PixelLimits = NO_LIMITS,
    weights: int | None = None,
    picture_scores: bool = True,
) -> MemoryEstimate:
    """Estimate the memory of `max_batch` conversations of `max_context` tokens, prefilled `chunk` tokens at a time.

    A batch has its own cache, beside the one in which its prompts are prefilled.

    cache_memory_mb: as QwenVLEngine takes it.
    kv_cache: "float" (ONNX Runtime) or "int8" (the TensorRT plan of a bundle with an int8 cache).
    limits: of the pictures, as QwenVLEngine takes them.
    weights: bytes of their copies on another machine; None: on this one.
    picture_scores: whether attention over a picture keeps its scores, where the bundle says that it may.

    Raises:
        BackendError: a limit is less than 1, or beyond what the model takes.
    """
    manifest = bundle.manifest
    model, space = manifest.model, manifest.workspace
    if not 1 <= max_context <= model.max_position_embeddings:
        raise BackendError(f"max-context is {max_context:,}; the model takes 1 to {model.max_position_embeddings:,}.")
    if max_batch < 1 or chunk < 1:
        raise BackendError(f"max-batch is {max_batch} and the chunk {chunk}; both must be at least 1.")
    tokens = max_batch * min(chunk, max_context)
    scores = 0 if runs_native_attention(bundle) else 4 * model.num_heads * tokens * max_context
    logits = _LOGITS_ITEM * max_batch * model.vocab_size
    item = {"item_bytes": 1, "scale_bytes": 4} if kv_cache == INT8_CACHE else {"item_bytes": cache_item_bytes(bundle)}
    cache = cache_bytes(model, max_context, **item)
    family = open_family(manifest)
    largest = family.largest_layout(limits).tokens
    row_bytes = feature_row_bytes(model)
    features = max(min(FEATURES_KEPT * largest * row_bytes, FEATURES_BYTES), largest * row_bytes)
    return MemoryEstimate(
        weights=weight_bytes(bundle, fastest_dialect(bundle)) if weights is None else weights,
        cache=cache * (max_batch + 1 if max_batch > 1 else 1),
        kept=cache * (conversations_kept(cache_memory_mb << 20, cache) - 1) + features,
        workspace=tokens * space.token_bytes + scores + logits,
        picture=picture_bytes(space, family, largest, scores=picture_scores),
    )


def check_fits(estimate: MemoryEstimate) -> None:
    """Compare an estimate with the memory that is free now, if the system tells.

    Raises:
        BackendError: the bundle does not fit; gives the parts.
    """
    free = available_bytes()
    workspace = max(estimate.workspace, estimate.picture)
    if free is not None and estimate.total > free:
        raise BackendError(
            f"the bundle would take {estimate.total / 1e9:.2f} GB (weights {estimate.weights / 1e9:.2f}, KV cache "
            f"{estimate.cache / 1e9:.2f}, earlier conversations {estimate.kept / 1e9:.2f}, workspace "
            f"{workspace / 1e9:.2f}), but {free / 1e9:.2f} GB of memory are free; open it with a smaller max_context "
            "or cache_memory_mb, or export it in a smaller precision."
        )


def gpu_weight_bytes(bundle: Bundle) -> int:
    """Memory of a GPU for the weights, which it holds as they are stored in the bundle."""
    return bundle.manifest.files[DECODER_DATA].size + bundle.manifest.files[VISION_DATA].size


def check_fits_gpu(bundle: Bundle, max_context: int, free: int) -> None:
    """Compare the least that a GPU must hold, the weights and one conversation's KV cache, with `free` bytes.

    Raises:
        BackendError: they do not fit; gives both.
    """
    kept = bundle.manifest.precision.kv_cache
    cache = estimate_memory(bundle, max_context=max_context, kv_cache=kept).cache
    weights = gpu_weight_bytes(bundle)
    if weights + cache > free:
        raise BackendError(
            f"the bundle takes {weights / 1e9:.2f} GB of weights and {cache / 1e9:.2f} GB of KV cache on a GPU, but "
            f"{free / 1e9:.2f} GB are free there; open it with a smaller max_context, or export it in a smaller "
            "precision."
        )
