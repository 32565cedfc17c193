"""A process that keeps to a room: it refuses to import some packages and to start some programs, for good."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

_STARTS = ("subprocess.Popen", "os.posix_spawn", "os.exec", "os.system")


class RefusedImportError(ModuleNotFoundError):
    """Raised for a package that tests of this room do without; libraries take it for one that is not installed."""


class RefusedProgramError(Exception):
    """Raised for a program that tests of this room do without. No OSError, which would read as "not installed"."""


class _Refuse:
    """Finds none of the packages, which are asked for here first."""

    def __init__(self, packages: frozenset[str]) -> None:
        self._packages = packages

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in self._packages:
            raise RefusedImportError(f"{name} is not to be imported by this room's tests", name=name)


def refuse(packages: Iterable[str], programs: Iterable[str]) -> None:
    """Let imports of the packages, and starts of the programs by any path, raise from now on. There is no way back."""
    programs = frozenset(programs)

    def watch(event: str, arguments: tuple) -> None:
        if event in _STARTS and not programs.isdisjoint(_words(arguments)):
            raise RefusedProgramError(f"this room's tests start no compiler: {arguments[:2]}")

    sys.meta_path.insert(0, _Refuse(frozenset(packages)))
    sys.addaudithook(watch)


def _words(arguments: tuple) -> set[str]:
    """The file names of the program and of every word of its command, since `sh -c` and `env` start others."""
    words: list[object] = []
    for each in arguments[:2]:
        words += each if isinstance(each, (list, tuple)) else [each]
    texts = [word.decode(errors="replace") if isinstance(word, bytes) else str(word) for word in words if word]
    return {Path(part).name for text in texts for part in text.split()}
