"""A checkpoint in a published layout, checked and memory-mapped: tensors come one at a time and only when asked for.

Read are config.json, generation_config.json, the family's tokenizer file and the weights, as safetensors or as
pytorch_model*.bin. The latter are pickles: they are loaded with weights_only, so nothing in them is executed, and the
checkpoint's own .py files are never touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.file_kinds import read_head
from qwenvl_edge_export.checkpoint.folder_kinds import CONFIG, check_config_is_there
from qwenvl_edge_export.checkpoint.hub import GENERATION, find_checkpoint
from qwenvl_edge_export.checkpoint.json_file import read_object, read_optional
from qwenvl_edge_export.checkpoint.listing import EXAMPLES, counted, few
from qwenvl_edge_export.checkpoint.quantization_config import Quantization, read_quantization
from qwenvl_edge_export.checkpoint.quantized_layers import QuantizedLayer, as_float_weights, describe_form
from qwenvl_edge_export.checkpoint.shards import Source, Stored, open_shard
from qwenvl_edge_export.checkpoint.tensor_names import canonical_names
from qwenvl_edge_export.checkpoint.weight_files import find_weights
from qwenvl_edge_export.families.base import ExportFamily
from qwenvl_edge_export.families.detect import family_type
from qwenvl_edge_export.files.thread_map import in_order
from qwenvl_edge_export.graphs.roles import Weight

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint whose tensors are all there, with the right shapes and float dtypes.

    family: read from its config.json. generation: the content of generation_config.json, empty if there is none.
    notes: sentences for the user about what a bundle of it will do differently.
    """

    path: Path
    family: ExportFamily
    generation: dict[str, Any]
    weight_files: tuple[Path, ...]
    notes: tuple[str, ...]
    _where: dict[str, Source] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, *, revision: str | None = None, chat_format: str | None = None) -> Checkpoint:
        """Open the checkpoint in folder `path` and check every tensor's name, shape and dtype.

        Args:
            path: the folder, or the name "org/name" of a model of the Hugging Face Hub, which is fetched.
            revision: of the Hub's model.
            chat_format: takes the place of generation_config.json's.

        Raises:
            CheckpointError: the folder, a file or a shard is missing or unreadable, or tensors are missing, extra or
                misshapen (counted and shown by examples in one message).
        """
        folder = find_checkpoint(path, revision)
        check_config_is_there(folder)
        raw = read_object(folder / CONFIG)
        form = read_quantization(folder, raw)
        family = family_type(raw, folder / CONFIG).from_checkpoint(raw, folder)
        generation = read_optional(folder / GENERATION)
        if chat_format is not None:
            generation["chat_format"] = chat_format
        read_head(folder / family.tokenizer_file)
        files, where = _open_weights(folder, family, form)
        where = as_float_weights(folder, where, family.tensors, form)
        _check_copies(folder, family, where)
        _check_tensors(folder, family.tensors, where)
        return cls(folder, family, generation, files, tuple(family.notes(folder, generation)), where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of tensor `name`."""
        return self._where[name].describe()[0]

    def tensor(self, name: str) -> torch.Tensor:
        """Tensor `name` as stored (float32, float16 or bfloat16), memory-mapped where the file allows it.

        A quantized weight is computed, in float32.
        """
        return self._where[name].read()

    def quantized(self, weight: Weight) -> list[QuantizedLayer]:
        """The quantized layers whose rows, one after another, are the matrix `weight`; empty if it is not quantized."""
        parts = [self._where[name] for name in weight.sources]
        layers = [part for part in parts if isinstance(part, QuantizedLayer)]
        return layers if len(layers) == len(parts) else []

    @property
    def quantized_form(self) -> str:
        """The form of the quantized layers in words; empty if there are none."""
        return describe_form([part for part in self._where.values() if isinstance(part, QuantizedLayer)])

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's file."""
        return self.path / self.family.tokenizer_file

    @property
    def source_files(self) -> tuple[Path, ...]:
        """Every file that an export reads."""
        names = (CONFIG, GENERATION, *self.family.side_files)
        small = (self.path / name for name in names if (self.path / name).is_file())
        return (*small, self.tokenizer, *self.weight_files)

    def digest(self, on_bytes: Callable[[int], None] = lambda count: None) -> str:
        """SHA-256 over the names and SHA-256 of the source files; `on_bytes` is told of every file read."""
        total = hashlib.sha256()
        for path, one in zip(self.source_files, in_order(_file_digest, self.source_files), strict=True):
            on_bytes(path.stat().st_size)
            total.update(f"{path.name} {one}\n".encode())
        return total.hexdigest()


def _open_weights(
    folder: Path, family: ExportFamily, form: Quantization | None
) -> tuple[tuple[Path, ...], dict[str, Source]]:
    """The files of weights, and every tensor in them under the family's name for it."""
    try:
        files = find_weights(folder)
        shards: dict[str, Source] = {}
        for file in files:
            shard = open_shard(file)
            names = shard.names()
            if twice := [name for name in names if name in shards]:
                raise CheckpointError(
                    f'the checkpoint "{folder}" holds {few(twice, 1)} in {file.name} and in another file; keep one.'
                )
            shards.update({name: Stored(shard, name) for name in names})
        known = canonical_names(str(folder), shards, family)
    except CheckpointError:
        if form is not None and form.refusal:
            raise CheckpointError(form.refusal) from None
        raise
    return files, {name: shards[stored] for name, stored in known.items()}


def _check_copies(folder: Path, family: ExportFamily, where: dict[str, Source]) -> None:
    """Leave out tensors that repeat others, after a comparison."""
    for copy, original in family.copies.items():
        source = where.pop(copy, None)
        if source is None or original not in where:
            continue
        if source.describe() != where[original].describe() or not torch.equal(source.read(), where[original].read()):
            raise CheckpointError(
                f'the checkpoint "{folder}" ties {copy} to {original} in its config.json, but the two differ.'
            )


def _check_tensors(folder: Path, expected: Mapping[str, tuple[int, ...]], where: dict[str, Source]) -> None:
    missing = [f"{name} {list(expected[name])}" for name in expected if name not in where]
    extra = [name for name in where if name not in expected]
    reshaped, retyped = [], []
    for name in (name for name in expected if name in where):
        shape, dtype = where[name].describe()
        if shape != expected[name]:
            reshaped.append(f"{name} {list(shape)[:8]} instead of {list(expected[name])}")
        if dtype not in DTYPES:
            retyped.append(f"{name} {str(dtype).removeprefix('torch.')}")
    kinds = {
        "missing": missing,
        "extra": extra,
        "of another shape": reshaped,
        "not float32, float16 or bfloat16": retyped,
    }
    found = {kind: names for kind, names in kinds.items() if names}
    if found:
        examples = max(1, EXAMPLES // len(found))
        words = (f"{len(names):,} {kind} ({few(names, examples)})" for kind, names in found.items())
        problems = counted(sum(map(len, found.values())), "problem")
        raise CheckpointError(
            f'the checkpoint "{folder}" does not fit its config.json, {problems} with its tensors: {"; ".join(words)}.'
        )


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
