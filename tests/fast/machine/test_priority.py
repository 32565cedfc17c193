"""Priority and computing time of processes that this one started."""

import os
import subprocess
import sys
import time

import pytest

from qwenvl_edge.machine.priority import computed_s, make_nice

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc and the niceness of single processes")


@linux
def test_computing_time_is_counted_and_waiting_is_not():
    before = computed_s(os.getpid())
    time.sleep(0.2)
    idle = computed_s(os.getpid()) - before
    ends = time.process_time() + 0.3
    while time.process_time() < ends:
        pass
    assert idle < 0.15 and computed_s(os.getpid()) - before >= 0.25


@linux
def test_a_process_is_made_nice():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        make_nice(process.pid, 12)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == max(12, os.getpriority(os.PRIO_PROCESS, 0))
    finally:
        process.communicate(b"\n")


def test_a_process_that_has_ended_is_no_error():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert computed_s(process.pid) is None
    make_nice(process.pid, 12)
