"""What pyproject.toml says about the project, and the set-up that `make` begins with."""

import sys
from pathlib import Path

import pytest

from support.paths import ROOT
from tools import set_up

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PLACEHOLDER = "https://qwenvl-edge.invalid/"


def test_addresses_are_all_placeholders_or_none_is():
    """Once the project has an address, all of them have to be set; .invalid is a domain that nobody can register."""
    urls = PROJECT["project"]["urls"]
    assert {"Repository", "Documentation", "Issues", "Changelog"} == set(urls)
    assert len({url.startswith(PLACEHOLDER) for url in urls.values()}) == 1


def test_classifiers_name_the_pythons_that_wheels_are_built_for():
    pythons = [line.rsplit(" ", 1)[1] for line in PROJECT["project"]["classifiers"] if "Python :: 3." in line]
    builds = PROJECT["tool"]["cibuildwheel"]["build"].split()
    assert [f"cp{version.replace('.', '')}-*" for version in pythons] == builds
    assert PROJECT["project"]["requires-python"] == f">={pythons[0]}"
    assert tuple(map(int, pythons[0].split("."))) == set_up.OLDEST


def test_the_command_for_optimum_is_in_the_wheel():
    """optimum reads every file of optimum/commands/register, a namespace: an __init__.py would hide other packages'."""
    setuptools = pytest.importorskip("setuptools")
    tool = PROJECT["tool"]["setuptools"]
    assert "export" in tool["packages"]["find"]["where"] and tool["packages"]["find"].get("namespaces", True)
    found = setuptools.find_namespace_packages(str(ROOT / "export"), include=["optimum*"])
    assert set(found) == {"optimum", "optimum.commands", "optimum.commands.register"}
    assert tool["package-dir"]["optimum"] == "export/optimum"
    assert [path.name for path in (ROOT / "export" / "optimum").rglob("*.py")] == ["qwenvl.py"]


def test_what_a_machine_lacks_is_one_sentence(tmp_path):
    able = {"version": (3, 12), "find": lambda name: name, "which": lambda name: name, "include": tmp_path}
    (tmp_path / "Python.h").touch()
    assert set_up.missing(**able) is None
    assert "3.9 is too old" in set_up.missing(**{**able, "version": (3, 9)})
    assert "module venv" in set_up.missing(**{**able, "find": lambda name: None if name == "ensurepip" else name})
    assert "no C++ compiler" in set_up.missing(**{**able, "which": lambda name: None})
    assert "Python.h" in set_up.missing(**{**able, "include": tmp_path / "none"})


def test_a_broken_environment_is_not_used_again(tmp_path, capsys):
    assert set_up.broken(tmp_path) is None
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    for body, words in (("exit 1", "is not whole"), ("echo 3 9", "is of Python 3.9, and 3.10 or newer is needed")):
        python.write_text(f"#!/bin/sh\n{body}\n")
        python.chmod(0o755)
        assert words in set_up.broken(tmp_path)
        assert set_up.main(["check", str(tmp_path)]) == 1
        assert f"remove it: rm -r {tmp_path}." in capsys.readouterr().err
    python.unlink()
    python.symlink_to(tmp_path / "gone")
    assert "is not whole" in set_up.broken(tmp_path)
    assert set_up.broken(Path(sys.prefix)) is None


def test_torch_comes_without_cuda_where_it_can(monkeypatch, capsys):
    """On a plain index torch depends on CUDA's packages; pip is replaced by one that writes such a plan."""
    calls = []

    def pip(*words, reachable=True):
        calls.append(words)
        if "--report" in words:
            plan = {"install": [{"metadata": {"name": name}} for name in ("torch", *bring)]}
            Path(words[words.index("--report") + 1]).write_text(set_up.json.dumps(plan))
        return 0 if reachable or "--index-url" not in words else 1

    monkeypatch.setattr(set_up, "pip", pip)
    bring = ()
    assert set_up.install_torch("2.13.0") == 0 and calls[1:] == [("torch==2.13.0",)]
    bring, calls[:] = ("nvidia-cublas", "triton"), []
    assert set_up.install_torch("2.13.0") == 0 and calls[1:] == [("--index-url", set_up.CPU_BUILDS, "torch==2.13.0")]
    monkeypatch.setattr(set_up, "pip", lambda *words: pip(*words, reachable=False))
    assert set_up.install_torch("2.13.0") == 0 and calls[-1] == ("torch==2.13.0",)
    assert "3 GB" in capsys.readouterr().out
