"""What a program keeps of the memory that it frees."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

FRAMES = """
import resource
from qwenvl_edge.machine.memory import keep_freed
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def frame():
    data = bytes(3 << 20)
    bytearray(data)
{}
frame()
before = faults()
for _ in range(20):
    frame()
print(faults() - before)
"""


def page_faults(first: str) -> int:
    done = subprocess.run([sys.executable, "-c", FRAMES.format(first)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_memory_of_a_frame_serves_the_next_one():
    pages_of_a_frame = (3 << 20) // 4096
    assert page_faults("keep_freed()") < pages_of_a_frame <= page_faults("pass")


def test_other_c_libraries_go_on_as_before(monkeypatch):
    from qwenvl_edge.machine import memory

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.keep_freed()
