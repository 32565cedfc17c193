"""Failures of a machine in a day, played to this process for as long as a block lasts; for watch_soak.py."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

DAY_S = 86_400.0
PERIOD_US = 100_000  # the kernel's own


def every_thread(cores: set[int]) -> None:
    """Let all threads of this process run on some cores only."""
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


@contextlib.contextmanager
def jumping_clock() -> Iterator[None]:
    """The wall clock is a day ahead in every second second."""
    real = time.time
    time.time = lambda: real() + DAY_S * (int(time.monotonic()) % 2)
    try:
        yield
    finally:
        time.time = real


@contextlib.contextmanager
def full_disk(log: Path) -> Iterator[None]:
    """No file of this process may grow beyond what the log has."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """All cores but one are taken away."""
    cores = os.sched_getaffinity(0)
    every_thread({min(cores)})
    try:
        yield
    finally:
        every_thread(cores)


class LowPower:
    """A quarter of one core's time, by the quota of a cgroup (version 1 or 2), which ends with the block."""

    def __init__(self) -> None:
        self._limits = {"cpu.cfs_quota_us": f"{PERIOD_US // 4}", "cpu.max": f"{PERIOD_US // 4} {PERIOD_US}"}
        self._before, self._group = Path(), Path()

    def __enter__(self) -> None:
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, kinds, place = line.split(":", 2)
            if kinds in ("cpu", "cpu,cpuacct", ""):
                self._before = Path("/sys/fs/cgroup", kinds, place.lstrip("/"))
                self._group = self._before / f"watch-soak-{os.getpid()}"
                with contextlib.suppress(OSError):
                    self._limit()
                    return
        raise OSError("no cgroup can be made here")

    def _limit(self) -> None:
        self._group.mkdir()
        try:
            name = next(each for each in self._limits if (self._group / each).exists())
            (self._group / name).write_text(self._limits[name])
            (self._group / "cgroup.procs").write_text(str(os.getpid()))
        except (OSError, StopIteration):
            self._group.rmdir()
            raise OSError from None

    def __exit__(self, *_: object) -> None:
        (self._before / "cgroup.procs").write_text(str(os.getpid()))
        self._group.rmdir()


def can_limit() -> bool:
    """Tell whether LowPower works here."""
    try:
        with LowPower():
            return True
    except OSError:
        return False
