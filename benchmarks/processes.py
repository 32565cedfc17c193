"""Processes that are measured from outside."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

_SAMPLE_S = 0.02


def run(command: list[str]) -> dict[str, Any]:
    """Run a process: its seconds, peak memory in GB (anonymous; resident with mapped files), and standard output."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    anonymous = resident = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            break
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        anonymous = max(anonymous, int(fields.get("RssAnon", "0 kB").split()[0]))
        resident = max(resident, int(fields.get("VmRSS", "0 kB").split()[0]))
        time.sleep(_SAMPLE_S)
    output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{command[:6]} ended with code {process.returncode}")
    return {
        "seconds": time.perf_counter() - started,
        "peak_anonymous_gb": anonymous * 1024 / 1e9,
        "peak_resident_gb": resident * 1024 / 1e9,
        "output": output,
    }
