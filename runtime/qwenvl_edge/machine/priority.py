"""The priority of threads and of processes that this one started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
import threading
from pathlib import Path

_LONG_NS = 5_000_000  # beyond the system's own, 0.7 to 3 ms, and short enough for those who find a core taken
_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275), "riscv64": (274, 275)}  # sched_setattr, sched_getattr of Linux
_ORDINARY = 0  # the policy


class _Attributes(ctypes.Structure):
    """Linux's sched_attr in its first version; runtime: the slice of an ordinary thread in nanoseconds."""

    _fields_ = (
        *(("size", ctypes.c_uint32), ("policy", ctypes.c_uint32), ("flags", ctypes.c_uint64)),
        *(("nice", ctypes.c_int32), ("priority", ctypes.c_uint32)),
        *(("runtime", ctypes.c_uint64), ("deadline", ctypes.c_uint64), ("period", ctypes.c_uint64)),
    )


def be_nice(niceness: int) -> None:
    """Lower the priority of the calling thread by so much, on systems where that is not the whole process's."""
    if sys.platform == "linux" and niceness:
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + niceness)


def stay_behind(niceness: int) -> None:
    """Let the calling process come after whoever started it; called before it has other threads.

    A niceness decides the share of a core only: a thread that wakes waits until a nicer one has used up its slice. From
    Linux 6.12 on it takes the core at once from one that asked for longer slices, as this does, and the share of the
    process stays what it was. (The idle policy gives way at once, too, but gets nothing while all cores are busy.)
    """
    with contextlib.suppress(OSError, AttributeError):
        os.nice(niceness)
    calls = _CALLS.get(platform.machine()) if sys.platform == "linux" and sys.maxsize > 2**32 else None
    if calls is None:
        return
    attributes = _Attributes()
    with contextlib.suppress(OSError, AttributeError):
        call = ctypes.CDLL(None).syscall
        call.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
        place = ctypes.addressof(attributes)
        if call(calls[1], 0, place, ctypes.sizeof(attributes), 0) == 0 and attributes.policy == _ORDINARY:
            attributes.runtime = _LONG_NS  # ignored by earlier kernels
            call(calls[0], 0, place, 0, 0)


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
