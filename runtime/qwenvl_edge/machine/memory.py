"""Free memory and swap space, as the system reports them, and memory given back to it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names, of glibc's malloc.h
_KEPT_BYTES = 64 << 20
_LARGEST_KEPT = 32 << 20  # the most that glibc takes


def available_bytes() -> int | None:
    """Memory that a new process could take without swapping; None if the system does not tell."""
    return _meminfo_bytes("MemAvailable")


def swap_bytes() -> int:
    """Free swap space; 0 if the system does not tell."""
    return _meminfo_bytes("SwapFree") or 0


def give_back() -> None:
    """Give freed memory back to the system, which glibc else keeps for a next picture as large; takes milliseconds."""
    _trimmer()(0)


def keep_freed() -> None:
    """Let glibc keep up to 64 MB of freed memory for the next frame, in a program that reads one picture after another.

    By itself it asks the system for each block as large as a picture and gives it back, and the system then clears
    each page: for 1280 x 720 that takes longer than all copies. Other C libraries go on as before.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


@functools.lru_cache(maxsize=1)
def _trimmer() -> Callable[[int], object]:
    with contextlib.suppress(OSError, AttributeError):
        return ctypes.CDLL(None).malloc_trim
    return lambda _: None


def _meminfo_bytes(field: str) -> int | None:
    try:
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return int(fields[field].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
