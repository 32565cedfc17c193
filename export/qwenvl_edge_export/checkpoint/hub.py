"""A checkpoint by its name: a folder, or a model of the Hugging Face Hub, fetched into the Hub's own cache.

huggingface_hub does the work: HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and its progress bars are its own.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.file_kinds import check_folder, reason
from qwenvl_edge_export.checkpoint.folder_kinds import CONFIG
from qwenvl_edge_export.checkpoint.json_file import read_object
from qwenvl_edge_export.checkpoint.listing import shortened
from qwenvl_edge_export.checkpoint.quantization_config import OWN_FILES
from qwenvl_edge_export.checkpoint.weight_files import choose_weights, shards_of_index
from qwenvl_edge_export.families.base import ExportFamily
from qwenvl_edge_export.families.detect import family_type

GENERATION = "generation_config.json"
INSTALL = "pip install 'qwenvl-edge[hub]'"
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_URL = re.compile(r"(?:https?:/+[^/]+/|hf:/+)([\w.-]+/[\w.-]+).*")


def find_checkpoint(name: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder of the checkpoint `name`: that folder if it is there, else the Hub's model of the name "org/name".

    Args:
        name: a folder, or an id of the Hub.
        revision: of the Hub's model: a branch, a tag or a commit.

    Raises:
        CheckpointError: neither is there, it may not be read, or the model cannot be fetched.
    """
    text = os.fspath(name)
    folder = Path(text)
    if _is_there(folder) or not _ID.fullmatch(text):
        if revision is not None:
            raise CheckpointError(f'"{shortened(text)}" is no model of the Hub ("org/name"), so it has no revision.')
        if found := _URL.fullmatch(text):
            raise CheckpointError(f'"{shortened(text)}" is an address; write the model\'s name, {found[1]}.')
        check_folder(folder)
        return folder
    return _fetched(text, revision)


def needed_files(model: str, names: Sequence[str], family: type[ExportFamily]) -> list[str]:
    """Of a repository's files those that an export reads; an index stands for the shards that it names."""
    small = (CONFIG, GENERATION, family.tokenizer_file, *family.side_files, *OWN_FILES)
    weights, index = choose_weights([name for name in names if "/" not in name], model)
    return [*(name for name in small if name in names), *([index] if index else weights)]


def _is_there(path: Path) -> bool:
    try:
        return path.exists() or path.is_symlink()
    except (OSError, ValueError):
        return True  # something that cannot be looked at; opening it says why


def _fetched(model: str, revision: str | None) -> Path:
    hub = _hub(model)
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        config = Path(hub.hf_hub_download(model, CONFIG, revision=revision))
        family = family_type(read_object(config), config)  # before gigabytes are fetched
        try:
            listing = hub.HfApi().model_info(model, revision=revision or "main").siblings
        except Exception as error:
            if isinstance(error, errors.HfHubHTTPError) and error.response.status_code < 500:
                raise
            return config.parent  # no connection: what the cache has
        names = [each.rfilename for each in listing or ()]
        for name in needed_files(model, names, family):
            path = Path(hub.hf_hub_download(model, name, revision=config.parent.name))
            if name.endswith(".index.json"):
                for shard in shards_of_index(path, names):
                    hub.hf_hub_download(model, shard, revision=config.parent.name)
    except CheckpointError:
        raise
    except Exception as error:  # of the library, its HTTP client or the disk
        raise CheckpointError(_explained(model, revision, error, errors)) from None
    return config.parent


def _hub(model: str) -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError:
        raise CheckpointError(
            f'there is no checkpoint folder at "{model}"; to fetch the model of that name from the Hugging Face Hub, '
            f"run: {INSTALL}"
        ) from None


def _explained(model: str, revision: str | None, error: Exception, errors: Any) -> str:
    at = f'"{model}"' if revision is None else f'"{model}" at revision "{shortened(revision)}"'
    if isinstance(error, errors.GatedRepoError):
        return f'the model "{model}" is gated: accept its terms on its page and log in ("hf auth login", or HF_TOKEN).'
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f'there is neither a folder "{model}" nor a model of that name on the Hub; check the spelling, or log in '
            '("hf auth login", or HF_TOKEN) if it is private.'
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f'the model "{model}" has no revision "{shortened(revision or "main")}".'
    if isinstance(error, errors.LocalEntryNotFoundError):
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "ON", "YES")
        why = "HF_HUB_OFFLINE is set" if offline else "the Hub cannot be reached"
        return f"there is no folder {at}, the cache has no such model whole, and {why}."
    if isinstance(error, errors.EntryNotFoundError):
        return f"the model {at} has no config.json, so it is no checkpoint (an adapter, or files of another program)."
    return f"cannot fetch the model {at} from the Hub: {reason(error)}; run the command again to continue."
