"""The choice of a family: by a checkpoint's config.json, or by the name that a bundle's manifest has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.json_file import read_object
from qwenvl_edge_export.checkpoint.listing import shortened
from qwenvl_edge_export.families.base import DefaultPrompts, ExportFamily
from qwenvl_edge_export.families.dynamic_vl.family import Qwen2VLExport, Qwen3VLExport, Qwen25VLExport
from qwenvl_edge_export.families.qwen_vl.family import QwenVLExport

_FAMILIES: dict[str, type[ExportFamily]] = {
    family.name: family for family in (QwenVLExport, Qwen2VLExport, Qwen25VLExport, Qwen3VLExport)
}
_WHY_NOT = {"_moe": " (a mixture of experts; dense models are)", "qwen3_5": " (its decoder is a recurrent one)"}


def detect_family(config: Path) -> ExportFamily:
    """The family that the config.json at `config` describes, read with the files beside it.

    Raises:
        CheckpointError: the file is absent, not JSON, or of no model that can be exported.
    """
    raw = read_object(config)
    return family_type(raw, config).from_checkpoint(raw, config.parent)


def family_type(raw: Mapping[str, Any], config: Path) -> type[ExportFamily]:
    """The family that a config.json's content announces; `config` is its place, for messages.

    Raises:
        CheckpointError: none of those that can be exported; names them.
    """
    kind, classes = raw.get("model_type"), raw.get("architectures")
    classes = classes if isinstance(classes, list) else []
    for family in _FAMILIES.values():
        if kind in family.model_types or (kind is None and set(map(str, classes)) & set(family.architectures)):
            return family
    supported = ", ".join(f'{family.label} ("{family.model_types[0]}")' for family in _FAMILIES.values())
    if kind is None and not classes:
        raise CheckpointError(
            f'"{config}" names no model (no model_type, no architectures); supported are {supported}.'
        )
    found = " ".join(f'"{shortened(str(each))}"' for each in (kind, *classes[:1]) if each is not None)
    why = next((reason for mark, reason in _WHY_NOT.items() if mark in str(kind)), "")
    raise CheckpointError(
        f'"{config}" describes a model of type {found}, which is not supported{why}; supported are {supported}.'
    )


def default_prompts(name: str) -> DefaultPrompts:
    """The default prompts of the family that a manifest calls `name`."""
    return _FAMILIES[name].default_prompts
