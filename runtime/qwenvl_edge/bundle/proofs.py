"""Proofs that a file has its digest, kept between runs, so that large files are hashed once and not at every start.

A proof is an empty file in the user's cache folder. Its name stands for the file's device, inode, size, times of the
last change and digest: whatever writes to a file, or puts another in its place, changes one of them. Damage
that changes no time, such as a flipped bit on the disk, is found by `qwenvl doctor BUNDLE --files`, which trusts no
proof.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import time
from pathlib import Path

_SETTLED_S = 3.0  # a file changed less than this ago could change again without another time
_MOST = 4096  # proofs; the oldest are dropped beyond
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def is_proven(found: os.stat_result, sha256: str) -> bool:
    """Return whether the file with this stat has been hashed to this digest before."""
    folder = _folder()
    return folder is not None and (folder / _name(found, sha256)).exists()


def remember(found: os.stat_result, sha256: str) -> None:
    """Keep the proof that the file with this stat has this digest; do nothing where the folder cannot be written."""
    folder = _folder(make=True)
    if folder is None or abs(time.time() - max(found.st_mtime, found.st_ctime)) < _SETTLED_S:
        return
    with contextlib.suppress(OSError):
        (folder / _name(found, sha256)).touch()
        _prune(folder)


def same_file(one: os.stat_result, other: os.stat_result) -> bool:
    """Return whether two stats are of one file in one state."""
    return _key(one) == _key(other)


def _key(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _name(found: os.stat_result, sha256: str) -> str:
    return hashlib.sha256(repr((*_key(found), sha256)).encode()).hexdigest()


def _folder(*, make: bool = False) -> Path | None:
    """Return the folder of proofs; None where there is none, or where others could write into it."""
    try:
        folder = _cache() / "qwenvl-edge" / "hashed"
        if make:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    if hasattr(os, "geteuid") and (found.st_uid != os.geteuid() or found.st_mode & _OTHERS_MAY_WRITE):
        return None
    return folder


def _cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    given = os.environ.get("XDG_CACHE_HOME", "")
    return Path(given) if Path(given).is_absolute() else Path.home() / ".cache"


def _prune(folder: Path) -> None:
    proofs = list(folder.iterdir())
    if len(proofs) > _MOST:
        for proof in sorted(proofs, key=lambda path: path.stat().st_mtime)[: _MOST // 4]:
            proof.unlink(missing_ok=True)
