"""ONNX Runtime from 1.29 on reports its use to Microsoft, and leaves files for that, unless it is told not to."""

import importlib
import os
import subprocess
import sys

import onnxruntime
import pytest

import qwenvl_edge.backends.onnxruntime

ASK = "import onnxruntime as ort; ort.InferenceSession"
VARIABLE = "ORT_DISABLE_TELEMETRY"


def files_after(code, home, **environment):
    """What a program leaves under its home; without the variables that make ONNX Runtime silent in tests."""
    home.mkdir()
    kept = {name: each for name, each in os.environ.items() if name != "CI" and not name.startswith(("ORT_", "XDG_"))}
    command = [sys.executable, "-c", code]
    subprocess.run(command, env={**kept, "HOME": str(home), **environment}, check=True, timeout=120)
    return [path for path in home.rglob("*") if path.is_file()]


@pytest.mark.parametrize("package", ["qwenvl_edge", "qwenvl_edge.backends.onnxruntime", "qwenvl_edge_export"])
def test_nothing_is_reported(tmp_path, package):
    if not files_after(ASK, tmp_path / "alone"):
        pytest.skip("this ONNX Runtime reports nothing")
    assert files_after(f"import {package}; {ASK}", tmp_path / "with") == []


def test_a_decision_of_the_users_stays(tmp_path):
    code = f"import os, qwenvl_edge; print(os.environ[{VARIABLE!r}])"
    for given, wanted in ((None, "1"), ("0", "0")):
        environment = {name: each for name, each in os.environ.items() if name != VARIABLE}
        environment |= {} if given is None else {VARIABLE: given}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == wanted


def test_reports_end_where_onnx_runtime_was_imported_before(monkeypatch):
    told = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: told.append(True))
    for value, wanted in (("0", []), ("1", [True])):
        monkeypatch.setenv(VARIABLE, value)
        importlib.reload(qwenvl_edge.backends.onnxruntime)
        assert told == wanted
