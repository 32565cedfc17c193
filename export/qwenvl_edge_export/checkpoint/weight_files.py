"""The files of weights in a checkpoint's folder, whatever the program that wrote them called them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.json_file import read_object
from qwenvl_edge_export.checkpoint.listing import counted, few
from qwenvl_edge_export.checkpoint.tensor_names import MERGE

# In the order of preference, each with the patterns of what else has such a name and is no model.
_KINDS = (
    ("model", ".safetensors", ("adapter_*", "optimizer*", "scheduler*", "random_states*", "*lora*")),
    (
        "pytorch_model",
        (".bin", ".pt", ".pth", ".ckpt"),
        (
            *("adapter_*", "optimizer*", "scheduler*", "scaler*", "rng_state*", "random_states*", "training_args*"),
            *("trainer_state*", "*lora*", "tokenizer*", "preprocessor*", "*optim_states*"),
        ),
    ),
)
_NUMBERED = re.compile(r"(?P<stem>.*?)-?(?P<part>\d{1,5})-of-(?P<total>\d{1,5})(?P<suffix>\.\w+)")
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_FOREIGN = (
    ("*.gguf", "GGUF (llama.cpp)"),
    ("*.onnx", "ONNX"),
    ("tf_model.h5", "TensorFlow"),
    ("flax_model.msgpack", "Flax"),
    ("*.distcp", "a distributed checkpoint (torch.distributed.checkpoint)"),
    ("zero_to_fp32.py", "DeepSpeed's parts; run the zero_to_fp32.py there"),
)


def find_weights(folder: Path) -> tuple[Path, ...]:
    """The files of weights in a checkpoint's folder, safetensors before pickles.

    A file of the usual name comes before an index, an index before numbered files without one, and these before files
    of any name. Those of optimizers and adapters are no weights.

    Raises:
        CheckpointError: there are none, an index is malformed or names files that are missing or elsewhere, or
            numbered files are not complete.
    """
    names = sorted(path.name for path in folder.iterdir())
    for stem, suffixes, others in _KINDS:
        matching = [
            name for name in names if name.endswith(suffixes) and not any(fnmatchcase(name, other) for other in others)
        ]
        first = suffixes if isinstance(suffixes, str) else suffixes[0]
        single = f"{stem}{first}"
        if single in names:
            return (folder / single,)
        if index := _index(folder, names, f"{single}.index.json", f"{first}.index.json"):
            return _shards_of_index(folder, index, names)
        if matching:
            return tuple(folder / name for name in _complete(folder, matching))
    raise CheckpointError(_no_weights(folder, names))


def _index(folder: Path, names: Sequence[str], usual: str, ending: str) -> str | None:
    if usual in names:
        return usual
    found = [name for name in names if name.endswith(ending)]
    if len(found) > 1:
        raise CheckpointError(f'the checkpoint "{folder}" has several indices of weights: {few(found)}; keep one.')
    return found[0] if found else None


def _complete(folder: Path, names: Sequence[str]) -> list[str]:
    """The files that make up one model: those of one numbering, if there is one, or all."""
    numbered = [(found, name) for name in names if (found := _NUMBERED.fullmatch(name))]
    if not numbered:
        return list(names)
    sets = {(found["stem"], found["total"], found["suffix"]) for found, _ in numbered}
    if len(sets) > 1:
        patterns = [f"{stem}-*-of-{total}{suffix}" for stem, total, suffix in sorted(sets)]
        raise CheckpointError(f'the checkpoint "{folder}" has shards of several models: {few(patterns)}; keep one.')
    ((_, total, _),) = sets
    there = {int(found["part"]): name for found, name in numbered}
    if lost := [f"number {part}" for part in range(1, int(total) + 1) if part not in there]:
        raise CheckpointError(
            f'the checkpoint "{folder}" lacks {len(lost):,} of {int(total):,} shards: '
            f"{few(sorted(there.values()), 1)} is there, but not {few(lost)}; download them again."
        )
    return [there[part] for part in sorted(there)]


def _shards_of_index(folder: Path, index: str, names: Sequence[str]) -> tuple[Path, ...]:
    mapping = read_object(folder / index).get("weight_map")
    if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping.values()) or not mapping:
        raise CheckpointError(f'"{folder / index}" has no weight_map; download it again.')
    shards = sorted(set(mapping.values()))
    if outside := [name for name in shards if Path(name).name != name or not name.strip(".")]:
        raise CheckpointError(f'"{folder / index}" names shards outside the folder: {few(outside)}.')
    if missing := [name for name in shards if name not in names]:
        raise CheckpointError(
            f'the checkpoint "{folder}" lacks {len(missing):,} of {len(shards):,} shards named by {index}: '
            f"{few(missing)}; download them again."
        )
    return tuple(folder / name for name in shards)


def _no_weights(folder: Path, names: Sequence[str]) -> str:
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
