"""`qwenvl doctor`: say what this machine has for running bundles."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwenvl_edge.cli import doctor
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.terminal import say


def add_doctor(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("doctor", help="say what this machine has, what is missing and how to fix it")
    parser.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help="say what would run it here, and why")
    parser.add_argument("--files", action="store_true", help="hash every file of BUNDLE, its TensorRT plans' too")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    bundle = None
    if arguments.files and arguments.bundle is None:
        raise QwenVLError("--files goes with a BUNDLE.")
    if arguments.bundle is not None:
        from qwenvl_edge.bundle.bundle import Bundle

        bundle = Bundle.open(arguments.bundle)
    findings = doctor.examine(bundle=bundle)
    if bundle is not None and arguments.files:
        findings += doctor.hash_files(bundle)
    if arguments.json:
        say(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=1))
    else:
        say(doctor.report(findings))
    return 1 if any(finding.grade == "bad" for finding in findings) else 0
