"""Slices of a core that Linux gives to processes, as its /proc tells them."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
from pathlib import Path


def slice_ns(process: int | str) -> int | None:
    """The slice of a process in nanoseconds; None where the system does not tell."""
    with contextlib.suppress(OSError):
        found = re.search(r"^se\.slice\s*:\s*(\d+)", Path(f"/proc/{process}/sched").read_text(), re.MULTILINE)
        return int(found[1]) if found else None
    return None


def can_be_chosen() -> bool:
    """True where a process may choose its slice and /proc tells it: Linux from 6.12 on, on processors that we know."""
    known = re.match(r"(\d+)\.(\d+)", platform.release())
    new = sys.platform == "linux" and known is not None and (int(known[1]), int(known[2])) >= (6, 12)
    return new and platform.machine() in ("x86_64", "aarch64", "riscv64") and slice_ns("self") is not None


def assert_stays_behind(process: int, niceness: int) -> None:
    """Check that a process is nicer than this one, has an ordinary policy, and longer slices where those can be set."""
    assert os.getpriority(os.PRIO_PROCESS, process) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + niceness)
    assert os.sched_getscheduler(process) == os.sched_getscheduler(0)  # the idle policy would leave it nothing
    if can_be_chosen() and os.sched_getscheduler(0) == os.SCHED_OTHER:
        assert slice_ns(process) == 5_000_000 > slice_ns("self")
