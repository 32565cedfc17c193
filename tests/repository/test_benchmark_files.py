"""A benchmark that misses a file ends with one sentence that names the file and the command that makes it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from support.paths import ROOT

CASES = {
    "latency.py": (["missing"], "qwenvl export models/nano missing --precision fp32"),
    "conversation.py": (["missing"], "qwenvl export models/nano missing --precision fp32"),
    "server.py": (["missing"], "qwenvl export models/nano missing --precision fp32"),
    "fleet.py": (["missing"], "qwenvl export models/nano missing --precision fp32"),
    "watch_soak.py": (["missing"], "qwenvl export models/nano missing --precision fp32"),
    "accuracy.py": (["fp32=missing"], "qwenvl export models/nano missing --precision fp32"),
    "sensitivity.py": (["missing"], "qwenvl export models/nano missing --precision fp32"),
    "tokenizer.py": (["--vocabulary", "missing"], "python tools/fetch_vocabulary.py missing"),
    "core_profile.py": (["--vocabulary", "missing"], "python tools/fetch_vocabulary.py missing"),
}


@pytest.mark.parametrize("script", CASES)
def test_a_missing_file_is_one_sentence(script, tmp_path):
    arguments, remedy = CASES[script]
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith('There is no "missing') and line.endswith(f"make it with `{remedy}`.")


def test_make_bench_fetches_the_vocabulary_first():
    command = ["make", "--dry-run", "--always-make", "bench"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 0 <= printed.find("tools/fetch_vocabulary.py") < printed.find("benchmarks/tokenizer.py")


def test_make_help_has_a_line_for_every_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    command = ["make", "--no-print-directory", "help"]  # this make may run below another, which would be announced
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = dict(line.split(maxsplit=1) for line in printed.splitlines())
    assert sorted(lines) == sorted(targets)
