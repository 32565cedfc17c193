"""The priority of threads and of processes that this one started."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path


def be_nice(niceness: int) -> None:
    """Lower the priority of the calling thread by so much, on systems where that is not the whole process's."""
    if sys.platform == "linux" and niceness:
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + niceness)


def computed_s(process: int) -> float | None:
    """Return the computing time of a process so far, in steps of some milliseconds; None where nobody tells."""
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        # The fields after the name, which may hold anything: state is the first, utime and stime the 12th and 13th.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return None


def make_nice(process: int, niceness: int) -> None:
    """Lower the priority of a process to a niceness, on systems that have it; only root could raise it again."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, process, niceness)
