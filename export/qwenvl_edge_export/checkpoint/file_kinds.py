"""Files that are not what their names say: each kind has an error of its own, before a parser fails on it."""

from __future__ import annotations

import stat
from pathlib import Path

from qwenvl_edge.bundle.manifest import MANIFEST_NAME
from qwenvl_edge.errors import CheckpointError
from qwenvl_edge.machine.urls import shown, url_of

_HEAD_BYTES = 512
_LFS_POINTER = b"version https://git-lfs"
_AGAIN = "download it again"
_MAGIC = (
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"Rar!", "a rar archive"),
    (b"GGUF", "a GGUF file (llama.cpp)"),
    (b"\x89HDF", "an HDF5 file (TensorFlow)"),
    (b"%PDF", "a PDF"),
)


def check_folder(folder: Path) -> None:
    """Check that `folder` is one that can be listed.

    Raises:
        CheckpointError: it is not there, is a file, may not be entered, or is a bundle.
    """
    if url := url_of(folder):
        raise CheckpointError(f"{shown(url)} is a URL; download the checkpoint and give its folder.")
    try:
        if folder.is_dir():
            next(folder.iterdir(), None)
            if (folder / MANIFEST_NAME).is_file() and not (folder / "config.json").exists():
                raise CheckpointError(f'"{folder}" is a bundle, not a checkpoint; ask it with `qwenvl chat {folder}`.')
            return
        present = folder.exists() or folder.is_symlink()
    except PermissionError:
        raise CheckpointError(f'the checkpoint folder "{folder}" may not be read: permission denied.') from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f'cannot open the checkpoint folder "{folder}": {reason(error)}.') from None
    if folder.is_symlink() and not folder.exists():
        raise CheckpointError(f'"{folder}" is a link to a folder that is not there.')
    if present:
        raise CheckpointError(f'"{folder}" is a file; give the checkpoint\'s folder.')
    raise CheckpointError(
        f'there is no checkpoint folder at "{folder}"; give the folder of one, or org/name to fetch it from the '
        "Hugging Face Hub (docs/checkpoints.md says where they are)."
    )


def read_head(path: Path) -> bytes:
    """The first bytes of a file of a checkpoint, which is a plain one, readable, not empty and no stand-in for another.

    Raises:
        CheckpointError: it is absent, a folder, a link to nothing, unreadable, empty, a Git LFS pointer or a web page.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(f'"{path}" is a folder where a file is expected; {_AGAIN}.')
        if not stat.S_ISREG(mode):
            raise CheckpointError(f'"{path}" is a device, pipe or socket where a file is expected.')
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        if path.is_symlink():
            raise CheckpointError(f'"{path}" is a link to a file that is not there; {_AGAIN}.') from None
        raise CheckpointError(f'the checkpoint "{path.parent}" lacks {path.name}.') from None
    except OSError as error:
        raise CheckpointError(f'cannot read "{path}": {reason(error)}.') from None
    if not head:
        raise CheckpointError(f'"{path}" is empty; {_AGAIN}.')
    if head.startswith(_LFS_POINTER):
        raise CheckpointError(
            f'"{path}" is a Git LFS pointer, not the file itself; run "git lfs pull" in its folder, or {_AGAIN}.'
        )
    if _text(head).startswith(("<!doctype", "<html", "<?xml", "<head", "<body")):
        raise CheckpointError(
            f'"{path}" is a web page, perhaps an error or a login, under the name of a file; {_AGAIN}.'
        )
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            raise CheckpointError(f'"{path}" is {kind}, not what its name says; unpack or convert it.')
    return head


def reason(error: BaseException) -> str:
    """An operating system's or a library's words for an error, in one short line."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    line = " ".join(str(words).split())
    return line if len(line) <= 200 else f"{line[:197]}..."


def _text(head: bytes) -> str:
    return head.removeprefix(b"\xef\xbb\xbf").decode("latin-1").lstrip().lower()
