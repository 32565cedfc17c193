"""A checkpoint in the published layout, checked and memory-mapped: tensors come one at a time and only when asked for.

Read are config.json, generation_config.json, qwen.tiktoken and the weights, as safetensors or as pytorch_model*.bin.
The latter are pickles: they are loaded with weights_only, so nothing in them is executed, and the checkpoint's own .py
files are never touched.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.gptq_layout import GptqLayer, as_float_weights
from qwenvl_edge_export.families.qwen_vl.config import QwenVLConfig
from qwenvl_edge_export.families.qwen_vl.reference import QwenVL
from qwenvl_edge_export.files.thread_map import in_order
from qwenvl_edge_export.quantization.formats import Integers

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOKENIZER_NAME = "qwen.tiktoken"
_WEIGHT_NAMES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_BLOCK_BYTES = 4 << 20


class Shard(Protocol):
    """One opened file of weights."""

    def names(self) -> list[str]:
        """Names of the tensors in the file."""

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype, without reading the values."""

    def tensor(self, name: str) -> torch.Tensor:
        """The values, memory-mapped."""


class SafetensorsShard:
    """A .safetensors file."""

    def __init__(self, path: Path):
        self._file: Any = safe_open(path, framework="pt")

    def names(self) -> list[str]:
        """Names of the tensors in the file."""
        return list(self._file.keys())

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype, without reading the values."""
        part = self._file.get_slice(name)
        known = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32}
        return tuple(part.get_shape()), known.get(part.get_dtype(), torch.uint8)

    def tensor(self, name: str) -> torch.Tensor:
        """The values, memory-mapped."""
        return self._file.get_tensor(name)  # type: ignore[no-any-return]


class PickleShard:
    """A pytorch_model*.bin file, opened without executing what it may contain."""

    def __init__(self, path: Path):
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
            raise ValueError("it does not hold a dictionary of tensors")
        self._tensors: dict[str, torch.Tensor] = content

    def names(self) -> list[str]:
        """Names of the tensors in the file."""
        return list(self._tensors)

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype, without reading the values."""
        return tuple(self._tensors[name].shape), self._tensors[name].dtype

    def tensor(self, name: str) -> torch.Tensor:
        """The values, memory-mapped."""
        return self._tensors[name].detach()


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint whose tensors are all there, with the right shapes and float dtypes."""

    path: Path
    config: QwenVLConfig
    generation: dict[str, Any]
    weight_files: tuple[Path, ...]
    _where: dict[str, Shard] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Open the checkpoint in folder `path` and check every tensor's name, shape and dtype.

        Raises:
            CheckpointError: the folder, a file or a shard is missing or unreadable, or tensors are missing, extra or
                misshapen (all of them in one message).
        """
        folder = Path(path)
        if not folder.is_dir():
            raise CheckpointError(f'there is no checkpoint folder at "{folder}".')
        config = QwenVLConfig.from_json(folder / "config.json")
        generation = _read_object(folder / "generation_config.json")
        if not (folder / TOKENIZER_NAME).is_file():
            raise CheckpointError(f'the checkpoint "{folder}" lacks {TOKENIZER_NAME}; copy it from the published one.')
        files = _weight_files(folder)
        where: dict[str, Shard] = {}
        for file in files:
            shard = _open_shard(file)
            where.update(dict.fromkeys(shard.names(), shard))
        where = as_float_weights(folder, where, expected_shapes(config))
        _check_tensors(folder, config, where)
        return cls(folder, config, generation, files, where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of tensor `name`."""
        return self._where[name].describe(name)[0]

    def tensor(self, name: str) -> torch.Tensor:
        """Tensor `name` as stored (float32, float16 or bfloat16), memory-mapped where the file allows it.

        A quantized weight is computed, in float32.
        """
        return self._where[name].tensor(name)

    def integers(self, name: str) -> Integers | None:
        """The weight `name` as stored, if the checkpoint is quantized (`tensor` gives the floats it stands for)."""
        shard = self._where[name]
        return shard.integers() if isinstance(shard, GptqLayer) else None

    @property
    def group(self) -> int | None:
        """Inputs that share a scale, if the checkpoint is quantized."""
        return next((shard.group for shard in self._where.values() if isinstance(shard, GptqLayer)), None)

    @property
    def source_files(self) -> tuple[Path, ...]:
        """Every file that an export reads."""
        fixed = (self.path / name for name in ("config.json", "generation_config.json", TOKENIZER_NAME))
        return (*fixed, *self.weight_files)

    def digest(self, on_bytes: Callable[[int], None] = lambda count: None) -> str:
        """SHA-256 over the names and SHA-256 of the source files; `on_bytes` is told of every file read."""
        total = hashlib.sha256()
        for path, one in zip(self.source_files, in_order(_file_digest, self.source_files), strict=True):
            on_bytes(path.stat().st_size)
            total.update(f"{path.name} {one}\n".encode())
        return total.hexdigest()


def load_model(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> QwenVL:
    """The reference model with the checkpoint's weights in `dtype`, ready for inference."""
    with torch.device("meta"):
        model = QwenVL(checkpoint.config)
    state = {name: checkpoint.tensor(name).to(dtype) for name in model.state_dict()}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def expected_shapes(config: QwenVLConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this configuration has."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in QwenVL(config).state_dict().items()}


def _weight_files(folder: Path) -> tuple[Path, ...]:
    for single, index in _WEIGHT_NAMES:
        if (folder / index).is_file():
            return _shards_of_index(folder, index)
        if (folder / single).is_file():
            return (folder / single,)
    names = ", ".join(name for pair in _WEIGHT_NAMES for name in pair)
    raise CheckpointError(f'the checkpoint "{folder}" has no weights: none of {names} is there.')


def _shards_of_index(folder: Path, index: str) -> tuple[Path, ...]:
    mapping = _read_object(folder / index).get("weight_map")
    if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping.values()) or not mapping:
        raise CheckpointError(f'"{folder / index}" has no weight_map; download it again.')
    names = sorted(set(mapping.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f'"{folder / index}" names shards outside the folder: {", ".join(outside)}.')
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            f'the checkpoint "{folder}" lacks {len(missing)} of {len(names)} shards named by {index}: '
            f"{', '.join(missing)}; download them again."
        )
    return tuple(folder / name for name in names)


def _open_shard(path: Path) -> Shard:
    try:
        return SafetensorsShard(path) if path.suffix == ".safetensors" else PickleShard(path)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise CheckpointError(
            f'cannot read the weights in "{path}" ({reason}); the file is truncated, altered, or not plain tensors.'
        ) from None


def _check_tensors(folder: Path, config: QwenVLConfig, where: dict[str, Shard]) -> None:
    expected = expected_shapes(config)
    problems = [f"missing {name} {list(expected[name])}" for name in expected if name not in where]
    problems += [f"extra {name}" for name in where if name not in expected]
    for name in expected:
        if name not in where:
            continue
        shape, dtype = where[name].describe(name)
        if shape != expected[name]:
            problems.append(f"{name} has shape {list(shape)} instead of {list(expected[name])}")
        if dtype not in DTYPES:
            problems.append(f"{name} is not float32, float16 or bfloat16")
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise CheckpointError(
            f'the checkpoint "{folder}" does not fit its config.json, {count}: {"; ".join(problems)}.'
        )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f'the checkpoint "{path.parent}" lacks {path.name}.') from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f'cannot read "{path}": {error}.') from None
    if not isinstance(content, dict):
        raise CheckpointError(f'"{path}" is not a JSON object.')
    return content


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
