"""Processes that are measured, or ended, from outside."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

_SAMPLE_S = 0.02
_SAMPLES_A_DISK_SAMPLE = 3
_ENDING_S = 60.0


def run(command: list[str], made: Path | None = None, *, steps: bool = False) -> dict[str, Any]:
    """Run a process: its seconds, peak memory in GB (anonymous; resident with mapped files), and standard output.

    steps: its lines on stderr are taken for steps, each with the seconds at which it came.
    made: a folder that the process makes; peak_disk_gb is the most that it and folders beside it whose names begin with
    its name and a dot held at any moment, read every 60 ms.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE if steps else None, text=True)
    said: list[tuple[float, str]] = []
    listener = threading.Thread(target=_listen, args=(process.stderr, started, said), daemon=True)
    if steps:
        listener.start()
    anonymous = resident = disk = 0
    for i in itertools.count():
        if made is not None and i % _SAMPLES_A_DISK_SAMPLE == 0:
            disk = max(disk, allocated_bytes(made))
        if process.poll() is not None:
            break
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            break
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        anonymous = max(anonymous, int(fields.get("RssAnon", "0 kB").split()[0]))
        resident = max(resident, int(fields.get("VmRSS", "0 kB").split()[0]))
        time.sleep(_SAMPLE_S)
    assert process.stdout is not None
    output = process.stdout.read()
    process.wait()
    seconds = time.perf_counter() - started
    if steps:
        listener.join()
    if process.returncode:
        raise SystemExit(f"{command[:6]} ended with code {process.returncode}{': ' + said[-1][1] if said else ''}")
    if made is not None:
        disk = max(disk, allocated_bytes(made))
    return {
        "seconds": seconds,
        "peak_anonymous_gb": anonymous * 1024 / 1e9,
        "peak_resident_gb": resident * 1024 / 1e9,
        "output": output,
        "steps": said,
    } | ({} if made is None else {"peak_disk_gb": disk / 1e9})


def _listen(lines: IO[str], started: float, said: list[tuple[float, str]]) -> None:
    for line in lines:
        said.append((time.perf_counter() - started, line.rstrip()))
        sys.stderr.write(line)


def allocated_bytes(folder: Path) -> int:
    """Disk blocks of the files in `folder` and in folders named `<folder>.*` beside it; a file with two names once."""
    files: dict[tuple[int, int], int] = {}
    for place in (folder, *folder.parent.glob(f"{folder.name}.*")):
        try:
            with os.scandir(place) as entries:
                for stat in (entry.stat(follow_symlinks=False) for entry in entries):
                    files[stat.st_dev, stat.st_ino] = stat.st_blocks * 512
        except (FileNotFoundError, NotADirectoryError):
            continue  # it went meanwhile
    return sum(files.values())


def users_of(folder: Path | str) -> set[int]:
    """Process ids, this one's apart, of those that have a file in `folder` open."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            for file in (process / "fd").iterdir():
                with contextlib.suppress(OSError):  # it was closed
                    if Path(folder) in file.readlink().parents:
                        found.add(int(process.name))
    return found - {os.getpid()}


def end_users_of(folder: Path | str) -> None:
    """End all processes that have a file in `folder` open, and wait until there are none.

    Ray's agents outlive their node for a while, and what is being ended may still start others.

    Raises:
        SystemExit: some go on for a minute.
    """
    ends = time.monotonic() + _ENDING_S
    while found := users_of(folder):
        if time.monotonic() > ends:
            raise SystemExit(f"the processes {sorted(found)} do not end.")
        for number in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(_SAMPLE_S)
