"""Sizes of KV caches, features and a picture's workspace, and how much of earlier conversations is kept."""

from __future__ import annotations

from collections.abc import Sequence

from qwenvl_edge.bundle.manifest import ModelInfo, Workspace
from qwenvl_edge.errors import BackendError
from qwenvl_edge.families.base import Family
from qwenvl_edge.families.pieces import PictureLayout

MEMORY_MB = 512
"""Memory for KV caches of recent conversations, unless the caller asks for another size."""
FEATURES_KEPT = 16
"""Pictures whose image features are kept, if they do not take more than this:"""
FEATURES_BYTES = 256 << 20
_MOST_CONVERSATIONS = 8  # however small the model
_PATCHES_AT_ONCE = 4096  # of a clip


def conversations_kept(memory_bytes: int, cache_bytes: int) -> int:
    """Number of KV caches of `cache_bytes` each that are kept within a memory: at least the one in use."""
    return min(max(memory_bytes // cache_bytes, 1), _MOST_CONVERSATIONS)


def cache_bytes(model: ModelInfo, capacity: int, *, item_bytes: int = 4, scale_bytes: int = 0) -> int:
    """Bytes of one row of keys and values with room for `capacity` tokens.

    item_bytes: bytes per number (4: float32). scale_bytes: bytes of the scale per token and head (4 in an int8 cache).
    """
    return 2 * model.num_layers * model.num_kv_heads * (model.head_dim * item_bytes + scale_bytes) * capacity


def feature_row_bytes(model: ModelInfo) -> int:
    """Bytes of one row of image features, those for further decoder layers included."""
    return 4 * model.hidden_size * (1 + model.deepstack_layers)


def picture_bytes(workspace: Workspace, family: Family, tokens: int, *, scores: bool = True) -> int:
    """Bytes of intermediate values while a picture of so many tokens is encoded.

    scores: whether attention keeps its scores, if the bundle says that it may.
    """
    share = tokens / family.largest_layout().tokens
    values = (workspace.picture_bytes - workspace.score_bytes) * share
    return round(values + (workspace.score_bytes * share**2 if scores else 0))


def check_picture_fits(workspace: Workspace, family: Family, layout: PictureLayout, free: int | None) -> None:
    """Check that a picture beyond the bundle's own limits can be encoded in `free` bytes; None: nobody knows how many.

    Raises:
        BackendError: it cannot; says what it takes.
    """
    tokens = layout.tokens // layout.grid[0]  # the parts of a clip are encoded some at a time
    if tokens <= family.largest_layout().tokens:
        return  # room for it was checked when the bundle was opened
    needed = picture_bytes(workspace, family, tokens)
    if free is not None and needed > free:
        raise BackendError(
            f"a picture of {tokens:,} tokens takes {needed / 1e9:.2f} GB to encode, but {free / 1e9:.2f} GB of memory "
            "are free; give a smaller max_pixels."
        )


def parts_at_once(pixels: Sequence[int], most: int | None = None) -> int:
    """Number of pictures, or of a clip's parts, that a run of the vision graph takes; pixels: shape of pixel_values.

    most: a limit of the graph's own.
    """
    several = max(1, _PATCHES_AT_ONCE // pixels[1]) if len(pixels) == 3 else max(1, pixels[0])
    return several if most is None else min(several, most)
