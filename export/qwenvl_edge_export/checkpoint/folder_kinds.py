"""Folders that are no checkpoint: what they are instead, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.json_file import read_object
from qwenvl_edge_export.checkpoint.listing import counted, few
from qwenvl_edge_export.checkpoint.tensor_names import MERGE

CONFIG = "config.json"
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_FOREIGN = (
    ("*.gguf", "GGUF (llama.cpp)"),
    ("*.onnx", "ONNX"),
    ("tf_model.h5", "TensorFlow"),
    ("flax_model.msgpack", "Flax"),
    ("*.distcp", "a distributed checkpoint (torch.distributed.checkpoint)"),
    ("zero_to_fp32.py", "DeepSpeed's parts; run the zero_to_fp32.py there"),
)


def check_config_is_there(folder: Path) -> None:
    """Check that a folder has a config.json, of whatever kind.

    Raises:
        CheckpointError: it has none; says what the folder looks like.
    """
    names = sorted(path.name for path in folder.iterdir())
    if CONFIG in names:
        return
    if _ADAPTERS[0] in names:
        raise CheckpointError(explain_no_weights(folder, names))
    inside = [name for name in names if (folder / name / CONFIG).is_file()]
    examples = few([f'"{name}"' for name in inside])
    hint = f"; there is one in {examples}" if inside else ""
    raise CheckpointError(f'the checkpoint "{folder}" lacks {CONFIG}{hint}.')


def explain_no_weights(folder: Path, names: Sequence[str]) -> str:
    """A sentence about a folder with the files `names`, none of which holds a model's weights."""
    if any(name in names for name in _ADAPTERS) or any(fnmatchcase(name, "*lora*") for name in names):
        return f'"{folder}" holds an adapter{_base_model(folder, names)} without its model; {MERGE}.'
    for pattern, what in _FOREIGN:
        if found := [name for name in names if fnmatchcase(name, pattern)]:
            return (
                f'the checkpoint "{folder}" has no weights as safetensors or pytorch_model.bin; {few(found, 1)} is '
                f"{what}."
            )
    partial = [name for name in names if name.endswith((".incomplete", ".part", ".aria2", ".crdownload", ".tmp"))]
    if partial:
        return f'the checkpoint "{folder}" is not downloaded to its end ({few(partial, 1)}); continue the download.'
    here = f"it holds {counted(len(names), 'file')}: {few(names)}" if names else "it is empty"
    return f'the checkpoint "{folder}" has no weights, neither model.safetensors nor pytorch_model.bin; {here}.'


def _base_model(folder: Path, names: Sequence[str]) -> str:
    """The words for the model that an adapter belongs to, where its configuration tells."""
    if _ADAPTERS[0] not in names:
        return " (LoRA or the like)"
    base = read_object(folder / _ADAPTERS[0]).get("base_model_name_or_path")
    return f' of "{few([base])}"' if isinstance(base, str) and base else " (LoRA or the like)"
