"""Files of weights, opened so that tensors come one at a time and only when asked for."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from qwenvl_edge.errors import CheckpointError

_WEIGHT_NAMES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


class Shard(Protocol):
    """One opened file of weights, or a tensor that is computed from several."""

    def names(self) -> list[str]:
        """Names of the tensors."""

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype, without reading the values."""

    def tensor(self, name: str) -> torch.Tensor:
        """The values, memory-mapped where they are stored as they are."""


class SafetensorsShard:
    """A .safetensors file."""

    def __init__(self, path: Path):
        self._file: Any = safe_open(path, framework="pt")

    def names(self) -> list[str]:
        """See Shard."""
        return list(self._file.keys())

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """See Shard."""
        part = self._file.get_slice(name)
        known = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32}
        return tuple(part.get_shape()), known.get(part.get_dtype(), torch.uint8)

    def tensor(self, name: str) -> torch.Tensor:
        """See Shard."""
        return self._file.get_tensor(name)  # type: ignore[no-any-return]


class PickleShard:
    """A pytorch_model*.bin file, opened with weights_only: nothing that it may contain is executed."""

    def __init__(self, path: Path):
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
            raise ValueError("it does not hold a dictionary of tensors")
        self._tensors: dict[str, torch.Tensor] = content

    def names(self) -> list[str]:
        """See Shard."""
        return list(self._tensors)

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """See Shard."""
        return tuple(self._tensors[name].shape), self._tensors[name].dtype

    def tensor(self, name: str) -> torch.Tensor:
        """See Shard."""
        return self._tensors[name].detach()


def find_weights(folder: Path) -> tuple[Path, ...]:
    """The files of weights in a checkpoint's folder, safetensors before pickles.

    Raises:
        CheckpointError: there are none, the index is malformed, or it names files that are missing or elsewhere.
    """
    for single, index in _WEIGHT_NAMES:
        if (folder / index).is_file():
            return _shards_of_index(folder, index)
        if (folder / single).is_file():
            return (folder / single,)
    names = ", ".join(name for pair in _WEIGHT_NAMES for name in pair)
    raise CheckpointError(f'the checkpoint "{folder}" has no weights: none of {names} is there.')


def open_shard(path: Path) -> Shard:
    """Open one file of weights.

    Raises:
        CheckpointError: it is truncated, altered, or holds something else than tensors.
    """
    try:
        return SafetensorsShard(path) if path.suffix == ".safetensors" else PickleShard(path)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise CheckpointError(
            f'cannot read the weights in "{path}" ({reason}); the file is truncated, altered, or not plain tensors.'
        ) from None


def read_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object.

    Raises:
        CheckpointError: the file is missing, unreadable, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f'the checkpoint "{path.parent}" lacks {path.name}.') from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f'cannot read "{path}": {error}.') from None
    if not isinstance(content, dict):
        raise CheckpointError(f'"{path}" is not a JSON object.')
    return content


def _shards_of_index(folder: Path, index: str) -> tuple[Path, ...]:
    mapping = read_object(folder / index).get("weight_map")
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
