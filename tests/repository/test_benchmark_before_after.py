"""benchmarks/before_after.py on two checkouts whose benchmark prints known figures."""

from __future__ import annotations

import json
import subprocess
import sys

from support.paths import ROOT
from support.patience import PATIENCE_S


def checkout(folder, figures):
    """A folder with an environment and one benchmark, which counts its runs."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / "benchmarks").mkdir()
    (folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (folder / "benchmarks" / "known.py").write_text(
        "import json, pathlib, sys\n"
        "runs = pathlib.Path('runs'); n = int(runs.read_text()) if runs.exists() else 0\n"
        "runs.write_text(str(n + 1))\n"
        f"print('a table'); print(json.dumps({{k: v[n] for k, v in {figures!r}.items()}} | {{'words': sys.argv[1]}}))\n"
    )
    return folder


def run_it(command):
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_ratios_of_the_same_turn(tmp_path):
    other = checkout(tmp_path / "other", {"ms": [10.0, 20.0, 40.0], "gone": [1.0, 1.0, 1.0]})
    here = checkout(tmp_path / "here", {"ms": [11.0, 10.0, 40.0], "new": [5.0, 5.0, 5.0]})
    for name in ("before_after.py", "common.py"):
        (here / "benchmarks" / name).write_bytes((ROOT / "benchmarks" / name).read_bytes())
    result = tmp_path / "result.json"
    command = [sys.executable, here / "benchmarks" / "before_after.py", other, "--turns", "3", "--json", result]
    run = run_it([*command, "--", "known.py", "word"])
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == {"ms": 1.0}
    figures = json.loads(result.read_text())["details"]["figures"]
    assert figures == {"ms": {"before": 20.0, "after": 11.0, "ratio": 1.0, "least": 0.5, "greatest": 1.1}}


def test_medians_of_the_files_that_both_write(tmp_path):
    here, other = tmp_path / "here", tmp_path / "other"
    for folder, median in ((here, 3.0), (other, 2.0)):
        checkout(folder, {"ms": [1.0]})
        details = {"form": {"median": median}, "settings": {"rows": 1}, "name": "one"}
        (folder / "result.json").write_text(json.dumps({"details": details}))
    for name in ("before_after.py", "common.py"):
        (here / "benchmarks" / name).write_bytes((ROOT / "benchmarks" / name).read_bytes())
    command = [sys.executable, here / "benchmarks" / "before_after.py", other, "--turns", "1"]
    run = run_it([*command, "--", "known.py", "word", "--json", "result.json"])
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == {"ms": 1.0, "form": 1.5}


def test_another_checkout_without_an_environment(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "before_after.py", tmp_path, "--", "matmul.py"]
    run = run_it(command)
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1 and f"make -C {tmp_path} setup" in run.stderr
