"""Priority and computing time of processes that this one started."""

import os
import platform
import subprocess
import sys
import time

import pytest

from qwenvl_edge.machine import priority
from qwenvl_edge.machine.priority import computed_s, make_nice
from support.slices import assert_stays_behind

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


@linux
def test_a_process_stays_behind_the_one_that_started_it():
    program = "from qwenvl_edge.machine.priority import stay_behind; stay_behind(5); print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        assert_stays_behind(process.pid, 5)
    finally:
        process.communicate(b"\n")


def test_systems_without_slices_or_niceness_are_no_error(monkeypatch):
    monkeypatch.setattr(priority, "_CALLS", {})
    monkeypatch.delattr(os, "nice", raising=False)
    priority.stay_behind(5)
    monkeypatch.setattr(priority, "_CALLS", {platform.machine(): (-1, -1)})  # calls that no kernel has
    priority.stay_behind(5)


def test_a_process_that_has_ended_is_no_error():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert computed_s(process.pid) is None
    make_nice(process.pid, 12)
