"""The results of calibration: in its working folder a JSON file for each stage, which is done when that file is there.

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
from qwenvl_edge_export.graphs.data_file import DataFile
from qwenvl_edge_export.graphs.roles import Decoder, Tensors
from qwenvl_edge_export.graphs.stored import (
    TORCH_DTYPES,
    GivenIntegers,
    float_pieces,
    no_integers,
    tensor_bytes,
)
from qwenvl_edge_export.graphs.stored_integers import StoredBlocks
from qwenvl_edge_export.graphs.weight_layout import WeightLayout, decoder_layout
from qwenvl_edge_export.options import STATIC, GraphPrecision
from qwenvl_edge_export.quantization.activations import PARTIAL
from qwenvl_edge_export.weight_formats import Blocks, InputScales, Integers, WeightFormat

Found: TypeAlias = Mapping[str, Integers] | Mapping[str, InputScales]
Losses: TypeAlias = dict[str, dict[str, float]]
"""For each calibrated weight the relative change of its layer's outputs, plainly rounded and calibrated."""

VISION_STAGE, HEAD_STAGE = "vision", "head"


class Kept:
    """The results in `folder`, of a decoder in `precision` and of the stages beside its layers.

    decoder: None if only the picture side is calibrated.
    """

    def __init__(self, folder: Path, decoder: Decoder | None, precision: GraphPrecision):
        self._folder = folder
        self._precision = precision
        layers = decoder.layers if decoder is not None else ()
        self._layers = len(layers)
        self._stages: dict[str, int | str] = {
            weight.name: i for i, layer in enumerate(layers) for group in layer.groups for weight in group.weights
        }
        if decoder is not None:
            self._stages[decoder.head.weight.name] = HEAD_STAGE
        self._file: DataFile | None = None
        if decoder is not None and precision.weights != STATIC:
            self._file = DataFile(folder, decoder_layout(decoder, precision))

    def begin(self) -> None:
        """Make the file that is filled later, in the empty folder."""
        if self._file is not None:
            self._file.begin()

    def is_begun(self) -> bool:
        """Tell if the folder has the file that `begin` makes."""
        return self._file is None or self._file.is_begun()

    def go_on(self) -> None:
        """Replace a file that a finished bundle, or the rest of an unfinished one, shares by a copy of its own."""
        if self._file is not None and self._file.path.stat().st_nlink > 1:
            with whole(self._file.path) as partial:
                shutil.copyfile(self._file.path, partial)

    def is_done(self, stage: int | str) -> bool:
        """Tell if a stage is done: a decoder layer's number, or one of the others' names."""
        return self._done_path(stage).exists()

    def layers_done(self) -> int:
        """Number of decoder layers that are calibrated."""
        return next((i for i in range(self._layers) if not self.is_done(i)), self._layers)

    def keep(self, stage: int | str, found: Found, losses: Losses) -> None:
        """Write the results of a stage; it counts as done when all of them are on the disk.

        Raises:
            CheckpointError: scales are too large for their type.
            OSError, SafetensorError: the disk is full, or the like.
        """
        integers = {name: each for name, each in found.items() if isinstance(each, Integers)}
        scales = {name: each for name, each in found.items() if isinstance(each, InputScales)}
        if integers:
            assert self._file is not None  # layers become integers where there is a file for them
            self._file.put(self._stored(integers))
        if scales:
            with whole(self._scales_path(stage)) as partial:
                save_file(_tensors(scales), partial)
        with whole(self._done_path(stage)) as partial:
            partial.write_text(json.dumps(losses))

    def input_scales(self, name: str) -> InputScales | None:
        """The scales of the inputs of the layer with weight `name`, if they were calibrated."""
        path = self._scales_path(self._stages.get(name, VISION_STAGE))
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as content:
            if f"{name}.factors" not in set(content.keys()):
                return None
            return InputScales(content.get_tensor(f"{name}.factors"), float(content.get_tensor(f"{name}.scale")))

    def integers(self, name: str) -> Integers:
        """The integers of the weight `name`, of a layer that is done, where layers become integers in blocks."""
        assert self._file is not None
        stored = self._file.layout.stored(name)
        assert isinstance(stored, StoredBlocks)  # nothing else is calibrated where there is a file
        packed, scales = (self._file.get(slot.name).view(slot.shape[0], -1) for slot in stored.slots)
        return Integers(packed, scales.view(TORCH_DTYPES[stored.dtype]), stored.blocks)

    def losses(self) -> Losses:
        """The losses of all stages that are done."""
        losses: Losses = {}
        for stage in (VISION_STAGE, *range(self._layers), HEAD_STAGE):
            losses |= self._losses(stage)
        return losses

    @property
    def bytes_in_place(self) -> int:
        """Bytes of the file that `write` completes which are there already."""
        if self._file is None:
            return 0
        layout = self._file.layout
        return layout.bytes_of([slot.name for name in self._present() for slot in layout.stored(name).slots])

    def write(
        self,
        layout: WeightLayout,
        tensors: Tensors,
        folder: Path,
        on_bytes: Callable[[int], None],
        integers: GivenIntegers = no_integers,
    ) -> FileInfo:
        """Write decoder.data into `folder`, with the integers that were found where layers are quantized in blocks.

        That file keeps its name here beside the new one, so that it is found again if the export is interrupted. File
        systems that know no second names get a copy.

        Raises:
            CheckpointError: a tensor holds NaN or infinity, or values too large for its type.
            OSError: the disk is full, or the like.
        """
        new = DataFile(folder, layout)
        if self._file is None:
            return new.write(tensors, on_bytes, integers)
        info = self._file.write(tensors, on_bytes, present=self._present())
        try:
            os.link(self._file.path, new.path)
        except OSError:
            shutil.copyfile(self._file.path, new.path)
        return info

    def _present(self) -> set[str]:
        """The weights of all layers that are done."""
        return {name for i in range(self._layers) for name in self._losses(i)}

    def _stored(self, integers: Mapping[str, Integers]) -> dict[str, Iterable[memoryview]]:
        """The bytes of integers and scales, by the names of their places in the file."""
        stored: dict[str, Iterable[memoryview]] = {}
        for name, each in integers.items():
            packed, scales = each.blocks.names(name)
            stored[packed] = [tensor_bytes(each.packed)]
            stored[scales] = float_pieces(name, each.scales, TORCH_DTYPES[self._precision.dtype])
        return stored

    def _losses(self, stage: int | str) -> Losses:
        path = self._done_path(stage)
        losses: Losses = json.loads(path.read_text()) if path.exists() else {}
        return losses

    def _done_path(self, stage: int | str) -> Path:
        return self._folder / f"{f'layer-{stage}' if isinstance(stage, int) else stage}.json"

    def _scales_path(self, stage: int | str) -> Path:
        return self._done_path(stage).with_suffix(".safetensors")


def kept_bytes(stored: WeightFormat, shape: tuple[int, ...], scale_bytes: int) -> int:
    """Bytes kept of a weight [out, in], whose scales take `scale_bytes` each; of W8A8 the inputs' factors."""
    outputs, inputs = shape
    if isinstance(stored, Blocks):
        return outputs * (inputs * stored.bits // 8 + inputs // stored.size * scale_bytes)
    return 4 * inputs


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a name to write to; the file takes the name `path` if the block ends well, and goes if not."""
    partial = path.with_suffix(PARTIAL)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _tensors(scales: Mapping[str, InputScales]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, each in scales.items():
        tensors |= {f"{name}.factors": each.factors.clone(), f"{name}.scale": torch.tensor(each.scale)}
    return tensors
