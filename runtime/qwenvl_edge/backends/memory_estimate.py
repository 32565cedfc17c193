"""What a bundle takes of a machine's memory, by part, before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from qwenvl_edge.backends.kv_cache import cache_bytes
from qwenvl_edge.backends.onnxruntime.session import cache_item_bytes, fastest_dialect, weight_bytes
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import DECODER_DATA, VISION_DATA
from qwenvl_edge.bundle.manifest import FLOAT_CACHE, INT8_CACHE
from qwenvl_edge.decoding.feature_cache import KEPT
from qwenvl_edge.decoding.prefix_cache import MEMORY_MB, conversations_kept
from qwenvl_edge.errors import BackendError
from qwenvl_edge.machine.memory import available_bytes

_PROCESS_BYTES = 44 << 20  # Python with NumPy, Pillow and ONNX Runtime
_LOGITS_ITEM = 4


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of anonymous memory (what a system cannot drop) by part, when the context is full.

    Not counted are files' pages, which come and go as there is room: the embedding table and weights that run mapped.
    cache is what the conversations under way take, kept what earlier ones and their pictures are kept with.
    """

    weights: int
    cache: int
    kept: int
    workspace: int
    picture: int
    process: int = _PROCESS_BYTES

    @property
    def total(self) -> int:
        """Everything together. A prompt's pictures are encoded before its tokens: the larger of the two counts."""
        return self.weights + self.cache + self.kept + max(self.workspace, self.picture) + self.process

    def table(self) -> str:
        """The plan for a terminal, in MB."""
        parts = {
            "weights": self.weights,
            "KV cache": self.cache,
            "earlier conversations": self.kept,
            "workspace of a prefill": self.workspace,
            "or of a picture": self.picture,
            "process": self.process,
            "total": self.total,
        }
        return "\n".join(f"{name:<24}{size / 1e6:>12,.0f} MB" for name, size in parts.items())


def plan_memory(
    bundle: Bundle,
    *,
    max_context: int,
    max_batch: int = 1,
    chunk: int = 128,
    cache_memory_mb: int = MEMORY_MB,
    kv_cache: str = FLOAT_CACHE,
) -> MemoryPlan:
    """Plan for `max_batch` conversations of `max_context` tokens each, prefilled `chunk` tokens at a time.

    A batch has a cache of its own, beside the one in which its prompts are prefilled.

    cache_memory_mb: as QwenVLEngine takes it.
    kv_cache: "float" as ONNX Runtime keeps it, or "int8" as a TensorRT plan of an int8 bundle does.

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
    scores = 4 * model.num_heads * tokens * max_context
    logits = _LOGITS_ITEM * max_batch * model.vocab_size
    item = {"item_bytes": 1, "scale_bytes": 4} if kv_cache == INT8_CACHE else {"item_bytes": cache_item_bytes(bundle)}
    cache = cache_bytes(model, max_context, **item)
    features = KEPT * 4 * model.image_tokens * model.hidden_size
    return MemoryPlan(
        weights=weight_bytes(bundle, fastest_dialect(bundle)),
        cache=cache * (max_batch + 1 if max_batch > 1 else 1),
        kept=cache * (conversations_kept(cache_memory_mb << 20, cache) - 1) + features,
        workspace=tokens * space.token_bytes + scores + logits,
        picture=space.picture_bytes,
    )


def check_fits(plan: MemoryPlan) -> None:
    """Compare a plan with the memory that is free now, where the system tells.

    Raises:
        BackendError: it does not fit; gives the plan's parts.
    """
    free = available_bytes()
    if free is not None and plan.total > free:
        raise BackendError(
            f"the bundle would take {plan.total / 1e9:.2f} GB (weights {plan.weights / 1e9:.2f}, KV cache "
            f"{plan.cache / 1e9:.2f}, earlier conversations {plan.kept / 1e9:.2f}, workspace "
            f"{max(plan.workspace, plan.picture) / 1e9:.2f}), but {free / 1e9:.2f} GB of memory are free; open it with "
            "a smaller max_context or cache_memory_mb, or export it in a smaller precision."
        )


def gpu_weight_bytes(bundle: Bundle) -> int:
    """Memory of a GPU that the weights take, as they lie in the bundle."""
    return bundle.manifest.files[DECODER_DATA].size + bundle.manifest.files[VISION_DATA].size


def check_fits_gpu(bundle: Bundle, max_context: int, free: int) -> None:
    """Compare what cannot be done without on a GPU, weights and one conversation's KV cache, with what is free there.

    Raises:
        BackendError: it does not fit; gives both.
    """
    kept = bundle.manifest.precision.kv_cache
    cache = plan_memory(bundle, max_context=max_context, kv_cache=kept).cache
    weights = gpu_weight_bytes(bundle)
    if weights + cache > free:
        raise BackendError(
            f"the bundle takes {weights / 1e9:.2f} GB of weights and {cache / 1e9:.2f} GB of KV cache on a GPU, but "
            f"{free / 1e9:.2f} GB are free there; open it with a smaller max_context, or export it in a smaller "
            "precision."
        )
