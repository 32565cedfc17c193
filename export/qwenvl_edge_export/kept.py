"""What calibration has found: in its working folder a file for each stage, which is done when its file is there.

Integers are kept as the bundle stores them, two 4-bit ones a byte beside scales of the graph's type, so that they take
no more room than there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from qwenvl_edge_export.precision import HEAD, GraphPrecision
from qwenvl_edge_export.quantize import Blocks, InputScales, Integers, WeightFormat
from qwenvl_edge_export.spool import PARTIAL

Found: TypeAlias = Mapping[str, Integers | InputScales]
Losses: TypeAlias = dict[str, dict[str, float]]
"""For each calibrated weight the relative change of its layer's outputs, plainly rounded and calibrated."""

VISION_STAGE, HEAD_STAGE = "vision", "head"


class Kept:
    """The results in `folder`, of `layers` decoder layers in `precision` and of the stages beside them."""

    def __init__(self, folder: Path, layers: int, precision: GraphPrecision):
        self._folder = folder
        self._layers = layers
        self._precision = precision

    def path(self, stage: int | str) -> Path:
        """The file of a stage: a decoder layer's number, or one of the others' names."""
        return self._folder / f"{f'layer-{stage}' if isinstance(stage, int) else stage}.safetensors"

    def layers_done(self) -> int:
        """How many decoder layers are calibrated."""
        return next((i for i in range(self._layers) if not self.path(i).exists()), self._layers)

    def keep(self, stage: int | str, found: Found, losses: Losses) -> None:
        """Write what a stage found; it counts as done when the last file is there.

        Raises:
            OSError, SafetensorError: the disk is full, or the like.
        """
        self.path(stage).with_suffix(".json").write_text(json.dumps(losses))
        partial = self.path(stage).with_suffix(PARTIAL)
        try:
            save_file(_tensors(found), partial)
            partial.rename(self.path(stage))
        finally:
            partial.unlink(missing_ok=True)

    def given(self, name: str) -> Integers | InputScales | None:
        """What was found for the weight `name`, if it was calibrated."""
        path = self.path(_stage(name))
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as content:
            known = set(content.keys())
            if f"{name}.factors" in known:
                return InputScales(content.get_tensor(f"{name}.factors"), float(content.get_tensor(f"{name}.scale")))
            if f"{name}.integers" not in known:
                return None
            blocks = self._precision.format(name)
            assert isinstance(blocks, Blocks)  # nothing else has integers
            return Integers(content.get_tensor(f"{name}.integers"), content.get_tensor(f"{name}.scales"), blocks)

    def losses(self) -> Losses:
        """Those of all stages that are done."""
        losses: Losses = {}
        for stage in (VISION_STAGE, *range(self._layers), HEAD_STAGE):
            path = self.path(stage).with_suffix(".json")
            losses |= json.loads(path.read_text()) if path.exists() else {}
        return losses


def kept_bytes(stored: WeightFormat, shape: tuple[int, ...], scale_bytes: int) -> int:
    """What is kept of a weight [out, in], whose scales take `scale_bytes` each; of W8A8 the inputs' factors."""
    outputs, inputs = shape
    if isinstance(stored, Blocks):
        return outputs * (inputs * stored.bits // 8 + inputs // stored.size * scale_bytes)
    return 4 * inputs


def _stage(name: str) -> int | str:
    """Where the weight `name` is calibrated."""
    if name == HEAD:
        return HEAD_STAGE
    return int(name.split(".")[2]) if name.startswith("transformer.h.") else VISION_STAGE


def _tensors(found: Found) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, each in found.items():
        if isinstance(each, Integers):
            tensors |= {f"{name}.integers": each.packed, f"{name}.scales": each.scales}
        else:
            tensors |= {f"{name}.factors": each.factors.clone(), f"{name}.scale": torch.tensor(each.scale)}
    return tensors
