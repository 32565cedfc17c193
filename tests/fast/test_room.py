"""This room's own rule: no torch, no onnx, no exporter, no compiler (conftest.py refuses them)."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

from support.paths import ROOT
from support.room import RefusedImportError, RefusedProgramError

pytestmark = pytest.mark.usefixtures("alone")
PACKAGES = ["torch", "onnx", "qwenvl_edge_export", "qwenvl_edge_export.export"]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_of_other_rooms_are_neither_loaded_nor_found(package):
    assert package not in sys.modules
    with pytest.raises(RefusedImportError, match=f"{package.partition('.')[0]} is not to be imported"):
        importlib.import_module(package)
    assert package not in sys.modules


@pytest.mark.parametrize("command", [["g++", "-v"], ["/usr/bin/c++", "-v"], ["sh", "-c", "cmake ."], ["env", "nvcc"]])
def test_compilers_are_not_started(command):
    with pytest.raises(RefusedProgramError):
        subprocess.run(command, check=False)
    with pytest.raises(RefusedProgramError):
        os.system(" ".join(command))


def test_other_programs_are_started():
    done = subprocess.run([sys.executable, "-c", "print('fine')"], capture_output=True, text=True, check=True)
    assert done.stdout == "fine\n"


def test_no_two_files_of_tests_have_one_name():
    """Together pytest imports them by their names alone, and would take one for the other."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
