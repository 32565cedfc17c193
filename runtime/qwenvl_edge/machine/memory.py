"""Free memory and swap space, as the system reports them, and memory given back to it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


def available_bytes() -> int | None:
    """Memory that a new process could take without swapping; None if the system does not tell."""
    return _meminfo_bytes("MemAvailable")


def swap_bytes() -> int:
    """Free swap space; 0 if the system does not tell."""
    return _meminfo_bytes("SwapFree") or 0


def give_back() -> None:
    """Give freed memory back to the system, which glibc else keeps for a next picture as large; takes milliseconds."""
    _trimmer()(0)


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
