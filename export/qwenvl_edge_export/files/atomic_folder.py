"""A folder that is whole or not there: written under another name beside its place, flushed to disk, then renamed.

Whoever calls these functions is the sole writer at `target` (path_lock.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from qwenvl_edge.errors import BundleError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def staged_folder(target: Path, *, replace: bool) -> Iterator[Path]:
    """Give a new folder `<target>.partial-<random>`; after the block, without an error, it takes the place of `target`.

    If the block fails or is interrupted the new folder goes and `target` stays as it was.

    Args:
        target: absolute path.
        replace: replace what is at `target` once the new folder is whole; without it, an existing one is an error.

    Raises:
        BundleError: the folder cannot be made, written or renamed (disk full, no permission); says why.
    """
    partial = _beside(target, "partial")
    try:
        try:
            partial.mkdir()
            yield partial
            _flush(partial)
            if replace and target.exists():
                _swap(partial, target)
            else:
                partial.rename(target)
            _flush_one(target.parent)
        finally:
            _discard(partial)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BundleError(f'cannot write "{target}": {reason}; nothing was left behind.') from error


def clean_up(target: Path) -> None:
    """Remove what dead writers left beside `target`, and bring back the old folder after an interrupted swap."""
    for path in target.parent.glob(f"{glob.escape(target.name)}.*"):
        match = re.fullmatch(re.escape(target.name) + r"\.(partial|old)-[0-9a-f]+", path.name)
        if match is None:
            continue
        if match[1] == "old" and not target.exists():
            path.rename(target)
        else:
            _discard(path)


def _beside(target: Path, kind: str) -> Path:
    return target.with_name(f"{target.name}.{kind}-{secrets.token_hex(4)}")


def _swap(partial: Path, target: Path) -> None:
    """Put `partial` in the place of `target`, in one step where the system can; the old one is discarded."""
    if _exchange(partial, target):
        _discard(partial)
        return
    old = _beside(target, "old")
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    _discard(old)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths at once (renameat2 of Linux); False where the system or the file system cannot.

    Raises:
        OSError: they cannot be renamed.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    ctypes.set_errno(0)
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code))


def _discard(path: Path) -> None:
    """Remove a folder or a link to one, if it is there."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        _flush_one(path)
    _flush_one(folder)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
