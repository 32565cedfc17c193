"""The examples as programs: what is missing or unreachable is one sentence, and nothing half-written stays."""

import importlib.util
import json
import subprocess
import sys

import pytest

from support.moments import free_port
from support.paths import ROOT
from support.patience import PATIENCE_S

PICTURE = str(ROOT / "models" / "nano" / "demo.png")
NO_PICTURE = __file__


def run(folder, name, arguments):
    """Run an example in a folder; return what it said on stderr, which no example does when all is well."""
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert run.returncode not in (0, -11) and run.stdout == ""
    return run.stderr


@pytest.mark.parametrize(
    ("name", "package", "arguments", "match"),
    [
        ("zenoh/ask.py", "zenoh", ["missing.png", "What?"], '"missing.png" cannot be read: No such file'),
        ("zenoh/ask.py", "zenoh", [PICTURE, "What?", "missing.json5"], "Zenoh cannot start: No such file"),
        ("dora/picture_camera.py", "dora", ["missing.png"], '"missing.png" cannot be read as a picture: No such file'),
        ("dora/picture_camera.py", "dora", [NO_PICTURE], "cannot be read as a picture: cannot identify"),
        ("dora/vlm.py", "dora", ["missing"], "there is no bundle"),
        ("replay/record.py", "mcap", ["out.mcap", PICTURE, "missing.png"], "cannot open the picture 'missing.png'"),
        ("replay/record.py", "mcap", ["out.mcap", NO_PICTURE], "not an image file"),
        ("replay/record.py", "mcap", ["missing/out.mcap", PICTURE], '"missing/out.mcap" cannot be written'),
    ],
)
def test_what_is_missing_is_one_sentence(tmp_path, name, package, arguments, match):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    said = run(tmp_path, name, arguments)
    assert match in said and said.count("\n") == 1 and "/src/" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_peer_that_cannot_be_reached_is_one_sentence(tmp_path):
    pytest.importorskip("zenoh", reason="eclipse-zenoh is not installed")
    connect = {"endpoints": [f"tcp/127.0.0.1:{free_port()}"], "timeout_ms": 0}
    config = {"mode": "client", "scouting": {"multicast": {"enabled": False}}, "connect": connect}
    (tmp_path / "config.json5").write_text(json.dumps(config))
    said = run(tmp_path, "zenoh/ask.py", [PICTURE, "What?", "config.json5"])
    assert "Unable to connect" in said and said.count("\n") == 1 and "/src/" not in said


@pytest.mark.parametrize(
    ("name", "package"), [("zenoh/ask.py", "zenoh"), ("dora/picture_camera.py", "dora"), ("replay/record.py", "mcap")]
)
def test_without_arguments_the_usage_is_said(tmp_path, name, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    assert "the following arguments are required" in run(tmp_path, name, [])
