"""The faster matrix products on this machine: the native core's or ONNX Runtime's.

Both multiply one matrix of the bundle's precision, in turns; an answer of ANSWER tokens to a prompt of PROMPT is then
estimated from the least times. It takes about half a second, once per machine, precision, number of threads and build:
what was found lies in products.json of the user's cache folder. Without such a folder each process measures.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from qwenvl_edge import _core
from qwenvl_edge.backends.onnxruntime.product_graph import MICROSOFT, OWN, product_graph
from qwenvl_edge.machine.cpu import processor_name

PROMPT, ANSWER = 256, 64
_ROWS = 64
"""Rows of the measured prompt."""
_INPUTS, _OUTPUTS = 2048, 12288
_TURNS = 5
_CLEARLY = 1.05
"""ONNX Runtime's products keep a copy of the weights, so they must be faster by this."""


@dataclass(frozen=True)
class Comparison:
    """Seconds that the products of an answer take, in relation to each other; `kernels` are the native core's."""

    kernels: str
    native_s: float
    onnxruntime_s: float

    @property
    def native_is_faster(self) -> bool:
        """True unless ONNX Runtime's products are clearly faster."""
        return self.onnxruntime_s * _CLEARLY > self.native_s

    def __str__(self) -> str:
        """The part of a description that says which products are taken."""
        if self.native_is_faster:
            return f"matrix products by the native core ({self.kernels})"
        gain = self.native_s / self.onnxruntime_s
        return f"its own matrix products, {gain:.1f} times as fast here as the native core's ({self.kernels})"


@functools.cache
def compare_products(bits: int, block: int, threads: int) -> Comparison:
    """Compare both products for weights of `bits` (4 or 8) in blocks of `block`, on `threads` threads (0: all)."""
    kernels, core = _core.multiply_variant(), Path(_core.__file__).stat()
    parts = [processor_name(), kernels, ort.__version__, core.st_size, core.st_mtime_ns, bits, block, threads]
    key = " | ".join(map(str, parts))
    found = _read().get(key)
    if found is None:
        found = list(_measure(bits, block, threads))
        _write({**_read(), key: found})
    return Comparison(kernels, *found)


def _measure(bits: int, block: int, threads: int) -> tuple[float, float]:
    """Seconds of an answer's products of this one matrix: the native core's and ONNX Runtime's."""
    sessions = [_session(domain, bits, block, threads) for domain in (OWN, MICROSOFT)]
    least = [{1: float("inf"), _ROWS: float("inf")} for _ in sessions]
    for turn in range(_TURNS + 1):
        for session, times in zip(sessions, least, strict=True):
            for rows in times:
                x = np.ones((rows, _INPUTS), np.float32)
                started = time.perf_counter()
                session.run(None, {"x": x})
                if turn:  # the first is warm-up
                    times[rows] = min(times[rows], time.perf_counter() - started)
    native, theirs = (times[_ROWS] * PROMPT / _ROWS + times[1] * ANSWER for times in least)
    return native, theirs


def _session(domain: str, bits: int, block: int, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Threads that went on spinning would take processors from the other session.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if domain == OWN:
        options.register_custom_ops_library(_core.__file__)
    model = product_graph(domain, _INPUTS, _OUTPUTS, bits, block)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _file() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "qwenvl-edge" / "products.json"


def _read() -> dict[str, list[float]]:
    """Return earlier measurements; none if nothing was measured, or if the file is broken."""
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
        entries = found.items() if isinstance(found, dict) else ()
        return {key: [float(first), float(second)] for key, (first, second) in entries}
    except (OSError, RuntimeError, ValueError, TypeError):
        return {}


def _write(found: dict[str, list[float]]) -> None:
    """Keep what was measured. A folder that cannot be written costs the next process half a second, no more."""
    try:
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as temporary:
            json.dump(found, temporary, indent=1)
        Path(temporary.name).replace(file)
    except (OSError, RuntimeError):
        return
