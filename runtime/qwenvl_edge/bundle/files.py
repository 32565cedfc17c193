"""Files of a bundle and of its engines: their sizes and digests, checked before anything reads them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwenvl_edge.bundle import proofs
from qwenvl_edge.bundle.hashing import LargeFile
from qwenvl_edge.errors import BundleError
from qwenvl_edge.machine.urls import shown

HASHED_AT_OPEN_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


def check_files(
    folder: Path,
    files: Mapping[str, FileInfo],
    hash_up_to_bytes: int | None = None,
    *,
    what: str = "bundle",
    listed_in: str = "bundle.json",
    remedy: str = "copy the bundle again or export it again",
) -> tuple[LargeFile, ...]:
    """Check that every file is there with its size, and the SHA-256 of those up to a size (None: of all).

    Files that were hashed before and not written to since are not hashed again, unless all are to be.

    Args:
        folder: what the names in `files` are relative to. A file may be a link to a regular file anywhere, as the Hub's
            cache lays it; folders on the way to it may not lead outside.
        files: what each file must be.
        hash_up_to_bytes: larger files are only checked for their size.
        what: what the folder is, for messages; so are `listed_in` and `remedy`, the advice that ends them.

    Returns:
        The files that were not hashed.

    Raises:
        BundleError: names the first file that is missing, truncated or altered, or may not be read.
    """
    _check_sizes(folder, files, what, remedy)
    left = []
    for name, info in files.items():
        path = folder / name
        found = _stat(path)
        if hash_up_to_bytes is not None and proofs.is_proven(found, info.sha256):
            continue
        altered = f'"{path}" was altered: its SHA-256 is not the one in {listed_in}'
        if hash_up_to_bytes is not None and info.size > hash_up_to_bytes:
            words = f"{altered}; answers since it was opened may be wrong; {remedy}."
            left.append(LargeFile(path, info.sha256, found, words))
            continue
        if sha256(path) != info.sha256:
            raise BundleError(f"{altered}; {remedy}.")
        if proofs.same_file(found, _stat(path)):
            proofs.remember(found, info.sha256)
    return tuple(left)


def _check_sizes(folder: Path, files: Mapping[str, FileInfo], what: str, remedy: str) -> None:
    """Check that every file is there, in the folder or at the end of its own link, with its size."""
    root = folder.resolve()
    for name, info in files.items():
        path = folder / name
        if not path.parent.resolve().is_relative_to(root):
            raise BundleError(f'"{name}" in the {what} "{folder}" lies in a linked folder that leaves it; {remedy}.')
        if not is_file(path):
            raise BundleError(_no_file(path, f'the {what} "{folder}"', name, remedy))
        if (size := path.stat().st_size) != info.size:
            raise BundleError(
                f'"{path}" has {size:,} bytes instead of {info.size:,}: it is truncated or altered; {remedy}.'
            )


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise BundleError(f'cannot read "{path}": {error.strerror}.') from None


def is_file(path: Path) -> bool:
    """Return whether a file is there. Raises BundleError if permissions hide that."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise BundleError(f'cannot read "{shown(path)}": {reason}.') from None


def _no_file(path: Path, where: str, name: str, remedy: str) -> str:
    """The sentence about a path that is missing, or is not a file."""
    if path.is_symlink() and not path.exists():
        return f'"{path}" is a link to "{path.readlink()}", which is not there; {remedy}.'
    return f'{where} {"has something else than a file as" if path.exists() else "lacks"} "{name}"; {remedy}.'


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Raises:
        BundleError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise BundleError(f'cannot read "{path}": {error.strerror}.') from None
    return digest.hexdigest()
