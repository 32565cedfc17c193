"""A folder that is whole or not there: written under another name beside its place, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from qwenvl_edge.errors import BundleError


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
        partial.mkdir()
        try:
            yield partial
            _flush(partial)
            if replace and target.exists():
                _swap(partial, target)
            else:
                partial.rename(target)
            _flush_one(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
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
            shutil.rmtree(path, ignore_errors=True)


def _swap(partial: Path, target: Path) -> None:
    old = target.with_name(f"{target.name}.old-{os.getpid()}")
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)


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
