"""The priority of threads and of processes that this one started."""

from __future__ import annotations

import contextlib
import os
import sys
import threading


def be_nice(niceness: int) -> None:
    """Lower the priority of the calling thread by so much, on systems where that is not the whole process's."""
    if sys.platform == "linux" and niceness:
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + niceness)


def make_nice(process: int, niceness: int) -> None:
    """Lower the priority of a process to a niceness, on systems that have it; only root could raise it again."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, process, niceness)
