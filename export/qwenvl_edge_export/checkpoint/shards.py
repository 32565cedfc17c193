"""Files of weights, opened so that tensors come one at a time and only when asked for.

What a file holds decides how it is read, not its name. Pickles are opened with weights_only: nothing in them is run.
"""

from __future__ import annotations

import pickle
import re
import struct
import threading
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from safetensors import SafetensorError, safe_open

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.file_kinds import read_head, reason
from qwenvl_edge_export.checkpoint.listing import few, shortened

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
# Where trainers put the tensors, beside the state of the optimizer and the like.
_NESTS = ("state_dict", "model_state_dict", "model", "module", "params")
_DEEPEST_NEST = 4
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)|global '?([\w.]+)'?")
_ERRORS = (OSError, RuntimeError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError, struct.error)


class Shard(Protocol):
    """One opened file of weights."""

    def names(self) -> list[str]:
        """Names of the tensors."""

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype, without reading the values."""

    def tensor(self, name: str) -> torch.Tensor:
        """The values, memory-mapped where the file allows it."""


class Source(Protocol):
    """A tensor of a checkpoint: stored in a file, or computed from several that are."""

    def describe(self) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype, without reading the values."""

    def read(self) -> torch.Tensor:
        """The values."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, under the name that it has there."""

    shard: Shard
    name: str

    def describe(self) -> tuple[tuple[int, ...], torch.dtype]:
        """See Source."""
        return self.shard.describe(self.name)

    def read(self) -> torch.Tensor:
        """See Source."""
        return self.shard.tensor(self.name)


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
        return tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), torch.uint8)

    def tensor(self, name: str) -> torch.Tensor:
        """See Shard."""
        return self._file.get_tensor(name)  # type: ignore[no-any-return]


class PickleShard:
    """A file of torch.save in the zip format, memory-mapped."""

    def __init__(self, path: Path):
        self._tensors = _tensors(torch.load(path, map_location="cpu", mmap=True, weights_only=True))

    def names(self) -> list[str]:
        """See Shard."""
        return list(self._tensors)

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """See Shard."""
        return tuple(self._tensors[name].shape), self._tensors[name].dtype

    def tensor(self, name: str) -> torch.Tensor:
        """See Shard."""
        return self._tensors[name].detach()


class LegacyShard:
    """A file of torch.save from before its zip format, which cannot be mapped: the last one used stays in memory."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _loaded: ClassVar[tuple[Path, dict[str, torch.Tensor]] | None] = None

    def __init__(self, path: Path):
        self._path = path
        self._shapes = {name: (tuple(each.shape), each.dtype) for name, each in self._load().items()}

    def names(self) -> list[str]:
        """See Shard."""
        return list(self._shapes)

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """See Shard."""
        return self._shapes[name]

    def tensor(self, name: str) -> torch.Tensor:
        """See Shard."""
        return self._load()[name].detach()

    def _load(self) -> dict[str, torch.Tensor]:
        with self._lock:
            if LegacyShard._loaded is None or LegacyShard._loaded[0] != self._path:
                LegacyShard._loaded = None  # before the next one is read
                content = torch.load(self._path, map_location="cpu", weights_only=True)
                LegacyShard._loaded = (self._path, _tensors(content))
            return LegacyShard._loaded[1]


def open_shard(path: Path) -> Shard:
    """Open one file of weights.

    Raises:
        CheckpointError: it is truncated, altered, or holds something else than tensors.
    """
    kind = _reader(path, read_head(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle's protocols, which concern torch alone
            return kind(path)
    except (*_ERRORS, pickle.UnpicklingError, SafetensorError, zipfile.BadZipFile) as error:
        raise CheckpointError(f'cannot read the weights in "{path}": {_explained(error)}.') from None


def _reader(path: Path, head: bytes) -> type[SafetensorsShard | PickleShard | LegacyShard]:
    # A safetensors file begins with the length of its header, whose lowest byte may be that of a pickle.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return SafetensorsShard
    if head.startswith((_ZIP, _PICKLE)):
        if head.startswith(_ZIP):
            _check_torch_zip(path)
        if path.suffix == ".safetensors":
            raise CheckpointError(
                f'cannot read the weights in "{path}": it is a file of torch.save, not of safetensors; rename it to '
                '".bin".'
            )
        return PickleShard if head.startswith(_ZIP) else LegacyShard
    if path.suffix == ".safetensors":
        return SafetensorsShard
    raise CheckpointError(
        f'cannot read the weights in "{path}": it is neither a safetensors file nor one of torch.save; '
        "download it again."
    )


def _check_torch_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        raise CheckpointError(
            f'cannot read the weights in "{path}": the file is truncated or altered; download it again.'
        ) from None
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(
            f'cannot read the weights in "{path}": it is a zip archive ({few(names, 1)}), not a file of torch.save; '
            "unpack it."
        )


def _tensors(content: Any, place: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a loaded file: at its top, or one level down where trainers put them."""
    for _ in range(_DEEPEST_NEST):
        if not isinstance(content, Mapping):
            break
        tensors = {
            name: each for name, each in content.items() if isinstance(name, str) and isinstance(each, torch.Tensor)
        }
        nested = [name for name in _NESTS if isinstance(content.get(name), Mapping)]
        if not nested or any("." in name for name in tensors):
            if tensors or not content:
                return tensors
            break
        content = content[nested[0]]
    raise ValueError("it does not hold a dictionary of tensors")


def _explained(error: BaseException) -> str:
    words = str(error)
    if "Weights only load failed" in words or "Unsupported" in words:
        found = _GLOBAL.search(words)
        what = f" ({shortened(next(filter(None, found.groups())))})" if found else ""
        return (
            f"it holds Python objects besides tensors{what}, which are never executed; "
            "save the tensors alone, as torch.save(model.state_dict()) or save_pretrained do"
        )
    return f"the file is truncated, altered, or not plain tensors ({reason(error)})"
