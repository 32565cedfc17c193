"""Time of a bundle's stages by operator, from ONNX Runtime's own profile."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import onnxruntime as ort

TOP = 5


@contextmanager
def profiled() -> Iterator[list[ort.InferenceSession]]:
    """Sessions that are opened inside are profiled; yields them in the order in which they come."""
    opened: list[ort.InferenceSession] = []
    session = ort.InferenceSession
    with TemporaryDirectory() as folder:

        def open_profiled(path: str, options: ort.SessionOptions, **more: Any) -> ort.InferenceSession:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / str(len(opened)))
            opened.append(session(path, options, **more))
            return opened[-1]

        with mock.patch.object(ort, "InferenceSession", open_profiled):
            yield opened


def last_runs(session: ort.InferenceSession, count: int) -> list[dict[str, float]]:
    """Of the last `count` runs of a session from `profiled`: milliseconds in all ("run") and of the TOP operators."""
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs = [event for event in events if event["name"] == "model_run"][-count:]
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    found = []
    for run in runs:
        spent: Counter[str] = Counter()
        for kernel in kernels:
            if run["ts"] <= kernel["ts"] < run["ts"] + run["dur"]:
                spent[kernel["args"]["op_name"]] += kernel["dur"]
        found.append({"run": run["dur"] / 1e3} | {name: us / 1e3 for name, us in spent.most_common(TOP)})
    return found
