"""`qwenvl verify`: compare a bundle with its checkpoint, or with tensors that another implementation recorded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from qwenvl_edge.cli.export_package import import_export
from qwenvl_edge.machine.signals import terminable
from qwenvl_edge.machine.terminal import ProgressBar, say


def add_verify(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("verify", help="compare a bundle with its checkpoint (needs PyTorch)")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder of a bundle")
    against = parser.add_mutually_exclusive_group(required=True)
    against.add_argument(
        "--checkpoint",
        metavar="CHECKPOINT",
        help="what the bundle was exported from: a folder, or org/name of the Hugging Face Hub",
    )
    against.add_argument(
        "--golden",
        type=Path,
        metavar="FOLDER",
        help="recorded tensors: golden_vision.npz, golden_text.npz and pictures",
    )
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of the Hub's model (default: main)")
    parser.add_argument(
        "--backend", default="onnxruntime", metavar="B", help="onnxruntime (default), or tensorrt: this machine's plan"
    )
    parser.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    verification = import_export("verification.verify")
    with terminable(), ProgressBar(sys.stderr) as progress:
        options: dict[str, Any] = {"backend": arguments.backend, "progress": progress}
        if arguments.golden is not None:
            report, failed = verification.verify_golden(arguments.bundle, arguments.golden, **options), 2
        else:
            options["revision"] = arguments.revision
            report, failed = verification.verify(arguments.bundle, arguments.checkpoint, **options), 1
    say(report.table())
    return 0 if report.passed else failed
