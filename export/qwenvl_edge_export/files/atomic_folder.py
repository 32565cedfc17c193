"""A folder that is whole or not there: written under another name beside its place, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from qwenvl_edge.errors import BundleError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def staged_folder(target: Path, *, replace: bool) -> Iterator[Path]:
    """Give a new folder `<target>.partial-<pid>`; when the block ends well it takes the place of `target`.

    If the block fails or is interrupted the new folder goes and `target` stays as it was.

    Args:
        target: absolute path.
        replace: swap out what is at `target`, once the new folder is whole; without it, that is an error.

    Raises:
        BundleError: the folder cannot be made, written or renamed (disk full, no permission); says why.
    """
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
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
    """Remove what dead processes left beside `target`, and bring back the old one if a swap was cut in the middle."""
    for path in target.parent.glob(f"{glob.escape(target.name)}.*"):
        match = re.fullmatch(re.escape(target.name) + r"\.(partial|old)-(\d+)", path.name)
        if match is None or _is_running(int(match[2])):
            continue
        if match[1] == "old" and not target.exists():
            path.rename(target)
        else:
            _discard(path)


def _swap(partial: Path, target: Path) -> None:
    """Put `partial` in the place of `target`, in one step where the system can; what was there is discarded."""
    if _exchange(partial, target):
        _discard(partial)
        return
    old = target.with_name(f"{target.name}.old-{os.getpid()}")
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    _discard(old)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places at once (renameat2 of Linux); False where system or file system do not know how.

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
    for path in folder.iterdir():
        _flush_one(path)
    _flush_one(folder)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_running(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
