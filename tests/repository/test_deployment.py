"""What runs the server for others: options that exist, ports and times that agree, and files that the image needs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from qwenvl_edge.cli.program import _parser
from qwenvl_edge.server.settings import ServerLimits
from support.paths import ROOT

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
DOCKERFILES = ("Dockerfile", "release/cuda.Dockerfile")
UNIT = ROOT / "release" / "qwenvl.service"
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))


def lines_of(path: str | Path) -> str:
    return re.sub(r"\\\n\s*", " ", (ROOT / path).read_text(encoding="utf-8"))


def served(words):
    """The options of a command `qwenvl serve ...`, read by the program's own parser."""
    assert Path(words[0]).name == "qwenvl"
    given = _parser().parse_args(words[1:])
    options = given.run.args[0].complete(given, {})
    assert options.api_key_file is not None
    return options


@pytest.mark.parametrize("path", DOCKERFILES)
def test_the_image_starts_the_server(path):
    text = lines_of(path)
    entry, command = (
        json.loads(re.search(rf"^{word} (\[.*\])$", text, re.MULTILINE)[1]) for word in ("ENTRYPOINT", "CMD")
    )
    options = served([*entry, *command])
    assert (options.host, str(options.bundle)) == ("0.0.0.0", "/bundle")
    assert re.search(r"^EXPOSE (\d+)$", text, re.MULTILINE)[1] == str(options.port)
    extras = re.search(r"\[([\w,]+)\]\"", text)[1].split(",")
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert set(extras) <= set(tomllib.load(file)["project"]["optional-dependencies"])


def test_the_image_gets_what_the_wheel_is_made_of():
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line]
    assert patterns[0] == "*"
    taken = [line[1:] for line in patterns if line.startswith("!")]
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    needed = [
        "setup.py",
        "pyproject.toml",
        "cpp_ext",
        project["project"]["readme"],
        *project["project"]["license-files"],
    ]
    needed += project["tool"]["setuptools"]["packages"]["find"]["where"]
    assert all(any(fnmatch(name, pattern) for pattern in taken) for name in needed)
    assert all((ROOT / name).exists() for name in taken)
    plugin = re.search(r"cmake -S (\S+)", lines_of("release/cuda.Dockerfile"))[1]
    assert plugin.split("/")[0] in taken and (ROOT / plugin / "CMakeLists.txt").is_file()


def test_compose_gives_the_image_what_it_asks_for():
    (service,) = COMPOSE["services"].values()
    inside = service["ports"][0].rpartition(":")[2]
    assert f"EXPOSE {inside}" in lines_of("Dockerfile")
    assert service["volumes"][0].endswith(":/bundle:ro")
    assert set(service["secrets"]) == set(COMPOSE["secrets"]) == {"key"}
    assert int(service["stop_grace_period"].removesuffix("s")) > ServerLimits().drain_seconds


def test_the_unit():
    text = UNIT.read_text(encoding="utf-8")
    command = shlex.split(re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)[1])
    assert str(served(command).api_key_file) == "${CREDENTIALS_DIRECTORY}/key"
    assert int(re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[1]) > ServerLimits().drain_seconds


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_takes_the_unit(tmp_path):
    program = shutil.which("true")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/qwenvl/bin/qwenvl", program), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
