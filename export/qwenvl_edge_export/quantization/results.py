"""What calibration has found: in its working folder a JSON file for each stage, which is done when that file is there.

A decoder layer's integers go straight to their places in a decoder.data, whose layout is known beforehand. The export
adds the other weights and gives the file a second name in the bundle, so that no weight lies on the disk twice. The
scales of inputs are small and lie in files of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from qwenvl_edge.bundle.files import FileInfo
from qwenvl_edge_export.graphs.data_file import TORCH_DTYPES, WeightFile, float_pieces, tensor_bytes
from qwenvl_edge_export.options import HEAD, GraphPrecision
from qwenvl_edge_export.quantization.activations import PARTIAL
from qwenvl_edge_export.quantization.formats import Blocks, InputScales, Integers, WeightFormat

Found: TypeAlias = Mapping[str, Integers] | Mapping[str, InputScales]
Losses: TypeAlias = dict[str, dict[str, float]]
"""For each calibrated weight the relative change of its layer's outputs, plainly rounded and calibrated."""

VISION_STAGE, HEAD_STAGE = "vision", "head"


class Kept:
    """The results in `folder`, of `layers` decoder layers in `precision` and of the stages beside them.

    plan: of the decoder's weights, where its layers become integers in blocks.
    """

    def __init__(self, folder: Path, layers: int, precision: GraphPrecision, plan: WeightFile | None):
        self._folder = folder
        self._layers = layers
        self._precision = precision
        self._plan = plan

    def begin(self) -> None:
        """Make the file that is filled later, in the empty folder."""
        if self._plan is not None:
            self._plan.begin(self._folder)

    def is_begun(self) -> bool:
        """Whether the folder has what `begin` makes."""
        return self._plan is None or self._plan.is_begun(self._folder)

    def go_on(self) -> None:
        """Take a file that a finished bundle, or the rest of an unfinished one, shares for a copy of its own."""
        if self._plan is None:
            return
        path = self._folder / self._plan.location
        if path.stat().st_nlink > 1:
            with _whole(path) as partial:
                shutil.copyfile(path, partial)

    def is_done(self, stage: int | str) -> bool:
        """Whether a stage is done: a decoder layer's number, or one of the others' names."""
        return self._done_path(stage).exists()

    def layers_done(self) -> int:
        """How many decoder layers are calibrated."""
        return next((i for i in range(self._layers) if not self.is_done(i)), self._layers)

    def keep(self, stage: int | str, found: Found, losses: Losses) -> None:
        """Write what a stage found; it counts as done when all of it is on the disk.

        Raises:
            CheckpointError: scales are too large for their type.
            OSError, SafetensorError: the disk is full, or the like.
        """
        integers = {name: each for name, each in found.items() if isinstance(each, Integers)}
        scales = {name: each for name, each in found.items() if isinstance(each, InputScales)}
        if integers:
            assert self._plan is not None  # layers become integers where there is a plan for them
            self._plan.put(self._folder, self._stored(integers))
        if scales:
            with _whole(self._scales_path(stage)) as partial:
                save_file(_tensors(scales), partial)
        with _whole(self._done_path(stage)) as partial:
            partial.write_text(json.dumps(losses))

    def given(self, name: str) -> InputScales | None:
        """What was found for the inputs of the layer with weight `name`, if they were calibrated."""
        path = self._scales_path(_stage(name))
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as content:
            if f"{name}.factors" not in set(content.keys()):
                return None
            return InputScales(content.get_tensor(f"{name}.factors"), float(content.get_tensor(f"{name}.scale")))

    def integers(self, name: str) -> Integers:
        """What was found for the weight `name`, of a layer that is done, where there is a plan."""
        assert self._plan is not None
        blocks, outputs = self._blocks(name), self._plan.checkpoint.shape(name)[0]
        packed, scales = (self._plan.get(self._folder, part).view(outputs, -1) for part in blocks.names(name))
        return Integers(packed, scales.view(TORCH_DTYPES[self._precision.dtype]), blocks)

    def losses(self) -> Losses:
        """Those of all stages that are done."""
        losses: Losses = {}
        for stage in (VISION_STAGE, *range(self._layers), HEAD_STAGE):
            losses |= self._losses(stage)
        return losses

    @property
    def bytes_in_place(self) -> int:
        """What is found already of the file that `write` completes."""
        return 0 if self._plan is None else self._plan.bytes_of(self._present())

    def write(self, weights: WeightFile, folder: Path, on_bytes: Callable[[int], None]) -> FileInfo:
        """Write `weights`, the decoder's, into `folder`, with what was found where they become integers in blocks.

        That file keeps its name here beside the new one, so that it is found again if the export is interrupted. File
        systems that know no second names get a copy.

        Raises:
            CheckpointError: a tensor holds NaN or infinity, or values too large for its type.
            OSError: the disk is full, or the like.
        """
        if self._plan is None:
            return weights.write(folder, on_bytes)
        info = weights.write(self._folder, on_bytes, self._present())
        source, target = (place / weights.location for place in (self._folder, folder))
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
        return info

    def _present(self) -> set[str]:
        """The planned tensors of all layers that are done."""
        names = [name for i in range(self._layers) for name in self._losses(i)]
        return {part for name in names for part in self._blocks(name).names(name)}

    def _stored(self, integers: Mapping[str, Integers]) -> dict[str, Iterable[memoryview]]:
        """Their bytes by the names of the planned tensors."""
        stored: dict[str, Iterable[memoryview]] = {}
        for name, each in integers.items():
            packed, scales = each.blocks.names(name)
            stored[packed] = [tensor_bytes(each.packed)]
            stored[scales] = float_pieces(name, each.scales, TORCH_DTYPES[self._precision.dtype])
        return stored

    def _blocks(self, name: str) -> Blocks:
        blocks = self._precision.format(name)
        assert isinstance(blocks, Blocks)  # nothing else is calibrated where there is a plan
        return blocks

    def _losses(self, stage: int | str) -> Losses:
        path = self._done_path(stage)
        losses: Losses = json.loads(path.read_text()) if path.exists() else {}
        return losses

    def _done_path(self, stage: int | str) -> Path:
        return self._folder / f"{f'layer-{stage}' if isinstance(stage, int) else stage}.json"

    def _scales_path(self, stage: int | str) -> Path:
        return self._done_path(stage).with_suffix(".safetensors")


def kept_bytes(stored: WeightFormat, shape: tuple[int, ...], scale_bytes: int) -> int:
    """What is kept of a weight [out, in], whose scales take `scale_bytes` each; of W8A8 the inputs' factors."""
    outputs, inputs = shape
    if isinstance(stored, Blocks):
        return outputs * (inputs * stored.bits // 8 + inputs // stored.size * scale_bytes)
    return 4 * inputs


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name to write to; what is there takes the name `path` if the block ends well, and goes if not."""
    partial = path.with_suffix(PARTIAL)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _stage(name: str) -> int | str:
    """Where the weight `name` is calibrated."""
    if name == HEAD:
        return HEAD_STAGE
    return int(name.split(".")[2]) if name.startswith("transformer.h.") else VISION_STAGE


def _tensors(scales: Mapping[str, InputScales]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, each in scales.items():
        tensors |= {f"{name}.factors": each.factors.clone(), f"{name}.scale": torch.tensor(each.scale)}
    return tensors
