"""Processor time of an engine at rest, in a process of its own: time that others take is not counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

RESTING_S = 1.5
MOST_SHARE = 0.01  # of one processor
MOST_TAIL_MS = 15  # by itself ONNX Runtime spins for 35 ms and more
WATCHED = """
import json, statistics, sys, time
import numpy as np
from qwenvl_edge import QwenVLEngine

engine = QwenVLEngine(sys.argv[1], threads=2)
picture = np.zeros((64, 64, 3), np.uint8)
ask = lambda: engine.chat("What is it?", images=[picture], max_new_tokens=4, do_sample=False)

def spent(seconds):
    before = time.process_time()
    time.sleep(seconds)
    return time.process_time() - before

tails = []
for _ in range(5):
    ask()
    tails.append(spent(0.2))
with engine.batcher() as batcher:
    batcher.submit("What is it?", images=[picture], max_new_tokens=4, do_sample=False).result()
    spent(0.5)
    beside_batcher = spent(float(sys.argv[2]))
ask()
stopped = engine.stream("What is it?", images=[picture], max_new_tokens=8)
next(iter(stopped), None)
spent(0.5)
print(json.dumps({"tail": statistics.median(tails), "beside_batcher": beside_batcher,
                  "stream": spent(float(sys.argv[2]))}))
"""


def knows_spin_duration() -> bool:
    """True if this ONNX Runtime has the setting: an older one passes over it."""
    libraries = Path(ort.__file__).parent.glob("capi/onnxruntime_pybind11_state*")
    return any(b"session.intra_op.spin_duration_us" in library.read_bytes() for library in libraries)


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_an_engine_at_rest_uses_no_processor_time(tiny_exports, precision):
    bundle = tiny_exports(precision)
    command = [sys.executable, "-c", WATCHED, str(bundle.path), str(RESTING_S)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for resting in ("beside_batcher", "stream"):
        assert found[resting] < MOST_SHARE * RESTING_S, found
    if knows_spin_duration():
        assert found["tail"] * 1e3 < MOST_TAIL_MS, found
