"""The graph contract: names of graphs, dialects, inputs and outputs. Exporter and backends read them here.

Shapes: N pictures, B rows, T tokens of a call, K tokens that need logits, C capacity of the cache, D head size,
H hidden size, V vocabulary. In the families whose pictures keep their shape: P patches of a picture, C values of each,
E head size of the vision tower, W windows of G patches, L decoder layers that get features. docs/design/graphs.md has
the table.
"""

from __future__ import annotations

STANDARD, ONNXRUNTIME, NATIVE = "standard", "onnxruntime", "native"
"""Dialects of the decoder: standard operators; ONNX Runtime's; those with the native core's matrix products."""

NATIVE_ATTENTION = "CachedAttention"
"""The native core's operator for a layer's attention, whose cache is float16."""

NATIVE_PATCH_ATTENTION = "PatchAttention"
"""The native core's operator for attention of a picture tower."""

VISION_GRAPH, VISION_ORT_GRAPH, VISION_NATIVE_GRAPH = "vision.onnx", "vision.ort.onnx", "vision.native.onnx"
"""The picture side in standard operators, with ONNX Runtime's own attention, and with the native core's operators."""
DECODER_GRAPHS = {STANDARD: "decoder.onnx", ONNXRUNTIME: "decoder.ort.onnx", NATIVE: "decoder.native.onnx"}
VISION_DATA, DECODER_DATA = "vision.data", "decoder.data"
"""The weights of all graphs of one side."""
EMBEDDING_FILE = "embedding.bin"

PIXEL_VALUES = "pixel_values"
"""[N, 3, S, S] float32 where pictures become squares; else [N, P, C], of pictures of one size or parts of a clip."""
PATCH_COS, PATCH_SIN = "patch_cos", "patch_sin"  # [P, E / 2] float32
WINDOW_GATHER, WINDOW_KEYS, WINDOW_BACK = "window_gather", "window_keys", "window_back"
"""[W * G] int64, the patch at each place of the windows; [W, 1, 1, G] bool, the places that are filled; [P] int64, the
place of each patch. Inputs of towers with windowed attention."""
POSITION_INDEX, POSITION_WEIGHT = "position_index", "position_weight"
"""[P, 4] int64 and float32, rows of a learned position table and their weights; inputs of towers that have one."""
IMAGE_FEATURES = "image_features"  # [N, Q, H] float32
DEEPSTACK_FEATURES = "deepstack_features"  # [L, N, Q, H] float32, of models with deepstack layers

INPUTS_EMBEDS = "inputs_embeds"  # [B, T, H] float32
WRITE_INDICES = "write_indices"
"""[B] int64, the cache position of each row's first token; an input of the "standard" dialect."""
LAST_INDICES = "last_indices"
"""[B] int32, the cache position of each row's last token; an input of every dialect but "standard"."""
LOGITS_INDICES = "logits_indices"  # [B, K] int64
ROPE_COS, ROPE_SIN = "rope_cos", "rope_sin"  # [B, T, D / 2] float32, of this call's tokens
DEEPSTACK = "deepstack"
"""[L, B, T, H] float32, or zeros [L, 1, 1, H]: rows added after each of the first L layers, in models with those."""
QUERY_SCALE = "query_scale"
"""[B, T] float32, factors of the queries; an input where the family scales them."""
TOTAL_LENGTH = "total_sequence_length"
"""[1] int32, the most tokens of any row after a call; an input of every dialect but "standard"."""
LOGITS = "logits"  # [B, K, V] float32
PAST, PRESENT = "past_key_values.", "present."
"""Prefixes of the cache's inputs and outputs; a past and its present are bound to the same memory."""


def past_name(layer: int, part: str) -> str:
    """Name of a cache input; part: "key", "value", and of an int8 cache "key_scale", "value_scale"."""
    return f"{PAST}{layer}.{part}"


def present_of(past: str) -> str:
    """Name of the output that goes with a cache input."""
    return PRESENT + past.removeprefix(PAST)
