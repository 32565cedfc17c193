"""Optimisation profiles: the shapes that an engine takes, and those that it is tuned for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import onnx_ir as ir

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.engines import PlanLimits, Profile
from qwenvl_edge.errors import BackendError
from qwenvl_edge.families import open_family
from qwenvl_edge.families.dynamic_vl import DynamicVLFamily
from qwenvl_edge_export.families.dynamic_vl.picture_ranges import vision_ranges

MAX_ROWS = 16  # logits of one call: the proposals of look-up decoding, or the end of a prompt in verification
DEFAULT_CHUNK = 512  # a question about one picture in one call

Range: TypeAlias = tuple[int, int, int]
Shapes: TypeAlias = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


def choose_limits(
    bundle: Bundle,
    *,
    max_context: int | None = None,
    max_batch: int = 1,
    max_images: int = 1,
    chunk: int | None = None,
) -> PlanLimits:
    """The limits that the options ask for; None takes the model's training length and 512 tokens per call.

    Raises:
        BackendError: a limit is less than 1, or beyond what the model takes.
    """
    model = bundle.manifest.model
    context = open_family(bundle.manifest).trained_length if max_context is None else max_context
    chunk = min(DEFAULT_CHUNK, context) if chunk is None else chunk
    if not 1 <= context <= model.max_position_embeddings:
        raise BackendError(f"--max-context is {context:,}; the model takes 1 to {model.max_position_embeddings:,}.")
    for option, value in (("--max-batch", max_batch), ("--max-images", max_images), ("--chunk", chunk)):
        if value < 1:
            raise BackendError(f"{option} is {value}; it must be at least 1.")
    if chunk > context:
        raise BackendError(f"--chunk is {chunk:,}, more than the {context:,} tokens of --max-context; make it smaller.")
    return PlanLimits(context, max_batch, max_images, chunk)


def decoder_profiles(limits: PlanLimits) -> dict[str, Profile]:
    """The decoder's profiles by use; "decode" takes one token per row (docs/decisions/tensorrt-graphs.md)."""
    rows = min(MAX_ROWS, limits.chunk)
    middle = -(-rows // 2)
    return {
        "decode": Profile(0, (1, 1, 1), (1, 1, 1)),
        "prefill": Profile(1, (1, limits.chunk, limits.chunk), (1, 1, rows)),
        "verify": Profile(2, (1, middle, rows), (1, middle, rows)),
    }


def decoder_shapes(graph: ir.Graph, limits: PlanLimits) -> list[Shapes]:
    """(least, tuned for, most) of every input with a free dimension, per profile, in the order of their numbers."""
    shapes = []
    for name, profile in sorted(decoder_profiles(limits).items(), key=lambda item: item[1].index):
        batch = (1, 1, limits.max_batch)
        if name == "decode":
            # Tuned for all rows. At least two, though a plan may never get them: where every dimension is fixed,
            # TensorRT-RTX packs weights for the profile alone, and the plan holds most of them twice.
            batch = (1, limits.max_batch, max(2, limits.max_batch))
        # Deepstack rows come for every token, or once for all.
        deepstack = {"DB": (1, 1, batch[2]), "DT": (1, *profile.tokens[1:])}
        shapes.append(_shapes(graph, {"B": batch, "T": profile.tokens, "K": profile.rows, **deepstack}))
    return shapes


def vision_shapes(bundle: Bundle, graph: ir.Graph, limits: PlanLimits) -> list[Shapes]:
    """The one profile of the vision engine."""
    return [_shapes(graph, {"N": (1, 1, limits.max_images)} | free_sizes(bundle))]


def free_sizes(bundle: Bundle) -> dict[str, Range]:
    """The sizes of a picture that the vision engine takes, by the name of the dimension; none if all are squares."""
    any_size = isinstance(open_family(bundle.manifest), DynamicVLFamily)
    return vision_ranges(bundle.manifest.family.config) if any_size else {}


def _shapes(graph: ir.Graph, ranges: Mapping[str, Range]) -> Shapes:
    shapes = {}
    for value in graph.inputs:
        assert value.name is not None and value.shape is not None  # the exporter declares both
        dims = [ranges[str(dim)] if isinstance(dim, ir.SymbolicDim) else (dim, dim, dim) for dim in value.shape]
        if any(isinstance(dim, ir.SymbolicDim) for dim in value.shape):
            least, tuned, most = (tuple(dim[i] for dim in dims) for i in range(3))
            shapes[value.name] = (least, tuned, most)
    return shapes
