"""`qwenvl verify`: compare a bundle with its checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qwenvl_edge.cli.export_package import import_export
from qwenvl_edge.machine.terminal import say


def add_verify(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("verify", help="compare a bundle with its checkpoint (needs PyTorch)")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="CHECKPOINT")
    parser.add_argument(
        "--backend", default="onnxruntime", metavar="B", help="onnxruntime (default), or tensorrt: this machine's plan"
    )
    parser.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    report = import_export("verification.verify").verify(
        arguments.bundle, arguments.checkpoint, backend=arguments.backend
    )
    say(report.table())
    return 0 if report.passed else 1
