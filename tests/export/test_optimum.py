"""`optimum-cli export qwenvl` is a second door to the exporter: the same bundle, options, sentences and exit codes.

`make optimum-test` installs optimum in an environment of its own and runs this there.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys

import pytest

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.cli.commands.export import add_export_options
from support.paths import ROOT

COMMANDS = "optimum.commands.optimum_cli"


def installed() -> bool:
    """True if optimum is; the folder of its name alone, which this project has too, is not."""
    try:
        return importlib.util.find_spec(COMMANDS) is not None
    except ModuleNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not installed(), reason="optimum is not installed; make optimum-test installs it")


def run(*words: str, module: str = COMMANDS, first: tuple[str, ...] = ("export", "qwenvl")):
    command = [sys.executable, "-m", module, *first, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=600)


def both(*words: str):
    """The results of optimum-cli and of qwenvl."""
    return run(*words), run(*words, module="qwenvl_edge", first=("export",))


def test_the_bundle_is_the_same(tiny_checkpoint, tiny_exports, tmp_path):
    done = run(str(tiny_checkpoint), str(tmp_path / "bundle"), "--precision", "fp32", "--skip-verify")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'bundle'} is written\n"), done.stderr
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.files == tiny_exports("fp32").manifest.files
    assert not bundle.manifest.parity


def test_the_options_are_the_same():
    parser = argparse.ArgumentParser(prog="optimum-cli export qwenvl")
    add_export_options(parser)
    done = run("--help")
    assert done.returncode == 0 and "--calibrate" in done.stdout
    assert "".join(done.stdout.split()) == "".join(parser.format_help().split())
    assert "qwenvl" in run(first=("export", "--help")).stdout


@pytest.mark.parametrize(
    "words",
    [
        ("no/such/checkpoint", "out/never"),
        ("models/nano", "models"),
        ("models/nano", "models", "--force"),
        ("models/nano", "out/never", "--target", "toaster"),
        ("models/nano", "out/never", "--precision", "int3"),
        ("models/nano", "out/never", "--keep-fp16", "nothing.of.that.name"),
    ],
)
def test_the_sentences_and_exit_codes_are_the_same(words):
    ours, theirs = both(*words)
    assert ours.returncode == theirs.returncode == 2 and ours.stdout == ""
    assert ours.stderr == theirs.stderr and ours.stderr.startswith("qwenvl: ") and ours.stderr.count("\n") == 1
    assert not (ROOT / "out" / "never").exists()


def test_a_wrong_option_is_refused_by_optimum():
    done = run("models/nano", "out/never", "--no-such-option")
    assert done.returncode == 2 and "--no-such-option" in done.stderr and "Traceback" not in done.stderr
