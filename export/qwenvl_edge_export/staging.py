"""A folder that is whole or not there: written under another name beside its place, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from qwenvl_edge.errors import BundleError


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Give a new folder `<target>.partial-<pid>`; when the block ends well it takes the place of `target`.

    If the block fails or is interrupted the new folder goes and `target` stays as it was. What dead processes left
    behind is removed first.

    Raises:
        BundleError: the folder cannot be made, written or renamed (disk full, no permission); says why.
    """
    target = target.absolute()
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        partial.mkdir()
        try:
            yield partial
            _flush(partial)
            _swap(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise BundleError(f'cannot write "{target}": {error.strerror or error}; nothing was left behind.') from error


def _remove_stale(target: Path) -> None:
    for path in target.parent.glob(f"{_escaped(target.name)}.*"):
        match = re.fullmatch(re.escape(target.name) + r"\.(partial|old)-(\d+)", path.name)
        if match is None or _is_running(int(match[2])):
            continue
        if match[1] == "old" and not target.exists():
            path.rename(target)  # a swap was cut in the middle: the old bundle is the one that is whole
        else:
            shutil.rmtree(path, ignore_errors=True)


def _swap(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
    else:
        old = target.with_name(f"{target.name}.old-{os.getpid()}")
        target.rename(old)
        try:
            partial.rename(target)
        except BaseException:
            old.rename(target)
            raise
        _remove(old)
    _flush_one(target.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


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


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)
