"""The files of weights in a checkpoint's folder, whatever the program that wrote them called them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.folder_kinds import explain_no_weights
from qwenvl_edge_export.checkpoint.json_file import read_object
from qwenvl_edge_export.checkpoint.listing import few

# In the order of preference, each with patterns of files that have such names and are not a model's weights.
_KINDS = (
    ("model", (".safetensors",), ("adapter_*", "optimizer*", "scheduler*", "random_states*", "*lora*")),
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


def find_weights(folder: Path) -> tuple[Path, ...]:
    """The files of weights in a checkpoint's folder; see `choose_weights`.

    Raises:
        CheckpointError: there are none, an index is malformed or names files that are missing or elsewhere, or
            numbered files are not complete.
    """
    names = sorted(path.name for path in folder.iterdir())
    files, index = choose_weights(names, str(folder))
    if index:
        files = shards_of_index(folder / index, names)
    if not files:
        raise CheckpointError(explain_no_weights(folder, names))
    return tuple(folder / name for name in files)


def choose_weights(names: Sequence[str], place: str = "") -> tuple[list[str], str]:
    """Of a folder's file names, those of weights, or else the index that names them; both are empty if there are none.

    Safetensors come before pickles. A file of the usual name comes before an index, an index before numbered files
    without one, and these before files of any name. Those of optimizers and adapters are no weights.

    Raises:
        CheckpointError: there are several indices or numberings, or a numbering is not complete.
    """
    for stem, suffixes, others in _KINDS:
        single = f"{stem}{suffixes[0]}"
        if single in names:
            return [single], ""
        if index := _index(place, names, f"{single}.index.json", f"{suffixes[0]}.index.json"):
            return [], index
        matching = [
            name for name in names if name.endswith(suffixes) and not any(fnmatchcase(name, other) for other in others)
        ]
        if matching:
            return _complete(place, matching), ""
    return [], ""


def _index(place: str, names: Sequence[str], usual: str, ending: str) -> str | None:
    if usual in names:
        return usual
    found = [name for name in names if name.endswith(ending)]
    if len(found) > 1:
        raise CheckpointError(f'the checkpoint "{place}" has several indices of weights: {few(found)}; keep one.')
    return found[0] if found else None


def _complete(place: str, names: Sequence[str]) -> list[str]:
    """The files that make up one model: those of one numbering, if there is one, or all."""
    numbered = [(found, name) for name in names if (found := _NUMBERED.fullmatch(name))]
    if not numbered:
        return list(names)
    sets = {(found["stem"], found["total"], found["suffix"]) for found, _ in numbered}
    if len(sets) > 1:
        patterns = [f"{stem}-*-of-{total}{suffix}" for stem, total, suffix in sorted(sets)]
        raise CheckpointError(f'the checkpoint "{place}" has shards of several models: {few(patterns)}; keep one.')
    ((_, total, _),) = sets
    there = {int(found["part"]): name for found, name in numbered}
    if lost := [f"number {part}" for part in range(1, int(total) + 1) if part not in there]:
        raise CheckpointError(
            f'the checkpoint "{place}" lacks {len(lost):,} of {int(total):,} shards: '
            f"{few(lost)} (there is {min(there.values())}); download them again."
        )
    return [there[part] for part in sorted(there)]


def shards_of_index(index: Path, names: Sequence[str]) -> list[str]:
    """The files that the index at `index` names, which are all among `names`.

    Raises:
        CheckpointError: it is malformed, or names files that are missing or elsewhere.
    """
    mapping = read_object(index).get("weight_map")
    if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping.values()) or not mapping:
        raise CheckpointError(f'"{index}" has no weight_map; download it again.')
    shards = sorted(set(mapping.values()))
    if outside := [name for name in shards if Path(name).name != name or not name.strip(".")]:
        raise CheckpointError(f'"{index}" names shards outside the folder: {few(outside)}.')
    if missing := [name for name in shards if name not in names]:
        raise CheckpointError(
            f'the checkpoint "{index.parent}" lacks {len(missing):,} of {len(shards):,} shards named by {index.name}: '
            f"{few(missing)}; download them again."
        )
    return shards
