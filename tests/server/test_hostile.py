"""Nothing that one client sends costs another one its answers: all attacks at once, beside an honest client."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_an_honest_client_beside_hostile_ones(engine, tmp_path):
    report = tmp_path / "hostile.json"
    command = [sys.executable, "benchmarks/hostile.py", str(engine.bundle.path), "--minutes", "0.7", "--threads", "4"]
    command += ["--json", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == found["lost"] == 0 and found["requests"] > 20 and found["hostile"] > 20
    assert found["peak_mb"] < 2500
