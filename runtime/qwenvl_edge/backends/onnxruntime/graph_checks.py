"""Graphs against bundle.json: their inputs, and the shapes of what goes in and comes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from qwenvl_edge.bundle.contract import (
    DEEPSTACK,
    DEEPSTACK_FEATURES,
    IMAGE_FEATURES,
    INPUTS_EMBEDS,
    LAST_INDICES,
    LOGITS,
    LOGITS_INDICES,
    PAST,
    PIXEL_VALUES,
    QUERY_SCALE,
    ROPE_COS,
    ROPE_SIN,
    STANDARD,
    TOTAL_LENGTH,
    WRITE_INDICES,
    past_name,
)
from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.errors import BackendError
from qwenvl_edge.families.base import Family

_INPUTS = (INPUTS_EMBEDS, LOGITS_INDICES, ROPE_COS, ROPE_SIN)
_FREE = None  # a dimension that the caller chooses
_Shape = tuple[int | None, ...]


def check_decoder(session: ort.InferenceSession, path: Path, dialect: str, model: ModelInfo) -> None:
    """Check that a decoder from `path` has the inputs of its dialect and the dimensions of the model.

    Raises:
        BackendError: it has others, because another version exported it, or another bundle.json lies beside it.
    """
    names = {node.name for node in session.get_inputs()}
    found = {name for name in names if not name.startswith(PAST)}
    wanted = {*_INPUTS, *((WRITE_INDICES,) if dialect == STANDARD else (LAST_INDICES, TOTAL_LENGTH))}
    wanted |= found & {QUERY_SCALE}  # there where the family scales queries
    wanted |= {DEEPSTACK} if model.deepstack_layers else set()
    differences = [f"lacks the input {name}" for name in sorted(wanted - found)]
    differences += [f"has the unknown input {name}" for name in sorted(found - wanted)]
    if differences:
        raise BackendError(
            f'"{path}" {" and ".join(differences)}: the bundle was exported by another version of Qwen-VL Edge; '
            "export it again."
        )
    layers = {name.removeprefix(PAST).partition(".")[0] for name in names if name.startswith(PAST)}
    if len(layers) != model.num_layers:
        raise _contradiction(path, f"has {len(layers)} layers", f"{model.num_layers}")
    cache: _Shape = (_FREE, model.num_kv_heads, _FREE, model.head_dim)
    shapes: dict[str, _Shape] = {past_name(i, part): cache for i in range(len(layers)) for part in ("key", "value")}
    shapes |= dict.fromkeys((ROPE_COS, ROPE_SIN), (_FREE, _FREE, model.head_dim // 2))
    shapes[INPUTS_EMBEDS] = (_FREE, _FREE, model.hidden_size)
    shapes[DEEPSTACK] = (model.deepstack_layers, _FREE, _FREE, model.hidden_size)
    shapes[LOGITS] = (_FREE, _FREE, model.vocab_size)
    _check_shapes(session, path, shapes)


def check_vision(session: ort.InferenceSession, path: Path, model: ModelInfo, family: Family) -> None:
    """Check that a vision graph from `path` gives features as wide as the model, of pictures as the family makes them.

    Raises:
        BackendError: it does not, because another bundle.json lies beside it.
    """
    side = family.preprocessing.image_size
    tokens = family.largest_layout().tokens if side else _FREE
    shapes: dict[str, _Shape] = {IMAGE_FEATURES: (_FREE, tokens, model.hidden_size)}
    shapes[DEEPSTACK_FEATURES] = (model.deepstack_layers, _FREE, _FREE, model.hidden_size)
    if side:
        shapes[PIXEL_VALUES] = (_FREE, 3, side, side)
    _check_shapes(session, path, shapes)


def _check_shapes(session: ort.InferenceSession, path: Path, wanted: dict[str, _Shape]) -> None:
    for node in (*session.get_inputs(), *session.get_outputs()):
        if node.name in wanted and not _fits(node.shape, wanted[node.name]):
            shape = ", ".join("?" if size is _FREE else str(size) for size in wanted[node.name])
            found = ", ".join(map(str, node.shape))
            raise _contradiction(path, f"has {node.name} of shape [{found}]", f"[{shape}]")


def _fits(shape: Sequence[int | str], wanted: _Shape) -> bool:
    """True if every dimension that both sides fix is the same; a graph's own names stand for any size."""
    if len(shape) != len(wanted):
        return False
    pairs = zip(shape, wanted, strict=True)
    return all(size is _FREE or not isinstance(found, int) or found == size for found, size in pairs)


def _contradiction(path: Path, has: str, says: str) -> BackendError:
    return BackendError(f'"{path}" {has}, but bundle.json says {says}; export the bundle again.')
