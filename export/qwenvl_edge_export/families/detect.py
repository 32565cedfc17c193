"""The choice of a family: by a checkpoint's config.json, or by the name that a bundle's manifest has."""

from __future__ import annotations

import json
from pathlib import Path

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.families.base import DefaultPrompts, ExportFamily
from qwenvl_edge_export.families.qwen_vl.family import QwenVLExport

_FAMILIES = {family.name: family for family in (QwenVLExport,)}


def detect_family(config: Path) -> ExportFamily:
    """The family that the config.json at `config` describes.

    Raises:
        CheckpointError: the file is absent, not JSON, or of no model that can be exported.
    """
    try:
        raw = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {config}: {error}.") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{config} is not a JSON object; give a Qwen-VL checkpoint's config.json.")
    return QwenVLExport.from_dict(raw)  # the only one, which refuses what it does not compute


def default_prompts(name: str) -> DefaultPrompts:
    """The default prompts of the family that a manifest calls `name`."""
    return _FAMILIES[name].default_prompts
