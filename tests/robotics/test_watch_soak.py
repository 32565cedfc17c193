"""The soak of `qwenvl watch`, shortened: cameras that go, clocks, a full disk, cores, a server that is restarted."""

import json
import subprocess
import sys

from support.paths import ROOT
from support.patience import PATIENCE_S


def test_no_promise_is_broken_in_a_quarter_of_a_minute(nano):
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "watch_soak.py"),
        str(nano),
        "--minutes",
        "0.25",
        "--threads",
        "1",
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["broken"] == [] and told["answers"] > 10 and told["camera_lost_and_back"] == 2
    assert told["log_lines_lost"] > 0 and told["log_lines_broken"] == told["server_wrong"] == 0
    assert told["low_power_age_p50_ms"] is None or 0 < told["low_power_age_p50_ms"] < PATIENCE_S * 1e3
