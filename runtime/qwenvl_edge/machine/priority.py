"""The priority of a thread beside the others of its process."""

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
