"""Files of a bundle and of its engines: their sizes and digests, checked before anything reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwenvl_edge.errors import BundleError

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
) -> None:
    """Check that every file is there with its size, and the SHA-256 of those up to a size (None: of all).

    Args:
        folder: what the names in `files` are relative to; no file may lie outside it, not even through a link.
        files: what each file must be.
        hash_up_to_bytes: larger files are only checked for their size.
        what: what the folder is, for messages; so are `listed_in` and `remedy`, the advice that ends them.

    Raises:
        BundleError: names the first file that is missing, truncated or altered.
    """
    root = folder.resolve()
    for name, info in files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f'the {what} "{folder}" lacks "{name}"; {remedy}.')
        if not path.resolve().is_relative_to(root):
            raise BundleError(f'"{name}" in the {what} "{folder}" is a link that leaves the folder.')
        if (size := path.stat().st_size) != info.size:
            raise BundleError(
                f'"{path}" has {size:,} bytes instead of {info.size:,}: it is truncated or altered; {remedy}.'
            )
    for name, info in files.items():
        if (hash_up_to_bytes is None or info.size <= hash_up_to_bytes) and sha256(folder / name) != info.sha256:
            raise BundleError(f'"{folder / name}" was altered: its SHA-256 is not the one in {listed_in}; {remedy}.')


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits.

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
