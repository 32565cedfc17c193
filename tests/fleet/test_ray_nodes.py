"""Engines that follow the load over two nodes, one of which is killed: the program that measures it, shortened."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

from support.paths import ROOT

LONG_S = 2400  # a busy machine takes minutes to start each of four engines
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="Ray keeps its objects in /dev/shm"),
]


def test_no_request_is_lost_with_a_node_and_a_camera_keeps_its_engine(nano):
    command = [sys.executable, str(ROOT / "benchmarks" / "fleet.py"), str(nano), "--seconds", "5"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["broken"] == [] and told["lost"] == told["wrong"] == 0
    assert told["engines_while_steady"] == 2 and told["asked_of_the_dead"] > 0
    assert told["camera_share_least"] == 1.0 and told["one_engine_again_s"] > 0
