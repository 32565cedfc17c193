"""One writer per path: a lock file beside it, held through the system's flock while its writer lives.

Process numbers would not work: containers and hosts that share a disk each have their own. The system drops the lock
when the writer ends, however it ends, and NFS passes it on to the other hosts. The last holder removes the file.
Where a file system has no flock, the file's existence is the lock; a killed writer leaves it behind, and the refusal
says so.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from qwenvl_edge.errors import BundleError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_POLL_S = 0.5
_WORDS_BYTES = 200

Progress = Callable[[int, int, str], None]

_held: dict[Path, int] = {}  # by this process: the sharers of each lock file, -1 if it is not shared
_guard = threading.Lock()


@contextlib.contextmanager
def sole_writer(target: Path, work: str, *, wait: bool = False, progress: Progress | None = None) -> Iterator[None]:
    """Be the only one who writes at `target`, among threads, processes, containers and hosts.

    Args:
        target: absolute path of the file or folder, which need not exist; its parent is made.
        work: what the writer does, for others' messages: "an export".
        wait: wait for another writer; without it, one is an error at once.
        progress: called with (0, 1, "waiting for ..") meanwhile.

    Raises:
        BundleError: another one is at work there, or the lock file cannot be made.
    """
    path = lock_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path, target, work, wait, progress, shared=False)
    except OSError as error:
        in_the_way = isinstance(error, FileExistsError)  # of the parent's name
        reason = f'"{target.parent}" is not a folder' if in_the_way else error.strerror or str(error)
        raise BundleError(f'cannot write "{target}": {reason}; nothing was left behind.') from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def staying(folder: Path, work: str, *, wait: bool = False, progress: Progress | None = None) -> Iterator[None]:
    """Keep `folder` from being replaced while something is written into it; others may do the same at once.

    Arguments as for sole_writer. Where the parent cannot be written no lock is taken: nobody with the same rights could
    replace the folder.

    Raises:
        BundleError: another one is replacing it.
    """
    try:
        lock = _acquire(lock_path(folder), folder, work, wait, progress, shared=True)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def lock_path(target: Path) -> Path:
    """The lock file of `target`; the same by whatever links its parent is reached."""
    return target.parent.resolve() / f".{target.name}.qwenvl-lock"


def _acquire(path: Path, target: Path, work: str, wait: bool, progress: Progress | None, *, shared: bool) -> _Lock:
    """Take the lock or wait for it.

    Raises:
        BundleError: it is taken, and `wait` is not set.
        OSError: its file cannot be made.
    """
    take: type[_Flock | _Existence] = _Flock if fcntl is not None else _Existence
    while True:
        try:
            lock = take(path, shared=shared)
            lock.sign(work)
            return lock
        except _Taken as taken:
            if not wait:
                remedy = taken.remedy or "wait for it (--wait), or choose another name"
                raise BundleError(f'"{target}" is being written by {taken.holder}; {remedy}.') from None
            if progress is not None:
                progress(0, 1, f"waiting for {taken.holder}")
            time.sleep(_POLL_S)
        except _NoFlock:
            take = _Existence


class _Taken(Exception):  # noqa: N818 - a signal, not an error
    """Somebody else has the lock; says who, and what may be done where waiting may not help."""

    def __init__(self, signature: bytes, remedy: str = ""):
        text = "".join(c for c in signature.decode("utf-8", "replace").strip() if c.isprintable())
        self.holder = text or "another process"
        self.remedy = remedy


class _NoFlock(Exception):  # noqa: N818 - a signal, not an error
    """The file system has no flock."""


class _Lock:
    """A lock file that is held; the threads of this process are told apart here, which NFS does not do."""

    def __init__(self, path: Path, *, shared: bool):
        self._path = path
        self._shared = shared
        with _guard:
            count = _held.get(path, 0)
            if count < 0 or (count and not shared):
                raise _Taken(_read(path))
            _held[path] = count + 1 if shared else -1
        try:
            self._descriptor = self._open()
        except BaseException:
            self._forget()
            raise

    def _open(self) -> int:
        raise NotImplementedError

    def _is_last(self) -> bool:
        """Tell if no other holder shares the lock."""
        raise NotImplementedError

    def sign(self, work: str) -> None:
        """Write into the file who holds it."""
        now = datetime.datetime.now(datetime.timezone.utc)
        words = f"{work} (process {os.getpid()} on {socket.gethostname()}, since {now:%Y-%m-%d %H:%M} UTC)"
        with contextlib.suppress(OSError):  # a full disk takes nothing from the lock
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, words.encode()[:_WORDS_BYTES], 0)

    def release(self) -> None:
        """Give the lock up, and remove its file if nobody shares it."""
        try:
            if self._is_last() and _is_at(self._descriptor, self._path):
                self._path.unlink(missing_ok=True)
        finally:
            os.close(self._descriptor)
            self._forget()

    def _forget(self) -> None:
        with _guard:
            count = _held.pop(self._path)
            if count > 1:
                _held[self._path] = count - 1


class _Flock(_Lock):
    """Held by flock: the system gives it up when the process ends."""

    def _open(self) -> int:
        kind = fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                # Its last holder may have removed the file between the two calls: then it locks nothing any more.
                if _is_at(descriptor, self._path):
                    return descriptor
            except OSError as error:
                try:
                    if error.errno in _NO_FLOCK:
                        self._path.unlink(missing_ok=True)
                        raise _NoFlock from None
                    if isinstance(error, BlockingIOError):
                        raise _Taken(os.pread(descriptor, _WORDS_BYTES, 0)) from None
                    raise
                finally:
                    os.close(descriptor)
            else:
                os.close(descriptor)

    def _is_last(self) -> bool:
        if not self._shared:
            return True
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


class _Existence(_Lock):
    """Held while its file exists, for file systems that have no flock; sharers exclude each other too."""

    def __init__(self, path: Path, *, shared: bool):
        super().__init__(path.with_name(f"{path.name}-file"), shared=False)

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            remedy = (
                "this file system has no locks that end with their process, so if that one does not run any more, "
                f'remove "{self._path}"'
            )
            raise _Taken(_read(self._path), remedy) from None

    def _is_last(self) -> bool:
        return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()[:_WORDS_BYTES]
    except OSError:
        return b""


def _is_at(descriptor: int, path: Path) -> bool:
    """Tell if `path` still names the open file."""
    try:
        opened, there = os.fstat(descriptor), path.lstat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return False
        raise
    return opened.st_nlink > 0 and os.path.samestat(there, opened)  # NFS may remember the name for some seconds
