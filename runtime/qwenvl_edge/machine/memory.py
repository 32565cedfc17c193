"""What the system tells of its memory."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


def available_bytes() -> int | None:
    """Memory that a new process could take without swapping; None where the system does not tell."""
    return _meminfo_bytes("MemAvailable")


def swap_bytes() -> int:
    """Swap space that is free; 0 where the system does not tell."""
    return _meminfo_bytes("SwapFree") or 0


def _meminfo_bytes(field: str) -> int | None:
    try:
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return int(fields[field].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
