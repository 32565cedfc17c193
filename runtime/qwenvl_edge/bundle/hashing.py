"""Hashing of large files in the background, after a bundle is opened: start-up does not wait for it."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenvl_edge.bundle import proofs
from qwenvl_edge.errors import BundleError
from qwenvl_edge.machine.priority import be_nice

_CHUNK = 1 << 20  # bytes; read and hashed without the interpreter's lock
_LOWEST = 19  # niceness
_PAUSE = 4  # while somebody computes: the share of the time of a chunk that follows it as a pause


@dataclass(frozen=True)
class LargeFile:
    """A file that is not hashed yet. found: its stat when it was opened; altered: the error's words if it differs."""

    path: Path
    sha256: str
    found: os.stat_result
    altered: str


class BackgroundCheck:
    """Hashes files in a daemon thread of the lowest priority, and slower while somebody computes.

    Args:
        files: what to hash, in order.
        busy: tells whether somebody computes.

    failure: the error's words once a file was found to differ.
    """

    def __init__(self, files: Sequence[LargeFile], busy: Callable[[], bool]) -> None:
        self._files = files
        self._busy = busy
        self._stop = threading.Event()
        self._done = threading.Event()
        self.failure: str | None = None
        if not files:
            self._done.set()
            return
        threading.Thread(target=self._run, name="qwenvl-hashing", daemon=True).start()

    def check(self) -> None:
        """Raise the error of a file that was found to differ. Raises BundleError."""
        if self.failure is not None:
            raise BundleError(self.failure)

    def wait(self) -> None:
        """Wait until all files are hashed, now at full speed. Raises BundleError as check."""
        self._busy = lambda: False
        self._done.wait()
        self.check()

    def stop(self) -> None:
        """End the thread after its present chunk."""
        self._stop.set()

    def _run(self) -> None:
        be_nice(_LOWEST)
        try:
            for file in self._files:
                self._check(file)
        except BundleError as error:
            self.failure = str(error)
        finally:
            self._done.set()

    def _check(self, file: LargeFile) -> None:
        """Hash a file, unless it was proven, or replaced since: a mapped file stays when another gets its name."""
        try:
            with file.path.open("rb", buffering=0) as opened:
                before = os.fstat(opened.fileno())
                replaced = (before.st_dev, before.st_ino) != (file.found.st_dev, file.found.st_ino)
                if replaced or proofs.is_proven(before, file.sha256):
                    return
                digest = self._digest(opened.readinto)
                after = os.fstat(opened.fileno())
        except FileNotFoundError:
            return
        except OSError as error:
            raise BundleError(f'cannot read "{file.path}": {error.strerror}.') from None
        if digest is None:
            return
        if digest != file.sha256:
            raise BundleError(file.altered)
        if proofs.same_file(before, after):
            proofs.remember(after, file.sha256)

    def _digest(self, read_into: Callable[[memoryview], int | None]) -> str | None:
        """Return the SHA-256 of what is read; None if the check was stopped."""
        digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
        while not self._stop.is_set():
            clock = time.perf_counter()
            count = read_into(buffer)
            if not count:
                return digest.hexdigest()
            digest.update(buffer[:count])
            if self._busy():
                time.sleep(_PAUSE * (time.perf_counter() - clock))
        return None
